"""Memory that is freed is kept, and so not filled with zeros again, page by page."""

import os
import platform
import subprocess
import sys

import pytest

from spr_or.utils.kept_memory import keep_freed_memory

PROGRAM = """
import resource, sys, torch
from spr_or.utils.kept_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for turn in range(12):
    if turn == 2:
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**21) for _ in range(8)]
    del blocks
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def _faults(how: str, **settings: str) -> tuple[str, int]:
    """What `keep_freed_memory` returned, and the pages that ten turns of 64 MiB took."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_freed_memory_is_kept() -> None:
    _, before = _faults("not")
    kept, faults = _faults("keep")
    assert kept == "True"
    assert before > 1000
    assert faults < before / 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_settings_of_the_user_are_left() -> None:
    assert _faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


def test_other_systems_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False

"""Memory that is freed is kept, and so not filled with zeros again, page by page."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from spr_or.utils.kept_memory import keep_freed_memory

PROGRAM = """
import resource, sys
from spr_or.utils.kept_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for turn in range(34):
    if turn == 4:
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (40 * 2**20) for _ in range(2)]
    del blocks
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def _faults(how: str, **settings: str) -> tuple[str, int]:
    """What `keep_freed_memory` returned, and the pages that 30 turns of two blocks of 40 MiB took.

    Above 32 MiB the library always gives a block back. With smaller ones it depends on what lies above
    them whether it does, and so on the environment's length.
    """
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


@pytest.mark.parametrize(("largest", "kept"), [(2**25, True), (0, False)])
def test_an_older_library_takes_what_it_can(
    largest: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {}

    def mallopt(what: int, value: int) -> int:
        if what == -3 and value > largest:  # M_MMAP_THRESHOLD
            return 0
        settings[what] = value
        return 1

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory() is kept
    assert settings == ({-3: 2**25, -1: -1} if kept else {})


def test_other_systems_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False

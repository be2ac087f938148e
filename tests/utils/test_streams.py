"""A program whose caller has closed its streams neither fails nor writes into files of others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="descriptors are closed by a shell")

_CODE = """
import os, sys
from spr_or.utils.streams import open_closed_streams
open_closed_streams()
with open(sys.argv[1], "w") as file:
    number = file.fileno()
    for stream in (sys.stdout, sys.stderr):
        print("to nobody", file=stream, flush=True)
    for descriptor in (1, 2):
        os.write(descriptor, b"to nobody")
    sys.stdin.read()
    file.write(f"{number > 2}")
"""


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_leads_nowhere(tmp_path: Path, closed: str) -> None:
    shell = f'exec "$0" -c "$1" "$2" {closed}'
    command = ["sh", "-c", shell, sys.executable, _CODE, str(tmp_path / "file")]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    assert (tmp_path / "file").read_text() == "True"


@pytest.mark.slow  # the streams themselves are looked at above
def test_solvers_work_without_them(tmp_path: Path) -> None:
    shell = 'exec "$0" -m spr_or.cli verify regression-8x3 --json "$1" >&- 2>&-'
    command = ["sh", "-c", shell, sys.executable, str(tmp_path / "out.json")]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0

"""One process at a time in a folder."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spr_or.utils import folder_lock
from spr_or.utils.folder_lock import FolderBusy, alone_in

HOLD = """
import sys, time
from pathlib import Path
from spr_or.utils.folder_lock import alone_in
with alone_in(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys
from pathlib import Path
from spr_or.utils.folder_lock import alone_in
counter = Path(sys.argv[1]) / "counter"
for _ in range(40):
    with alone_in(Path(sys.argv[1]), "run"):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that holds the lock of ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_at_work_is_refused_with_its_process(
    holder: subprocess.Popen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "_GRACE", 0.1)
    message = rf"another run is at work in {tmp_path} \(process {holder.pid} on .*--out"
    with pytest.raises(FolderBusy, match=message), alone_in(tmp_path, "run"):
        pass
    # The refused one has taken nothing away.
    with pytest.raises(FolderBusy, match=message), alone_in(tmp_path, "run"):
        pass


def test_a_killed_process_blocks_nobody(
    holder: subprocess.Popen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "_GRACE", 600.0)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / ".lock").read_text()  # it could not tidy up
    started = time.monotonic()
    with alone_in(tmp_path, "run"):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
        assert str(holder.pid) not in (tmp_path / ".lock").read_text().split()
    assert time.monotonic() - started < 60
    assert not (tmp_path / ".lock").exists()


def test_a_lock_that_is_about_to_go_is_waited_for(holder: subprocess.Popen, tmp_path: Path) -> None:
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    with alone_in(tmp_path, "run"):
        assert holder.wait(5) == -signal.SIGKILL


def test_the_lock_goes_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), alone_in(tmp_path / "new", "run"):
        raise KeyboardInterrupt
    assert not list((tmp_path / "new").iterdir())


def test_no_two_are_ever_inside(tmp_path: Path) -> None:
    """Taking, removing and taking again: an increment that is not alone loses a count."""
    (tmp_path / "counter").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "160"

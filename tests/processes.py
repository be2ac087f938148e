"""Whether a process that nobody may wait for still runs; for systems that list processes in /proc."""

import time
from pathlib import Path


def runs(process: int | str) -> bool:
    """Whether it exists and has not ended, as one that nobody has waited for yet has."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_until_gone(process: int | str, seconds: float) -> None:
    """Wait for its end; ``AssertionError`` where it goes on for longer than that."""
    until = time.monotonic() + seconds
    while runs(process):
        assert time.monotonic() < until, f"process {process} goes on"
        time.sleep(0.01)

"""One process at a time in a folder: a lock that goes with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from spr_or.utils.files import disk_full_explained

_NAME = ".lock"
_GRACE = 5.0  # seconds for the workers of a process that was killed to go


class FolderBusy(RuntimeError):
    """Another process is at work in the folder; the message names both."""


@contextlib.contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is not there; ``what`` works in it ("run").

    The system takes the lock away when its process ends, so the file that a killed process leaves
    blocks nobody. A refusal comes after a few seconds, because the workers of a killed process hold
    its lock until they see that. Where the file system knows no locks, there is none. Raises
    `FolderBusy`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with alone_in(folder, "run"):
    ...     (folder / ".lock").exists()
    True
    >>> (folder / ".lock").exists()
    False
    """
    path = folder / _NAME
    with disk_full_explained(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _taken(path)
    if lock is None:
        raise FolderBusy(
            f"another {what} is at work in {folder} ({_holder(path)}): wait for its end, or name "
            "another --out"
        )
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _taken(path: Path) -> TextIO | None:
    """The lock file, locked and with this process's name in it; None if another one keeps it."""
    until = time.monotonic() + _GRACE
    while True:
        lock = path.open("a+", encoding="utf-8")
        # The one before may have removed the file between our opening and locking it.
        if _locked(lock) and _is_in_place(lock, path):
            with contextlib.suppress(OSError):  # it only serves the message
                os.truncate(lock.fileno(), 0)
                os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            return lock
        lock.close()
        if time.monotonic() > until:
            return None
        time.sleep(0.05)


def _locked(lock: TextIO) -> bool:
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a system, or a file system, without such locks
        return True
    return True


def _is_in_place(lock: TextIO, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8") or "a process without a name"
    return "a process without a name"

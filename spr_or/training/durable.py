"""Files that survive a crash and a full disk: flushed before they take the old one's place.

Of several processes that train one network, the first one writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from spr_or.training import distributed
from spr_or.utils.files import write_aside


class DiskFull(OSError):
    """No space left while writing; what stood there before is untouched."""


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """`write_aside`, with the bytes on the disk before the file takes the place of ``path``.

    Does nothing in a process that is not the first. Raises `DiskFull` instead of a bare OSError
    when the disk is full.
    """

    if not distributed.is_first():
        return

    def flushed(aside: Path) -> None:
        write(aside)
        with aside.open("rb+") as stream:
            os.fsync(stream.fileno())

    with disk_full_explained(path):
        write_aside(path, flushed)
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    write_durably(path, lambda aside: aside.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Turn "no space left" while writing ``path`` into a `DiskFull` that says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        code = getattr(error, "errno", None)
        # torch's own writer reports a full disk as a RuntimeError.
        if code not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(error):
            raise
        raise DiskFull(
            errno.ENOSPC,
            f"the disk is full: {path.name} was not written, and what stood there before is "
            "untouched. Free some space, then run again with --resume",
            str(path),
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

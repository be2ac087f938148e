"""Files that appear whole or not at all, and the error for a full disk.

Every file of this package is written beside its place and swapped in. `write_aside` does only that;
`write_durably` and what builds on it also wait until the bytes are on the disk.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# What torch's writer (two ways), safetensors and numpy say without the system's number.
_FULL = (
    r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing|No space left|os error 28"
    r"|\d+ requested and \d+ written"
)


def cache_folder() -> Path:
    """$SPR_OR_CACHE, or ~/.cache/spr-or."""
    return Path(os.environ.get("SPR_OR_CACHE") or "~/.cache/spr-or").expanduser()


class DiskFull(OSError):
    """No space left while writing; the file that was there before is unchanged."""


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_aside(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then swap it in at `path` atomically.

    If `write` raises, `path` keeps what it held and the unfinished file is removed; a
    killed process can leave only the unfinished file, under a hidden name. Raises
    `DiskFull` instead of a bare OSError when the disk is full.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_aside(path, lambda aside: aside.write_text("whole"))
    >>> path.read_text()
    'whole'
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with disk_full_explained(path):
        try:
            write(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def write_durably(path: str | Path, write: Callable[[Path], object]) -> None:
    """`write_aside`, with the bytes on the disk before the file is swapped in.

    So a power cut leaves either the old file or the new one, whole.
    """

    def flushed(aside: Path) -> None:
        write(aside)
        with aside.open("rb+") as stream:
            os.fsync(stream.fileno())

    write_aside(path, flushed)
    _sync_folder(Path(path).parent)


def remove_asides(folder: Path) -> None:
    """Remove what killed processes left of `write_aside` in a folder; nobody else may write there.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in (".note.123.txt", ".gitignore", "note.txt"):
    ...     (folder / name).touch()
    >>> remove_asides(folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['.gitignore', 'note.txt']
    """
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+(\.\w+)?", path.name) and path.is_file():
            path.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, durably."""
    write_durably(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a dictionary of plain values as JSON; `ValueError` for a number that is not finite."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file with a header; a key that a row lacks is an empty cell.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "table.csv"
    >>> write_csv(path, ["name", "n"], [{"name": "a,b", "n": 1}, {"name": "c"}])
    >>> path.read_text()
    'name,n\\n"a,b",1\\nc,\\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@contextlib.contextmanager
def disk_full_explained(path: Path) -> Iterator[None]:
    """Turn "no space left" while writing ``path`` into a `DiskFull` that says what to do."""
    try:
        yield
    except Exception as error:  # torch and safetensors have kinds of their own
        if not _means_full(error):
            raise
        raise DiskFull(
            errno.ENOSPC,
            f"No space left: the disk is full, so {path.name} was not written, and what stood "
            "there before is untouched. Free some space, then run again (a training run with "
            "--resume)",
            str(path),
        ) from error


def _means_full(error: BaseException) -> bool:
    """Whether an error, or one that it arose from, says that the disk is full.

    A number of the system decides where there is one; else the words of the library that wrote.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    numbers = [e.errno for e in chain if isinstance(e, OSError) and e.errno is not None]
    if numbers:
        return any(number in (errno.ENOSPC, errno.EDQUOT) for number in numbers)
    return any(re.search(_FULL, str(e)) for e in chain)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

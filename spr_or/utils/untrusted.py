"""Files that may come from anywhere, read within limits: plain bytes, text, JSON, arrays.

Nothing here executes what it reads, waits for a pipe, or expands an archive before its size is
known. Whatever is wrong with a file ends in an `UnreadableFile` that names it.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

GIB = 2**30
LARGEST_FILE = 8 * GIB  # of text or JSON; what is larger does not fit into memory anyway
LARGEST_ARRAYS = 8 * GIB  # what the arrays of one file may take once they are expanded
_SMALL = GIB // 4  # so much may be expanded from any archive
_RATIO = 100  # and beyond, so many times the size of the file
_MOST_ARRAYS = 1000
_LONGEST_INTEGER = 40  # digits; seeds and counts have fewer
_KINDS = "biufUS"  # numbers, booleans and text; no objects, no records


class UnreadableFile(ValueError):
    """A file that is damaged, too large, or not what it should be; the message names it."""


def read_bytes(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """The content of a regular file of at most ``largest`` bytes; raises `UnreadableFile`.

    A folder, a pipe or a device is refused without waiting for it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableFile(f"{path}: not a regular file")
            if status.st_size > largest:
                raise UnreadableFile(
                    f"{path}: {status.st_size:,} bytes, more than the {largest:,} that are read"
                )
            return file.read()
    except IsADirectoryError:
        raise UnreadableFile(f"{path}: a folder, not a file") from None
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, UnreadableFile):
            raise
        raise UnreadableFile(f"{str(path)!r} is no name of a file: {error}") from None
    except MemoryError:
        raise UnreadableFile(f"{path}: does not fit into memory") from None


def check_regular(path: Path) -> None:
    """Raise `UnreadableFile` where ``path`` is no regular file, before a library opens it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise UnreadableFile(f"{path}: not a regular file")


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark; raises `UnreadableFile`."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UnreadableFile(f"{path}, line {line}: holds a NUL character, so it is no text file")
    return text


def read_json(path: Path) -> Any:
    """The value of a JSON file, with finite numbers only; raises `UnreadableFile`."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; ``where`` names its source in the `UnreadableFile`.

    NaN, Infinity and numbers that a float cannot hold are refused, and so is nesting without end.

    >>> parse_json('{"a": 1e400}', "x.json")
    Traceback (most recent call last):
    spr_or.utils.untrusted.UnreadableFile: x.json: 1e400 is not a finite number
    """

    def refused(number: str) -> Any:
        shown = number if len(number) <= 20 else f"{number[:20]}..."
        raise UnreadableFile(f"{where}: {shown} is not a finite number")

    def real(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refused(number)

    def integer(number: str) -> int:
        return int(number) if len(number) <= _LONGEST_INTEGER else refused(number)

    try:
        return json.loads(text, parse_constant=refused, parse_float=real, parse_int=integer)
    except UnreadableFile:
        raise
    except RecursionError:
        raise UnreadableFile(f"{where}: not JSON of ours: nested too deeply") from None
    except ValueError as error:
        raise UnreadableFile(f"{where}: not JSON ({error})") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file: numbers, booleans and text; raises `UnreadableFile`.

    What the archive and the header of each array promise is held against the limits before anything
    is expanded.
    """
    content = read_bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            _check_members(members, len(content))
            return {
                member.filename.removesuffix(".npy"): _array(member.filename, archive.read(member))
                for member in members
            }
    except (
        ValueError, OSError, EOFError, KeyError, TypeError, RuntimeError, SyntaxError, OverflowError,
        NotImplementedError, MemoryError, RecursionError, zipfile.BadZipFile, zlib.error,
        tokenize.TokenError,  # numpy takes the header of an array for an expression of Python
    ) as error:  # fmt: skip
        detail = str(error) or type(error).__name__
        raise UnreadableFile(f"{path}: not an npz file of plain arrays ({detail})") from None


def most_expanded(size: int) -> int:
    """So many bytes may come out of an archive of ``size`` bytes."""
    return max(_SMALL, min(LARGEST_ARRAYS, _RATIO * size))


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    if len(members) > _MOST_ARRAYS:
        raise ValueError(f"{len(members)} arrays, more than {_MOST_ARRAYS}")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("two arrays have one name")
    for member in members:
        if not member.filename.endswith(".npy"):
            raise ValueError(f"{member.filename!r} is no array")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename!r} is compressed in another way than numpy does it")
    total = sum(member.file_size for member in members)
    if total > most_expanded(size):
        raise ValueError(f"{size:,} bytes that would expand to {total:,}")


_HEADERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def _array(name: str, content: bytes) -> np.ndarray:
    """One array in numpy's own format; ``ValueError`` where its header promises other bytes."""
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"{name!r} has the format {version}")
    shape, by_columns, dtype = _HEADERS[version](stream)
    if dtype.kind not in _KINDS:
        raise ValueError(f"{name!r} holds {dtype}, not numbers or text")
    rest = content[stream.tell() :]
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"{name!r} does not have the size that it states")
    if not rest:
        return np.empty(shape, dtype)
    array: np.ndarray = np.ndarray(shape, dtype, rest, order="F" if by_columns else "C")
    return array.copy()

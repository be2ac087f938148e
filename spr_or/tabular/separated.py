"""Text tables: from the bytes of a file to its columns of words.

The bytes may be compressed (gzip, or zip with one file), in UTF-8, UTF-16 or an encoding that is
named.  Values are separated by comma, semicolon, tab, | or blanks, whichever splits the first rows
evenly; what stands in quotes is never split.  Lines that start with # are comments.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spr_or.tabular.numbers import is_missing, looks_like_data, names_rows
from spr_or.tabular.preparation import Reading
from spr_or.tabular.source import Column, Source, TableError, listed
from spr_or.utils.compressed import expanded
from spr_or.utils.untrusted import UnreadableFile, read_bytes

_SEPARATORS = ",;\t| "  # in the order in which one is preferred
_LOOKED_AT = 50  # rows, to find the separator


class _Row(NamedTuple):
    line: int
    cells: list[str]


class _Comment(NamedTuple):
    line: int
    text: str


def read_separated(path: Path, reading: Reading, target: str | None) -> Source:
    """The columns of a text file; ``target`` is only looked for in the first row.

    Raises `TableError`.
    """
    try:
        content = expanded(path, read_bytes(path))
    except UnreadableFile as error:
        raise TableError(str(error)) from None
    text = _decoded(path, content, reading.encoding)
    separator = _separator(text, reading.decimal)
    comments: list[_Comment] = []
    try:
        rows = list(_rows(text, separator, comments))
    except _BrokenLine as error:
        raise TableError(f"{path}, line {error}") from None
    if not rows:
        raise TableError(f"{path}: the file is empty")
    notes: list[str] = []
    header = _header(path, rows, comments, separator, reading, target, notes)
    _fit(path, header, rows, notes)
    lines = [row.line for row in rows]
    cells = zip(*(row.cells for row in rows), strict=True)
    columns = [
        Column(name, [None if is_missing(cell) else cell.strip() for cell in column])
        for name, column in zip(header, cells, strict=True)
    ]
    return Source(columns, lines, notes=tuple(notes))


def _decoded(path: Path, content: bytes, encoding: str | None) -> str:
    name = encoding
    if name is None:
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        name = "utf-16" if wide else "utf-8-sig"
    try:
        if codecs.lookup(name).name == "utf-8":
            name = "utf-8-sig"
        text = content.decode(name)
    except LookupError:
        raise TableError(f"--encoding {encoding}: no encoding of text has this name") from None
    except UnicodeError as error:
        detail = (
            f"{error.reason} at byte {error.start}"
            if isinstance(error, UnicodeDecodeError)
            else str(error)
        )
        shown = "UTF-8" if name == "utf-8-sig" else name
        raise TableError(
            f"{path}: not {shown} text ({detail}); --encoding NAME reads another one, such as "
            "latin-1 or cp1252"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise TableError(f"{path}, line {line}: holds a NUL character, so it is no text file")
    return text


class _BrokenLine(Exception):
    """The line and what the csv module says about it."""


def _rows(text: str, separator: str, comments: list[_Comment]) -> Iterator[_Row]:
    """The rows that hold something; a # within a quoted value does not start a comment."""
    at = 0
    fresh = True  # the next line begins a row

    def lines() -> Iterator[str]:
        nonlocal at, fresh
        for line in io.StringIO(text, newline=""):
            at += 1
            if fresh and line.lstrip(" ").startswith("#"):
                comments.append(_Comment(at, line.lstrip(" #\t").rstrip()))
                continue
            fresh = False
            yield line.strip(" \r\n") + "\n" if separator == " " else line

    reader = csv.reader(lines(), delimiter=separator, skipinitialspace=True)
    try:
        for cells in reader:
            fresh = True
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                yield _Row(at, cells)
    except csv.Error as error:
        raise _BrokenLine(f"{at}: {error}") from None


def _separator(text: str, decimal: str) -> str:
    """The separator that splits the most of the first rows as it splits the first one."""

    def evenness(separator: str) -> tuple[float, int]:
        try:
            first = [len(r.cells) for r in itertools.islice(_rows(text, separator, []), _LOOKED_AT)]
        except _BrokenLine:
            return 0.0, 0
        if not first or first[0] == 1:
            return 0.0, 0
        even = sum(abs(count - first[0]) <= 1 and count > 1 for count in first)
        exact = sum(count == first[0] for count in first)
        share = max(even - 0.5, exact) / len(first)
        if separator == decimal:  # such marks separate only where nothing else does
            share *= 0.9
        return share, first[0] if separator != " " else 0

    return max(_SEPARATORS, key=evenness)


def _header(
    path: Path,
    rows: list[_Row],
    comments: list[_Comment],
    separator: str,
    reading: Reading,
    target: str | None,
    notes: list[str],
) -> list[str]:
    """The names of the columns; the row that holds them is taken out of ``rows``."""
    first = [cell.strip() for cell in rows[0].cells]
    if reading.header is False:
        return [f"column{j}" for j in range(1, len(first) + 1)]
    if reading.header is None and looks_like_data(first, reading.decimal, target):
        before = [comment for comment in comments if comment.line < rows[0].line]
        names = _split(before[-1].text, separator) if before else []
        if len(names) == len(first) > 1:
            notes.append(f"the columns are named by the comment in line {before[-1].line}")
            return names
        raise TableError(
            f"{path}, line {rows[0].line}: the first row looks like data, not like names "
            f"({listed(first, 4)}); --no-header reads it as data and calls the columns column1 to "
            f"column{len(first)}, --header takes it for names"
        )
    del rows[0]
    return first


def _split(line: str, separator: str) -> list[str]:
    try:
        row = next(_rows(line, separator, []), None)
    except _BrokenLine:
        return []
    return [] if row is None else [cell.strip() for cell in row.cells]


def _fit(path: Path, header: list[str], rows: list[_Row], notes: list[str]) -> None:
    """Header and rows of one length: a trailing separator goes, row names without a head get one."""
    if not rows:
        raise TableError(f"{path}: there is a header but no data")
    lengths = {len(row.cells) for row in rows}
    if len(header) > 1 and not header[-1]:
        if lengths == {len(header) - 1}:
            header.pop()
        elif lengths == {len(header)} and not any(row.cells[-1].strip() for row in rows):
            header.pop()
            for row in rows:
                row.cells.pop()
    elif lengths == {len(header) + 1}:
        if not any(row.cells[-1].strip() for row in rows):
            for row in rows:
                row.cells.pop()
        elif names_rows([row.cells[0].strip() for row in rows]):
            header.insert(0, "")
            notes.append("every row has one value more than the header: the first is its name")
    for row in rows:
        if len(row.cells) != len(header):
            raise TableError(
                f"{path}, line {row.line}: {len(row.cells)} values, the header has {len(header)}"
            )

"""A table as its file holds it: named columns of words or numbers, before anything is decided."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.utils.printable import one_line

Array = NDArray[np.float64]


class TableError(ValueError):
    """What is wrong with a file or its use, where, and what would help."""


class Column(NamedTuple):
    """Words (None where a value is missing) or numbers (NaN where one is missing), one for each row.

    ``category``: the file says that the values are levels, even if they look like numbers.
    """

    name: str
    values: list[str | None] | Array
    category: bool = False


class Source(NamedTuple):
    """The columns of a file in their order.

    lines : the line of each row in a text file; None where a file has no lines
    targets : for arrays, the columns of the target; None: they are among ``columns``
    groups : for arrays, the label that the file gives each column
    notes : what was noticed while reading, in sentences
    by_columns : whether the file stores its numbers column by column, which orders sums over them
    row_names : the column that the file itself declares to be the names of the rows
    """

    columns: list[Column]
    lines: list[int] | None = None
    targets: list[Column] | None = None
    groups: list[str] | None = None
    notes: tuple[str, ...] = ()
    row_names: str | None = None
    by_columns: bool = False

    def place(self, row: int) -> str:
        """Where a row stands, as a person finds it."""
        return f"row {row + 1} of the data" if self.lines is None else f"line {self.lines[row]}"


def names_asked(text: str) -> list[str]:
    """Names with commas between; one with a comma stands in quotes.

    >>> names_asked('age,"a, b"')
    ['age', 'a, b']
    """
    return [part.strip() for part in next(csv.reader([text], skipinitialspace=True), [])]


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names for a message, the first ``most`` of them.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(one_line, names[:most])) + rest

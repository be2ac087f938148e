"""Cells of a table as numbers, and what a cell is that is none: a gap, a date, another notation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from spr_or.tabular.source import Array, Column, TableError

_MISSING = frozenset(
    ("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "nat", "null", "none", "?", ".")
)
_BOOLEANS = {"true": 1.0, "false": 0.0}
_DATE = re.compile(
    r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2}))([T ]\d{1,2}:.*)?"
    r"|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
)
_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([,._' ]\d{3})+([.,]\d+)?|[+-]?\d[\d_]*_[\d_]*\d")
_UNIT = re.compile(r"[$€£¥]\s*[+-]?[\d.,]*\d|[+-]?\d[\d.,]*\s*[%$€£¥]")


def is_missing(cell: str) -> bool:
    """Whether a cell of a text file stands for no value.

    >>> [is_missing(cell) for cell in ("", " N/A ", "?", "0", "no")]
    [True, True, True, False, False]
    """
    return cell.strip().lower() in _MISSING


def number(text: str, decimal: str = ".") -> float:
    """A number as it is written in a table, or NaN; no underscores, one decimal mark.

    >>> number("1e3"), number("1_000"), number("1,5", ","), number("1.5", ",")
    (1000.0, nan, 1.5, nan)
    """
    if "_" in text:
        return math.nan
    if decimal == ",":
        if "." in text:
            return math.nan
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return math.nan


def looks_like_data(first: Sequence[str], decimal: str, target: str | None) -> bool:
    """Whether a first row holds data: only numbers, or some where the target is not named.

    >>> looks_like_data(["1.5", "2"], ".", "y"), looks_like_data(["2019", "2020", "y"], ".", "y")
    (True, False)
    """
    numbers = [not math.isnan(number(cell, decimal)) for cell in first if cell]
    if not numbers:
        return False
    named = target is None or target in first or any(t.strip() in first for t in target.split(","))
    return all(numbers) or (any(numbers) and not named)


def names_rows(values: Sequence[object]) -> bool:
    """Whether values count the rows from 0 or 1, or are words that differ from row to row.

    >>> names_rows(["1", "2", "3"]), names_rows(["Fiat", "Opel"]), names_rows(["1.5", "2", "3"])
    (True, True, False)
    """
    shown = [str(value).removesuffix(".0") for value in values]
    if any(shown == [str(i + start) for i in range(len(shown))] for start in (0, 1)):
        return True
    return len(set(shown)) == len(shown) and all(math.isnan(number(value)) for value in shown)


def as_numbers(
    column: Column, decimal: str, place: Callable[[int], str], path: object
) -> Array | None:
    """The values of a column, NaN where they are missing; None if it holds words.

    True and False are 1 and 0.  Raises `TableError` for infinite values, dates, numbers in another
    notation, and for words among numbers.
    """
    if isinstance(column.values, np.ndarray):
        found = column.values
    else:
        if column.category:
            return None
        known = [value for value in column.values if value is not None]
        if known and all(value.lower() in _BOOLEANS for value in known):
            return np.array(
                [math.nan if v is None else _BOOLEANS[v.lower()] for v in column.values]
            )
        found = np.array(
            [math.nan if v is None else number(v, decimal) for v in column.values], dtype=np.float64
        )
        if _holds_words(column, found, decimal, place, path):
            return None
    infinite = np.flatnonzero(np.isinf(found))
    if infinite.size:
        row = int(infinite[0])
        raise TableError(
            f"{path}, {place(row)}, column {column.name!r}: {str(column.values[row])!r} is not a "
            "finite number"
        )
    return found


def _holds_words(
    column: Column, found: Array, decimal: str, place: Callable[[int], str], path: object
) -> bool:
    """Whether all values are words; an error where they are neither words nor numbers."""
    others = [
        (row, value)
        for row, value in enumerate(column.values)
        if value is not None and math.isnan(found[row])
    ]
    if not others:
        return False
    for row, value in others:
        hint = _notation(value, decimal)
        if hint:
            raise TableError(f"{path}, {place(row)}, column {column.name!r}: {value!r} is {hint}")
    count = int(np.isfinite(found).sum())
    if count:
        row, value = others[0]
        raise TableError(
            f"{path}, {place(row)}, column {column.name!r}: {value!r} is not a finite number, as "
            f"{count} other values of the column are; correct it, or leave the column out with "
            "--drop"
        )
    return True


def _notation(value: str, decimal: str) -> str:
    """What a value is that looks like a number or a date without being one; empty for a word."""
    if _DATE.fullmatch(value):
        return (
            "a date or time; give numbers instead, such as the days since a start or the year and "
            "the month, or leave the column out with --drop"
        )
    if decimal == "." and _COMMA.fullmatch(value):
        return (
            "a number with a comma; if it is the decimal comma, say --decimal , and if it "
            "separates thousands, remove it"
        )
    if decimal == "," and re.fullmatch(r"[+-]?\d*\.\d+", value):
        return "a number with a point, but --decimal , was given; use one decimal mark"
    if _THOUSANDS.fullmatch(value):
        return "a number with marks between thousands; remove them"
    if _UNIT.fullmatch(value):
        return "a number with a unit; leave the unit out"
    return ""

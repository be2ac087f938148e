"""The columns of a table as the columns of X: which are used, what happens to gaps, words as dummies.

Nothing is left out without a note, and everything that is done is recorded in a `Preparation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spr_or.tabular.groups import entities_of
from spr_or.tabular.numbers import as_numbers, names_rows
from spr_or.tabular.preparation import Coding
from spr_or.tabular.source import Array, Column, TableError, listed

_INDEX_NAMES = ("unnamed: 0", "rownames", "row.names", "index", "row", "id")


@dataclass
class Variable:
    """A column as numbers (n,), NaN where one is missing, or as words, None where one is missing."""

    name: str
    numbers: Array | None
    words: list[str | None]

    @property
    def gaps(self) -> np.ndarray:
        """Where a value is missing, (n,)."""
        if self.numbers is not None:
            return np.isnan(self.numbers)
        return np.array([word is None for word in self.words], dtype=bool)

    def keep(self, rows: np.ndarray) -> Variable:
        """The rows at which ``rows`` (n,) is true."""
        if self.numbers is not None:
            return Variable(self.name, self.numbers[rows], [])
        words = [word for word, stays in zip(self.words, rows, strict=True) if stays]
        return Variable(self.name, None, words)


@dataclass
class Done:
    """What was done so far; ``notes`` says it in sentences."""

    set_aside: dict[str, str] = field(default_factory=dict)
    coded: dict[str, Coding] = field(default_factory=dict)
    filled: dict[str, float] = field(default_factory=dict)
    kept_equal: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def aside(self, name: str, reason: str) -> None:
        """Record and say that a column is not used."""
        self.set_aside[name] = reason
        self.notes.append(f"column {name!r} is set aside: it {reason}")


def check_names(path: Path, names: Sequence[str]) -> None:
    """Every column has a name of its own; raises `TableError`."""
    for name, count in Counter(names).items():
        if count > 1:
            raise TableError(
                f"{path}: {name!r} names {count} columns; give each column a name of its own"
            )


def variable(column: Column, decimal: str, place: Callable[[int], str], path: Path) -> Variable:
    """A column as numbers or as words; raises `TableError` as `as_numbers` does."""
    numbers = as_numbers(column, decimal, place, path)
    if numbers is not None or isinstance(column.values, np.ndarray):
        return Variable(column.name, numbers, [])
    return Variable(column.name, None, column.values)


def is_index(column: Column, first: bool, declared: bool) -> bool:
    """Whether a column holds a saved index: the first one, without a name or with a usual one.

    Without a name it has to differ from row to row; with a name it has to count from 0 or 1, or
    hold words that differ.
    """
    if not (first or declared):
        return False
    values = list(column.values)
    if None in values or len(set(values)) < len(values):
        return False
    if declared or not column.name:
        return True
    if column.name.lower() not in _INDEX_NAMES:
        return False
    return names_rows(values)


def fill(variables: Sequence[Variable], done: Done) -> None:
    """Put the mean of a column of numbers in the place of its missing values."""
    for one in variables:
        gaps = one.gaps
        if one.numbers is not None and gaps.any():
            mean = float(one.numbers[~gaps].mean())
            one.numbers = np.where(gaps, mean, one.numbers)
            done.filled[one.name] = mean
            count = _count(int(gaps.sum()), "gap")
            done.notes.append(f"column {one.name!r}: {count} filled with its mean {mean:g}")


def coded(
    variables: Sequence[Variable], labels: Sequence[str], done: Done
) -> tuple[list[str], list[str], list[Array]]:
    """Names, group labels and values of the columns of X: words become a column for each level but
    the first in alphabetical order, in the group of their variable.

    A missing word, where it is left, counts in each column as the mean of that column.
    """
    names: list[str] = []
    own: list[str] = []
    values: list[Array] = []
    for one, label in zip(variables, labels, strict=True):
        if one.numbers is not None:
            names.append(one.name)
            own.append(label)
            values.append(one.numbers)
            continue
        reference, *levels = sorted({word for word in one.words if word is not None})
        gaps = one.gaps
        for level in levels:
            column = np.array([float(word == level) for word in one.words])
            mean = float(column[~gaps].mean())
            names.append(f"{one.name}={level}")
            own.append(label)
            values.append(np.where(gaps, mean, column))
            if gaps.any():
                done.filled[names[-1]] = mean
        done.coded[one.name] = Coding(reference=reference, levels=levels)
        count = _count(int(gaps.sum()), "gap")
        filled = f", {count} filled with their means" if gaps.any() else ""
        done.notes.append(
            f"{one.name!r} holds words: {_count(len(levels), 'column')} of 0 and 1 "
            f"({listed(levels, 4)}) in one group, against {reference!r}{filled}"
        )
    return names, own, values


def without_words_for_rows(variables: Sequence[Variable], done: Done) -> list[Variable]:
    """Variables of words without those that hold one word only, or another one in every row."""
    left = []
    for one in variables:
        present = [word for word in one.words if word is not None]
        if one.numbers is None and len(set(present)) == 1:
            done.aside(one.name, "does not vary")
        elif one.numbers is None and len(set(present)) == len(present) > 2:
            done.aside(one.name, "holds another word in every row, as names of rows do")
        else:
            left.append(one)
    return left


def informative(
    names: Sequence[str],
    labels: Sequence[str],
    X: Array,
    intercept: bool,
    kept_equal: Collection[str] | None,
    done: Done,
) -> list[int]:
    """The columns of X that say something of their own; the others are set aside.

    With an intercept a column has to vary, without one it has to be other than zero.  A column that
    equals an earlier one goes if it stands in the group of that one, or alone; ``kept_equal`` names
    those that stay all the same (None: decided here).
    """
    left: list[int] = []
    seen: dict[bytes, int] = {}
    groups = entities_of(labels)
    flat: np.ndarray = constant(X) if intercept else ~np.any(X, axis=0)
    if flat.all():
        done.notes.append("no column varies: there is nothing with which to explain the target")
        return list(range(len(names)))
    for j, name in enumerate(names):
        if flat[j]:
            done.aside(name, "does not vary" if intercept else "is zero everywhere")
            continue
        first = seen.setdefault((X[:, j] + 0.0).tobytes(), j)
        alone = labels[first] == labels[j] or len(groups[labels[j]]) == 1
        if first == j or not (alone if kept_equal is None else name not in kept_equal):
            left.append(j)
            if first != j:
                done.kept_equal.append(name)
                done.notes.append(
                    f"column {name!r} equals column {names[first]!r}, in another group"
                )
        else:
            done.aside(name, f"equals column {names[first]!r}")
    return left


def constant(X: Array) -> np.ndarray:
    """Which columns of X (n, p) do not vary, but for rounding: (p,)."""
    spread = np.sqrt(np.square(X - X.mean(0)).mean(0))
    return np.asarray(spread <= 1e-12 * np.maximum(np.abs(X).max(0), 1e-300))


def reproductions(names: Sequence[str], X: Array, targets: Sequence[str], y: Array) -> list[str]:
    """Which columns give a target exactly, up to a factor and a shift, in sentences."""
    if len(X) < 3:
        return []
    found = []
    A, B = X - X.mean(0), y - y.mean(0)
    squares = np.square(A).sum(0)
    for target, b, flat in zip(targets, B.T, constant(y), strict=True):
        if flat:
            continue
        slopes = np.divide(A.T @ b, squares, out=np.zeros_like(squares), where=squares > 0)
        near = np.abs(A * slopes - b[:, None]).max(0) <= 1e-9 * np.abs(b).max()
        for j in np.flatnonzero(near).tolist():
            found.append(
                f"column {names[j]!r} reproduces the target {target!r} exactly: if it was made from "
                "the target, leave it out with --drop"
            )
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

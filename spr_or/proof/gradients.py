"""Slopes of the loss, their conjugates and gradients, for many records without moved curvature.

What they are for stands in `bounds`: any nu in the domain of the conjugate gives a bound, so that only
what is computed from nu has to be enclosed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.proof.data import Data
from spr_or.proof.losses import conjugate, slope
from spr_or.proof.rounding import (
    SAFE,
    TINY,
    UNIT,
    Array,
    gamma,
    lengths,
    operations,
    product,
)
from spr_or.proof.tree import Record, settling

_AT_ONCE = 64  # records whose gradients are one matrix product

Mask = NDArray[np.bool_]


class Gradients:
    """What `bounds` needs of the records of one proof: see `__call__`."""

    def __init__(self, data: Data, records: list[Record], X_lengths: Array) -> None:
        self.data, self.records, self.X_lengths = data, records, X_lengths
        self.XT = np.ascontiguousarray(data.X.T)
        self.table = np.full((len(data.columns), data.k), -1)
        for i, own in enumerate(data.columns):
            self.table[i, : len(own)] = own
        everything = np.arange(len(data.columns))
        self.trunk, gone = _trunk(records)
        self.whole = _columns_of(data, everything)
        self.left = _columns_of(data, np.setdiff1d(everything, gone)) if len(gone) else self.whole
        # Of few records all at once: bounds above a leaf may be asked for.
        self.few = len(records) <= _AT_ONCE
        numbers = range(len(records)) if self.few else settling(records)
        plain = [number for number in numbers if records[number].d is None]
        early = [number for number in plain if number in self.trunk]
        later = [number for number in plain if number not in self.trunk]
        # Where each record is in the list whose gradients are formed together; the others go by themselves.
        self.lists = {
            number: (part, place) for part in (early, later) for place, number in enumerate(part)
        }
        self.ready: dict[int, tuple[float, Array]] = {}

    def __call__(self, number: int) -> tuple[float, Array, NDArray]:
        """-(1/n) sum l*(nu), rounded down; upper bounds of |X' nu / n|, (p, q); and the entities (p,) that
        own these columns: all but some that are fixed to zero there."""
        columns = self.whole if number in self.trunk else self.left
        if number not in self.ready:
            numbers, start = self.lists.get(number, ([number], 0))
            found = self._of(numbers[start : start + _AT_ONCE], columns)
            self.ready = self.ready | found if self.few else found
        return *self.ready.pop(number), columns.owner

    def _of(self, numbers: list[int], columns: _Columns) -> dict[int, tuple[float, Array]]:
        data = self.data
        rows, q = data.Y.shape
        predictions = self._predictions(numbers)
        slopes = np.empty((rows, len(numbers), q))
        for place in range(len(numbers)):
            slopes[:, place] = slope(data, predictions[:, place])
        at = columns.at
        g = _pull(columns.X, data.signed[at], data.n, slopes.reshape(rows, -1), self.X_lengths[at])
        g = g.reshape(len(at), len(numbers), q)
        return {
            number: (conjugate(data, slopes[:, place]), g[:, place])
            for place, number in enumerate(numbers)
        }

    def _predictions(self, numbers: list[int]) -> Array:
        """X W for the points of some records, (n, len(numbers), q)."""
        data = self.data
        q, p = data.Y.shape[1], data.X.shape[1]
        places, weights = [], []
        for number in numbers:
            record = self.records[number]
            at = self.table[record.entities]
            places.append(at[at >= 0])
            weights.append(record.W[at >= 0])
        columns = np.unique(np.concatenate(places))
        if 2 * len(columns) > p:
            columns, X = np.arange(p), data.X
        else:
            X = self.XT[columns].T
        row = np.zeros(p, dtype=np.int64)
        row[columns] = np.arange(len(columns))
        W = np.zeros((len(columns), len(numbers), q))
        for place, (at, w) in enumerate(zip(places, weights, strict=True)):
            W[row[at], place] = w
        return (X @ W.reshape(len(columns), len(numbers) * q)).reshape(len(X), len(numbers), q)


class _Columns(NamedTuple):
    """The columns of some entities: their places ``at`` (p,) in X, their samples X (n, p), ``owner`` (p,)."""

    at: NDArray
    X: Array
    owner: NDArray


def _columns_of(data: Data, entities: NDArray) -> _Columns:
    owned = [data.columns[i] for i in entities]
    at = np.concatenate(owned) if owned else np.zeros(0, dtype=np.int64)
    in_order = len(at) == data.X.shape[1] and bool((at == np.arange(len(at))).all())
    X = data.X if in_order else np.ascontiguousarray(data.X[:, at])
    return _Columns(at, X, np.repeat(entities, [len(own) for own in owned]))


def _trunk(records: list[Record]) -> tuple[set[int], NDArray]:
    """The records from the root down to where the tree divides or ends, and the entities that they fix to
    zero: no record outside the trunk needs their scores."""
    children: dict[int, list[int]] = {}
    for number, record in enumerate(records):
        children.setdefault(record.parent, []).append(number)
    trunk, gone = {0}, []
    number = 0
    while True:
        gone.append(records[number].zeros)
        below = children.get(number, [])
        if len(below) != 1:
            return trunk, np.unique(np.concatenate(gone))
        (number,) = below
        trunk.add(number)


def pull(data: Data, nu: Array, X_lengths: Array) -> Array:
    """Upper bounds of |X' nu| / n, (p, c), for slopes nu (rows, c); of the positive part of -X' nu / n for
    columns whose weights are not negative."""
    return _pull(data.X, data.signed, data.n, nu, X_lengths)


def _pull(X: Array, signed: Mask, n: int, nu: Array, X_lengths: Array) -> Array:
    """`pull` for some columns X (rows, p)."""
    error = gamma(operations(len(nu))) * X_lengths[:, None] * lengths(nu)
    g = product(X, nu)
    size = np.where(signed[:, None], np.maximum(-g, 0.0), np.abs(g))
    return (size + SAFE * error + TINY) / n * (1 + 4 * UNIT)

r"""Rounding errors that are proven: sums and products in float64 with a bound on their error.

The standard model (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., sections 2.2 and
3.1): with u = 2^-53, a sum of k products in any order, with or without fused operations, is off by at
most gamma_k times the sum of the absolute values of the products, gamma_k = k u / (1 - k u).  Radii are
themselves computed in float64; the factor `SAFE` makes up for that, and `TINY` for underflow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # of float64, or int64 where it numbers something

UNIT = 2.0**-53
SAFE = 1.001
TINY = 1e-290


def gamma(count: int) -> float:
    """gamma_k = k u / (1 - k u), rounded up; ``ValueError`` where k u is no longer small.

    >>> gamma(1) >= 2.0**-53
    True
    """
    if not count * UNIT < 1e-3:
        raise ValueError(f"{count} operations are too many to bound their rounding")
    return SAFE * count * UNIT


def chunk(count: int) -> int:
    """How many terms are added at a time: two short sums instead of a long one.

    >>> chunk(100), chunk(1_000_000)
    (100, 1000)
    """
    return max(1, min(count, 256), int(np.ceil(np.sqrt(count))))


def operations(count: int) -> int:
    """The k of gamma_k for a sum of ``count`` products that is formed by chunks."""
    size = chunk(count)
    return size + -(-count // size) + 2


def product(A: Array, B: Array) -> Array:
    """A' B for A (n, a) and B (n, b), summed by chunks of rows: off by gamma(operations(n)) |A|'|B|."""
    size = chunk(len(A))
    total = np.zeros((A.shape[1], B.shape[1]))
    for start in range(0, len(A), size):
        total += A[start : start + size].T @ B[start : start + size]
    return total


def total(terms: Array) -> tuple[float, float]:
    """The sum of all terms, and how far it can be off.

    >>> total(np.array([0.1, 0.2]))[0]
    0.30000000000000004
    """
    flat = np.asarray(terms, dtype=np.float64).ravel()
    size = chunk(len(flat))
    padded = np.zeros(size * -(-len(flat) // size))
    padded[: len(flat)] = flat
    table = padded.reshape(-1, size)
    absolute = float(np.abs(table).sum(axis=0).sum())
    return float(table.sum(axis=0).sum()), SAFE * gamma(operations(len(flat))) * absolute + TINY


def down(value: float, error: float) -> float:
    """value - error, rounded down.

    >>> down(1.0, 0.5) < 0.5
    True
    """
    return value - SAFE * error - 4 * UNIT * (abs(value) + abs(error)) - TINY


def lengths(A: Array) -> Array:
    """Upper bounds of the Euclidean lengths of the columns of A (n, a), (a,)."""
    largest = np.abs(A).max(axis=0, initial=0.0)
    unit = np.where(largest > 0, largest, 1.0)  # squares of small numbers would underflow
    return SAFE * unit * np.sqrt(np.square(A / unit).sum(axis=0)) * (largest > 0) + TINY


def positive_definite(A: Array, least: Array) -> bool:
    """Whether the symmetric float64 matrices A (..., P, P) are provably at least diag(least) (..., P).

    If Cholesky's method runs through in floating point, its factors are those of a matrix that differs from
    the one given by at most gamma_{P+1} / (1 - gamma_{P+1}) sqrt(a_jj a_kk) in each entry (Demmel; Higham,
    theorem 10.3), a perturbation of at most P times that on the diagonal.  So A is made smaller by twice
    this, which also covers the rounding of the subtraction, and has to pass.
    """
    count = A.shape[-1]
    if A.size == 0:
        return True
    if not (np.isfinite(A).all() and np.isfinite(least).all()):
        return False
    diagonal = np.diagonal(A, axis1=-2, axis2=-1)
    shift = 2 * (count + 1) * gamma(count + 2) * np.abs(diagonal) + (1 + 4 * UNIT) * least
    lowered = A.copy()
    places = np.arange(count)
    lowered[..., places, places] -= shift
    try:
        factor = np.linalg.cholesky(lowered)
    except np.linalg.LinAlgError:
        return False
    return bool(np.isfinite(factor).all())

r"""The check of a proof in rational arithmetic: every float is taken as the fraction it is.

No rounding anywhere: G = X'X/n, the tangent bound, the scores, and positive semidefiniteness by an
exact L D L' elimination.  Nothing is shared with the float64 check but the walk along the tree.  The
cost grows quickly with the number of columns, hence `LIMIT`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spr_or.problem import SparseTrainingProblem
from spr_or.solve.bnb.bounds import box_multipliers
from spr_or.solve.bnb.design import Design, design_of
from spr_or.solve.bnb.proof import Record, State

LIMIT = 40  # weights
Rational = NDArray[np.object_]


class ExactBounds:
    """Bounds of records, as `proof.Evaluator` wants them, in fractions.

    Raises ``ValueError`` for the logistic loss, whose values are irrational, and above `LIMIT`.
    """

    def __init__(self, problem: SparseTrainingProblem) -> None:
        if problem.loss != "squared":
            raise ValueError(f"the exact check takes the squared loss alone, got {problem.loss!r}")
        if problem.entities.n_parameters > LIMIT:
            raise ValueError(
                f"the exact check takes at most {LIMIT} weights, got "
                f"{problem.entities.n_parameters}: use the float64 check"
            )
        self.data = _data_of(problem, design_of(problem))

    def __call__(self, record: Record, state: State) -> tuple[Fraction, list[Fraction]] | None:
        """The bound and all scores; None where R is not positive semidefinite."""
        data = self.data
        W = data.zero.copy()
        W[record.entities.numpy()] = fractions_of(record.W)
        alive = [i for i, alive in enumerate(state.alive.tolist()) if alive]
        used = sorted({*alive, *record.entities.tolist()})
        D = [_diagonal([ridge] * data.k) for ridge in data.ridge]
        if record.d is not None:
            for row, i in enumerate(record.entities.tolist()):
                block = fractions_of(record.d[row])
                D[i] = block if block.ndim == 2 else _diagonal(list(block))
            if not semidefinite(data.quadratic(used, D)):
                return None
        real = [(i, j) for i in used for j in range(data.k) if data.real[i][j]]
        at = [i * data.k + j for i, j in real]
        Q, C = data.quadratic(used, D), data.C[at]
        w = W.reshape(-1, W.shape[2])[at]
        Qw = Q.dot(w)
        bound = data.c0 + (w * (Qw - 2 * C)).sum() - (2 * (Qw - C) * w).sum()
        scores = [-price for price in data.price]
        gradient = data.zero.copy()
        for (i, j), row in zip(real, 2 * (Qw - C), strict=True):
            gradient[i, j] = row
        for i in used:
            scores[i] += sum((_gain(u, D[i], data.M[i]) for u in -gradient[i].T), Fraction(0))
        for i in alive:
            bound -= scores[i] if bool(state.one[i]) else max(Fraction(0), scores[i])
        return bound, scores


class _Data(NamedTuple):
    """The problem in fractions; arrays of objects over padded columns (entity, column)."""

    G: Rational
    C: Rational
    c0: Fraction
    ridge: list[Fraction]
    price: list[Fraction]
    M: list[Fraction]
    real: list[list[bool]]
    k: int
    zero: Rational

    def quadratic(self, entities: list[int], D: list[Rational]) -> Rational:
        """R over the columns of some entities."""
        real = [(i, j) for i in entities for j in range(self.k) if self.real[i][j]]
        at = [i * self.k + j for i, j in real]
        R = self.G[np.ix_(at, at)].copy()
        for row, (i, j) in enumerate(real):
            R[row, row] += self.ridge[i]
            for column, (other, m) in enumerate(real):
                if other == i:
                    R[row, column] -= D[i][j, m]
        return R


def _data_of(problem: SparseTrainingProblem, design: Design) -> _Data:
    block = fractions_of(design.block())
    Y = fractions_of(design.Y)
    n, lam, alpha = design.n, Fraction(problem.lam), Fraction(problem.alpha)
    u = [Fraction(x) for x in problem.u.tolist()]
    N, k, q = design.shape
    return _Data(
        block.T.dot(block) / n, block.T.dot(Y) / n, (Y * Y).sum() / Fraction(n),
        [lam * alpha * x for x in u], [lam * (1 - alpha) * x for x in u],
        [Fraction(x) for x in design.M.tolist()], design.real.tolist(), k,
        fractions_of(np.zeros((N, k, q))),
    )  # fmt: skip


def fractions_of(values: Tensor | NDArray) -> Rational:
    """An array of `Fraction`, exactly the floats given."""
    array = np.asarray(values, dtype=np.float64)
    return np.array([Fraction(x) for x in array.ravel().tolist()], dtype=object).reshape(
        array.shape
    )


def _diagonal(values: list[Fraction]) -> Rational:
    D = fractions_of(np.zeros((len(values), len(values))))
    D[np.diag_indices(len(values))] = values
    return D


def _gain(u: Rational, D: Rational, M: Fraction) -> Fraction:
    """At least the maximum of u'x - x'Dx over |x_j| <= M; the maximum itself for a diagonal D.

    For a block, u' (D + eta)^{-1} u / 4 + M^2 sum eta is one for every eta >= 0 (see `bounds`).
    """
    k = len(u)
    if not any(D[j, m] for j in range(k) for m in range(j)):
        return sum((_phi(u[j], D[j, j], M) for j in range(k)), Fraction(0))
    floats = torch.tensor(u.astype(float)), torch.tensor(D.astype(float)), torch.tensor(float(M))
    eta = fractions_of(box_multipliers(*floats))
    x = _solve(D + _diagonal(list(eta)), u)
    return u.dot(x) / 4 + M * M * eta.sum()


def _solve(A: Rational, b: Rational) -> Rational:
    """A^{-1} b for a positive definite matrix of fractions."""
    A, b = A.copy(), b.copy()
    for j in range(len(b)):
        column = A[j + 1 :, j] / A[j, j]
        A[j + 1 :, j:] -= np.multiply.outer(column, A[j, j:])
        b[j + 1 :] -= column * b[j]
    for j in reversed(range(len(b))):
        b[j] = (b[j] - A[j, j + 1 :].dot(b[j + 1 :])) / A[j, j]
    return b


def _phi(g: Fraction, d: Fraction, M: Fraction) -> Fraction:
    """sup over |w| <= M of g w - d w^2."""
    if abs(g) <= 2 * d * M and d > 0:
        return g * g / (4 * d)
    return M * abs(g) - d * M * M


def semidefinite(R: Rational) -> bool:
    """Whether a symmetric matrix of fractions is positive semidefinite, by symmetric elimination.

    >>> semidefinite(fractions_of(np.ones((2, 2)))), semidefinite(fractions_of(-np.ones((1, 1))))
    (True, False)
    """
    R = R.copy()
    for j in range(R.shape[0]):
        if R[j, j] < 0 or (R[j, j] == 0 and any(R[j, j + 1 :])):
            return False
        if R[j, j] > 0:
            column = R[j + 1 :, j] / R[j, j]
            R[j + 1 :, j + 1 :] -= np.multiply.outer(column, R[j, j + 1 :])
    return True

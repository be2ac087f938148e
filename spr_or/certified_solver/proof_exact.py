r"""The check of a proof in rational arithmetic: every float is taken as the fraction it is.

No rounding anywhere: G = X'X/n, the tangent bound, the scores, and positive semidefiniteness of R by an
exact L D L' elimination.  Shared with the float64 check are the walk along the tree, the proof that D is
positive, and the multipliers of the box, of which any will do.  The cost grows quickly with the number of
columns, hence `LIMIT`.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spr_or.certified_solver.bounds import box_multipliers
from spr_or.certified_solver.design import Design, design_of
from spr_or.certified_solver.proof_tree import INDEFINITE, Record, State
from spr_or.formulations.problem import SparseTrainingProblem

LIMIT = 40  # weights
Rational = NDArray[np.object_]


class ExactBounds:
    """Bounds of records, as `proof_tree.Evaluator` wants them, in fractions.

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

    def __call__(self, record: Record, state: State) -> tuple[Fraction, list[Fraction]] | str:
        """The bound and all scores, or why there are none."""
        data = self.data
        W = data.zero.copy()
        W[record.entities.numpy()] = fractions_of(record.W)
        alive = [i for i, alive in enumerate(state.alive.tolist()) if alive]
        used = sorted({*alive, *record.entities.tolist()})
        blocks = self.blocks(record, used)
        R = data.quadratic(used, blocks)
        if record.d is not None and not exactly_semidefinite(R):
            return INDEFINITE
        real = [(i, j) for i in used for j in range(data.k) if data.real[i][j]]
        at = [i * data.k + j for i, j in real]
        C, w = data.C[at], W.reshape(-1, W.shape[2])[at]
        Rw = R.dot(w)
        bound = data.c0 + (w * (Rw - 2 * C)).sum() - (2 * (Rw - C) * w).sum()
        gradient = data.zero.copy()
        for (i, j), row in zip(real, 2 * (Rw - C), strict=True):
            gradient[i, j] = row
        scores = [Fraction(0)] * len(data.price)
        for block in blocks:
            gains = self.gains(block, gradient, state)
            bound -= max(gains.values())
            for i in block.members:
                if bool(state.alive[i]) and not bool(state.one[i]):
                    with_it = max(gain for support, gain in gains.items() if i in support)
                    without = max(gain for support, gain in gains.items() if i not in support)
                    scores[i] = with_it - without
        return bound, scores

    def blocks(self, record: Record, used: list[int]) -> list[_Block]:
        """The curvature in the perspective: a block a cluster of entities, or an entity."""
        data, k = self.data, self.data.k
        if record.d is None:
            return [_Block((i,), _diagonal([data.ridge[i]] * k)) for i in used]
        named = record.entities.tolist()
        clusters = [[i] for i in named] if record.clusters is None else record.clusters.tolist()
        blocks = []
        for members, d in zip(clusters, record.d, strict=True):
            D = fractions_of(d) if d.dim() == 2 else _diagonal(list(fractions_of(d)))
            slots = [slot for slot, i in enumerate(members) if i in named]
            at = [slot * k + j for slot in slots for j in range(k)]
            blocks.append(_Block(tuple(members[slot] for slot in slots), D[np.ix_(at, at)]))
        return blocks

    def gains(self, block: _Block, gradient: Rational, state: State) -> dict[_Support, Fraction]:
        """What each support that a block is allowed gains, its price paid."""
        data, k = self.data, self.data.k
        alive = [i for i in block.members if bool(state.alive[i])]
        gains = {}
        for bits in itertools.product((False, True), repeat=len(alive)):
            support = tuple(i for i, used in zip(alive, bits, strict=True) if used)
            if any(bool(state.one[i]) and i not in support for i in alive):
                continue
            at = [block.members.index(i) * k + j for i in support for j in range(k)]
            D = block.D[np.ix_(at, at)]
            u = -gradient[list(support)].reshape(len(at), gradient.shape[2])
            M = [data.M[i] for i in support for _ in range(k)]
            gain = sum((_gain(column, D, M) for column in u.T), Fraction(0))
            gains[support] = gain - sum((data.price[i] for i in support), Fraction(0))
        return gains


_Support = tuple[int, ...]


class _Block(NamedTuple):
    """Curvature D (s k, s k) that s entities share."""

    members: tuple[int, ...]
    D: Rational


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

    def quadratic(self, entities: list[int], blocks: list[_Block]) -> Rational:
        """R over the columns of some entities."""
        real = [(i, j) for i in entities for j in range(self.k) if self.real[i][j]]
        at = [i * self.k + j for i, j in real]
        R = self.G[np.ix_(at, at)].copy()
        row = {pair: number for number, pair in enumerate(real)}
        for (i, _), number in row.items():
            R[number, number] += self.ridge[i]
        for members, D in blocks:
            columns = [(i, j) for i in members for j in range(self.k)]
            at = [number for number, pair in enumerate(columns) if pair in row]
            rows = [row[columns[number]] for number in at]
            R[np.ix_(rows, rows)] -= D[np.ix_(at, at)]
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


def _gain(u: Rational, D: Rational, M: list[Fraction]) -> Fraction:
    """At least the maximum of u'x - x'Dx over |x_j| <= M_j; the maximum itself for a diagonal D.

    For a block, u' (D + eta)^{-1} u / 4 + sum M^2 eta is one for every eta >= 0 (see `bounds`).
    """
    k = len(u)
    if not any(D[j, m] for j in range(k) for m in range(j)):
        return sum((_phi(u[j], D[j, j], M[j]) for j in range(k)), Fraction(0))
    eta = fractions_of(box_multipliers(_floats(u), _floats(D), _floats(np.array(M))))
    x = _solve(D + _diagonal(list(eta)), u)
    return u.dot(x) / 4 + sum((m * m * e for m, e in zip(M, eta, strict=True)), Fraction(0))


def _floats(values: Rational) -> Tensor:
    return torch.from_numpy(values.astype(np.float64))


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


def exactly_semidefinite(R: Rational) -> bool:
    """Whether a symmetric matrix of fractions is positive semidefinite, by symmetric elimination.

    >>> ones = fractions_of(np.ones((2, 2)))
    >>> exactly_semidefinite(ones), exactly_semidefinite(-ones)
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

r"""The bound that one record proves, in rational arithmetic: every float is taken as the fraction it is.

The formulas are those of `bounds`, with nothing to enclose: X'X/n, the tangent, the scores, and positive
semidefiniteness by symmetric elimination.  Of the multipliers of the box any will do.  The cost grows
quickly with the number of weights, hence `LIMIT`.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.data import Data
from spr_or.proof.tree import Record, State

LIMIT = 40  # weights
Rational = NDArray[np.object_]


class ExactBounds:
    """Bounds and scores of the records of one proof, in fractions; for problems that `refuse` lets pass."""

    def __init__(self, data: Data, problem: SparseTrainingProblem, records: list[Record]) -> None:
        self.data, self.records = data, records
        block = np.concatenate([data.X[:, own] for own in data.columns], axis=1)
        X, Y = fractions_of(block), fractions_of(data.Y)
        n = Fraction(data.n)
        self.G, self.C, self.c0 = X.T.dot(X) / n, X.T.dot(Y) / n, (Y * Y).sum() / n
        lam, alpha = Fraction(problem.lam), Fraction(problem.alpha)
        u = [Fraction(x) for x in problem.u.tolist()]
        self.ridge = [lam * alpha * x for x in u]
        self.price = [lam * (1 - alpha) * x for x in u]
        self.M = [Fraction(x) for x in data.M.tolist()]
        stops = np.cumsum([len(own) for own in data.columns])
        self.at = [
            np.arange(stop - len(own), stop) for own, stop in zip(data.columns, stops, strict=True)
        ]

    def __call__(self, number: int, state: State) -> tuple[Fraction, list[Fraction]] | str:
        """The bound of a record and all scores, or why there are none."""
        try:
            return self.evaluate(self.records[number], state)
        except (ValueError, OverflowError, np.linalg.LinAlgError) as error:
            return f"its bound cannot be computed: {error}"

    def evaluate(self, record: Record, state: State) -> tuple[Fraction, list[Fraction]] | str:
        """As `__call__`, for a record whose numbers may be anything."""
        alive = np.flatnonzero(state.alive).tolist()
        used = sorted({*alive, *record.entities.tolist()})
        at = np.concatenate([self.at[i] for i in used]) if used else np.arange(0)
        W = fractions_of(np.zeros((len(self.G), self.C.shape[1])))
        for i, weights in zip(record.entities.tolist(), record.W, strict=True):
            W[self.at[i]] = fractions_of(weights[: len(self.at[i])])
        blocks = self.blocks(record, used)
        H = self.G.copy()
        for i in used:
            H[self.at[i], self.at[i]] += self.ridge[i]
        for block in blocks:
            H[np.ix_(block.at, block.at)] -= block.D
        H = H[np.ix_(at, at)]
        if not semidefinite(H):
            return "the loss without the curvature it moves is not convex"
        Hw = H.dot(W[at])
        bound = self.c0 - (W[at] * Hw).sum()
        g = fractions_of(np.zeros(W.shape))
        g[at] = 2 * (Hw - self.C[at])
        scores = [Fraction(0)] * len(self.price)
        for block in blocks:
            gains = self.gains(block, g, state)
            bound -= max(gains.values())
            for i in block.members:
                if bool(state.alive[i]) and not bool(state.one[i]):
                    with_it = max(gain for support, gain in gains.items() if i in support)
                    without = max(gain for support, gain in gains.items() if i not in support)
                    scores[i] = with_it - without
        return bound, scores

    def blocks(self, record: Record, used: list[int]) -> list[_Block]:
        """The curvature in the perspective: a block for each cluster, or for each entity."""
        if record.d is None:
            return [
                _Block((i,), self.at[i], _diagonal([self.ridge[i]] * len(self.at[i]))) for i in used
            ]
        k = self.data.k
        named = record.entities.tolist()
        clusters = [[i] for i in named] if record.clusters is None else record.clusters.tolist()
        blocks = []
        for members, d in zip(clusters, record.d, strict=True):
            D = fractions_of(d) if d.ndim == 2 else _diagonal(list(fractions_of(d)))
            slots = [slot for slot, i in enumerate(members) if i in named]
            rows = [s * k + j for s in slots for j in range(len(self.at[members[s]]))]
            own = tuple(members[s] for s in slots)
            at = np.concatenate([self.at[i] for i in own]) if own else np.arange(0)
            blocks.append(_Block(own, at, D[np.ix_(rows, rows)]))
        return blocks

    def gains(self, block: _Block, g: Rational, state: State) -> dict[tuple[int, ...], Fraction]:
        """What each support that a block is allowed gains, its price paid."""
        alive = [i for i in block.members if bool(state.alive[i])]
        gains = {}
        for bits in itertools.product((False, True), repeat=len(alive)):
            support = tuple(i for i, used in zip(alive, bits, strict=True) if used)
            if any(bool(state.one[i]) and i not in support for i in alive):
                continue
            columns = np.array([j for i in support for j in self.at[i]], dtype=np.int64)
            rows = np.flatnonzero(np.isin(block.at, columns))
            at = block.at[rows]  # in the order of the block
            owner = {int(j): i for i in support for j in self.at[i]}
            M = [self.M[owner[int(j)]] for j in at]
            D = block.D[np.ix_(rows, rows)]
            gain = sum((_gain(column, D, M) for column in (-g[at]).T), Fraction(0))
            gains[support] = gain - sum((self.price[i] for i in support), Fraction(0))
        return gains


class _Block(NamedTuple):
    """Curvature D that the entities ``members`` share, over the columns ``at`` in entity order."""

    members: tuple[int, ...]
    at: NDArray[np.int64]
    D: Rational


def refuse(problem: SparseTrainingProblem) -> None:
    """Raise ``ValueError`` for problems that are not checked in fractions."""
    if problem.loss != "squared":
        raise ValueError(f"the exact check takes only the squared loss, got {problem.loss!r}")
    if not problem.plain:
        raise ValueError(
            "the exact check takes no rules for supports, signs, weights of samples or free columns: use the "
            "float64 check"
        )
    if problem.entities.n_parameters > LIMIT:
        raise ValueError(
            f"the exact check takes at most {LIMIT} weights, got "
            f"{problem.entities.n_parameters}: use the float64 check"
        )


def fractions_of(values: NDArray) -> Rational:
    """An array of `Fraction`, exactly the floats given."""
    array = np.asarray(values, dtype=np.float64)
    return np.array([Fraction(x) for x in array.ravel().tolist()], dtype=object).reshape(
        array.shape
    )


def semidefinite(R: Rational) -> bool:
    """Whether a symmetric matrix of fractions is positive semidefinite, by symmetric elimination.

    >>> semidefinite(fractions_of(np.ones((2, 2)))), semidefinite(fractions_of(-np.ones((1, 1))))
    (True, False)
    """
    if not (R == R.T).all():
        return False
    R = R.copy()
    for j in range(R.shape[0]):
        if R[j, j] < 0 or (R[j, j] == 0 and any(R[j, j + 1 :])):
            return False
        if R[j, j] > 0:
            column = R[j + 1 :, j] / R[j, j]
            R[j + 1 :, j + 1 :] -= np.multiply.outer(column, R[j, j + 1 :])
    return True


def _diagonal(values: list[Fraction]) -> Rational:
    D = fractions_of(np.zeros((len(values), len(values))))
    D[np.diag_indices(len(values))] = values
    return D


def _gain(u: Rational, D: Rational, M: list[Fraction]) -> Fraction:
    """At least the maximum of u'x - x'Dx over |x_j| <= M_j; the maximum itself for a diagonal D."""
    k = len(u)
    if not any(D[j, m] for j in range(k) for m in range(j)):
        return sum((_phi(u[j], D[j, j], M[j]) for j in range(k)), Fraction(0))
    A = D + _diagonal(_multipliers(u, D, M))
    if not semidefinite(A):
        raise ValueError("a block of moved curvature is not positive")
    x = _solve(A, u)
    return u.dot(x) / 4 + sum(
        (m * m * A[j, j] - m * m * D[j, j] for j, m in enumerate(M)), Fraction(0)
    )


def _multipliers(u: Rational, D: Rational, M: list[Fraction]) -> list[Fraction]:
    """Some eta >= 0 for the box, near the best: coordinate ascent in floats where x leaves the box."""
    U, A, limit = (np.array(x, dtype=np.float64) for x in (u, D, M))
    x = 0.5 * np.linalg.solve(A, U)
    if (np.abs(x) <= limit).all():
        return [Fraction(0)] * len(u)
    x = np.clip(x, -limit, limit)
    for _ in range(100):
        for j in range(len(x)):
            rest = A[j] @ x - A[j, j] * x[j]
            x[j] = np.clip((U[j] / 2 - rest) / A[j, j], -limit[j], limit[j])
    push = [
        (a / (2 * b) if abs(b) >= m and b else 0.0)
        for a, b, m in zip(U - 2 * A @ x, x, limit, strict=True)
    ]
    return [Fraction(max(0.0, float(p))) for p in push]


def _solve(A: Rational, b: Rational) -> Rational:
    """A^{-1} b for a positive definite matrix of fractions."""
    A, b = A.copy(), b.copy()
    for j in range(len(b)):
        if A[j, j] == 0:
            raise ValueError("a block of moved curvature is singular")
        column = A[j + 1 :, j] / A[j, j]
        A[j + 1 :, j:] -= np.multiply.outer(column, A[j, j:])
        b[j + 1 :] -= column * b[j]
    for j in reversed(range(len(b))):
        b[j] = (b[j] - A[j, j + 1 :].dot(b[j + 1 :])) / A[j, j]
    return b


def _phi(g: Fraction, d: Fraction, M: Fraction) -> Fraction:
    """sup over |w| <= M of g w - d w^2, for d >= 0."""
    if d < 0:
        raise ValueError("a moved curvature is negative")
    if abs(g) <= 2 * d * M and d > 0:
        return g * g / (4 * d)
    return M * abs(g) - d * M * M

r"""A path over lambda: from where the empty support is optimal downwards, each solution the next start.

The empty support is optimal as soon as one dual point proves it.  With g = X' l'(0) / n, the slope of
the loss at zero weights, the relaxation has its minimum at zero when

.. math::  \lambda \ge \lambda_{\max} = \max_i \frac{\lVert g_i\rVert}{2 u_i\sqrt{\alpha(1-\alpha)}},

whatever M is (`spr_or.formulations.least_price` with M = infinity); and since no loss is negative,
also when lambda (1 - alpha) min_i u_i >= loss(0), for then a single entity costs more than all
there is to gain.  `zero_from` is the smaller of the two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.derived_m import AutomaticBound
from spr_or.certified_solver.design import design_of, theta_of
from spr_or.certified_solver.incumbents import in_box
from spr_or.certified_solver.support_newton import minimise
from spr_or.formulations.least_price import least_price
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import ProofCertificate

_NO_BOUND = 1e6
_RIDGE = 1e-4
# The last lambda of a path as a share of the first.
SMALLEST = 0.01


class PathPoint(NamedTuple):
    """One lambda of a path; ``bound`` proves its M (None: M was given, or stored earlier)."""

    lam: float
    certificate: ProofCertificate
    bound: AutomaticBound | None
    stored: bool


Solve = Callable[
    [SparseTrainingProblem, Tensor | None], tuple[ProofCertificate, AutomaticBound | None]
]


def zero_from(problem: SparseTrainingProblem) -> float:
    """lambda from which on zero weights are optimal, for every M; ``problem.lam`` is not used.

    Raises ``ValueError`` for alpha = 1, where no entity has a price and no lambda does it.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=1, alpha=0.5, M=4)
    >>> round(zero_from(p), 6)
    2.0
    """
    alpha, u = problem.alpha, problem.u
    if alpha == 1:
        raise ValueError("with alpha = 1 no group has a price, and no lambda empties the model")
    zero = without_entities(problem)
    nothing = float(problem.loss_value(zero)) / ((1 - alpha) * float(u.min()))
    if alpha == 0:
        return nothing
    slope = LOSSES[problem.loss].gradient(problem.predict(zero), problem.y) / problem.n
    if problem.sample_weight is not None:
        slope = slope * problem.sample_weight.unsqueeze(1)
    pull = problem.X.mT @ slope
    if problem.nonnegative is not None:
        pull = torch.where(problem.nonnegative.unsqueeze(1), pull.clamp(max=0), pull)
    rows = problem.entities.rows(pull.flatten())
    return min(nothing, float((least_price(rows, alpha, math.inf) / u).max()))


def without_entities(problem: SparseTrainingProblem) -> Tensor:
    """The best weights (P,) that use no entity: zero, but for free columns, whose bound is not used."""
    zero = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    if not len(problem.entities.free):
        return zero
    design = design_of(dataclasses.replace(problem, M_free=_NO_BOUND, rules=None))
    free = ~design.penalised
    small = design.restrict(free.nonzero().flatten())
    best = minimise(small, torch.ones((1, len(small.entities)), dtype=torch.bool))
    if not bool(best.found):
        return theta_of(problem, design, in_box(design, free).W)
    return theta_of(problem, small, best.W[0])


def without_price(problem: SparseTrainingProblem) -> SparseTrainingProblem:
    """The problem of the best entities of a limited number: no price, and a small ridge, alpha = 1.

    The ridge is 1e-4 of the smallest mean square of a column that is penalised (an eighth of that for the
    logistic loss), so that it moves weights by about a hundredth of a percent where columns are
    independent.
    """
    squares = problem.X.square().mean(0)
    columns = torch.tensor([j // problem.n_outputs for g in problem.entities.groups for j in g])
    found = squares[columns]
    least = float(found[found > 0].min()) if bool((found > 0).any()) else 1.0
    size = _RIDGE * least * (LOSSES[problem.loss].curvature or 2.0) / 2
    return dataclasses.replace(problem, lam=size / float(problem.u.max()), alpha=1.0)


def grid(largest: float, count: int) -> list[float]:
    """``count`` values from ``largest`` down to a hundredth of it, evenly on a log scale.

    >>> [round(x, 6) for x in grid(2.0, 3)]
    [2.0, 0.2, 0.02]
    """
    if count < 2:
        raise ValueError(f"a path has at least 2 values of lambda, got {count}")
    return [largest * SMALLEST ** (i / (count - 1)) for i in range(count)]


def follow(
    problem: SparseTrainingProblem,
    lams: Iterable[float],
    solve: Solve,
    stored: Callable[[float], ProofCertificate | None] = lambda lam: None,
) -> Iterator[PathPoint]:
    """Solve for each lambda, starting from the solution before it; stop after an interrupted one.

    ``stored(lam)`` may answer from an earlier run.
    """
    start: Tensor | None = None
    for lam in lams:
        before = stored(lam)
        if before is not None:
            point = PathPoint(lam, before, None, True)
        else:
            point = PathPoint(lam, *solve(dataclasses.replace(problem, lam=lam), start), False)
        yield point
        if point.certificate.status == "interrupted":
            return
        start = point.certificate.weights

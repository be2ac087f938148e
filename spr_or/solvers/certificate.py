"""From a solver's answer to a `Certificate`: made feasible, and evaluated again outside the solver."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.formulations import bigm, perspective
from spr_or.formulations.certificate import Certificate
from spr_or.formulations.problem import SparseTrainingProblem

# A gap below this is what feasibility tolerances of 1e-9 to 1e-6 leave, for any size of the objective.
_ABSOLUTE_GAP = 5e-7
# |w_j| within this relative distance of M_i counts as touching the bound.
_M_TOUCH = 1e-6


class Solved(NamedTuple):
    """Which problem was solved, and by which solver: the first fields of a `Certificate`."""

    formulation: str
    integrality: str
    solver: str
    version: str


def certify(
    problem: SparseTrainingProblem,
    solved: Solved,
    *,
    status: str,
    bound: float,
    seconds: float,
    weights: Tensor | None,
    indicators: Tensor | None,
    tolerance: float = 1e-5,
) -> Certificate:
    """Make a solver's answer feasible, evaluate it, and judge it.

    An integer answer is snapped first: y to the nearest of 0 and 1, w to 0 where y = 0, then w into
    the box |w| <= M; a relaxed one has y raised to ||w||_inf / M where the solver's tolerance left
    it below.  What the solver gained from its tolerances is lost in this, so a certificate that
    claims "optimal" with a gap above ``tolerance`` is marked "inexact".  ``weights`` None: no
    solution was found (objective inf, weights and indicators nan).
    """
    count = len(problem.entities)
    if weights is None or indicators is None:
        nothing = torch.full((problem.entities.n_parameters,), torch.nan, dtype=torch.float64)
        return Certificate(
            *solved, status, float("inf"), bound, seconds,
            nothing, nothing.new_full((count,), torch.nan), torch.zeros(count, dtype=torch.bool),
        )  # fmt: skip
    theta, y = feasible(problem, weights, indicators, integer=solved.integrality == "integer")
    rows = problem.entities.rows(theta)
    if solved.integrality == "relaxed" and solved.formulation in ("perspective", "projected"):
        penalty = perspective.penalty(rows, y, problem.alpha)
    else:
        penalty = bigm.penalty(rows, y, problem.alpha)
    with torch.no_grad():
        objective = float(problem.objective(theta, penalty))
    m_active = (rows.abs().amax(-1) >= problem.M * (1 - _M_TOUCH)) & (y > 0)
    made = Certificate(
        *solved, status, objective, float(bound), seconds, theta, y, m_active,
    )  # fmt: skip
    allowed = tolerance * abs(objective) + _ABSOLUTE_GAP
    if status == "optimal" and not objective - bound <= allowed:
        return Certificate(**{**made.__dict__, "status": "inexact"})
    return made


def feasible(
    problem: SparseTrainingProblem, weights: Tensor, indicators: Tensor, *, integer: bool
) -> tuple[Tensor, Tensor]:
    """The nearest point that satisfies the constraints exactly; see `certify`."""
    entities = problem.entities
    y = indicators.detach().to(torch.float64).clamp(0, 1)
    theta = weights.detach().to(torch.float64)
    bound = problem.M.unsqueeze(-1)
    if problem.nonnegative is not None:
        signed = problem.nonnegative.repeat_interleave(problem.n_outputs)
        theta = torch.where(signed, theta.clamp(min=0), theta)
    rows = torch.maximum(torch.minimum(entities.rows(theta), bound), -bound)
    if integer:
        y = y.round()
        if problem.rules is not None and not bool(problem.rules.allow(y.bool())):
            raise ValueError(f"{problem.name!r}: a solution breaks the rules for its support")
        rows = rows * y.unsqueeze(-1)
    else:
        y = torch.maximum(y, rows.abs().amax(-1) / problem.M)
    free = theta[entities.free].clamp(-problem.M_free, problem.M_free)
    return entities.flat(rows, free), y

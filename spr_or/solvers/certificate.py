"""What every way of solving returns: a solution, its value and a bound, re-evaluated outside the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.formulations import bigm, perspective
from spr_or.formulations.problem import SparseTrainingProblem

# A gap below this is what feasibility tolerances of 1e-9 to 1e-6 leave, however small the objective.
_ABSOLUTE_GAP = 5e-7
# |w_j| within this relative distance of M_i counts as touching the bound.
_M_TOUCH = 1e-6


@dataclass(frozen=True, eq=False)
class Certificate:
    """A solution and how far it can be from optimal.

    Attributes
    ----------
    formulation : "bigm" | "perspective" | "projected" | "enumeration"
    integrality : "relaxed" | "integer"
    solver, version : what computed it
    status : "optimal" (gap within the asked tolerance), "time_limit", "interrupted", "infeasible",
        or "inexact" (the solver said optimal, the re-evaluated gap says otherwise)
    objective : re-evaluated in float64 from ``weights`` and ``indicators``; inf without a solution
    bound : dual bound, -inf where none was proven
    seconds : wall-clock time, model building included
    weights : (P,) float64, within |w| <= M y; indicators : (N,) float64
    m_active : (N,) bool, entities whose weights touch M_i y_i = M_i: the M may cut off better
        solutions of the problem without bounds
    """

    formulation: str
    integrality: str
    solver: str
    version: str
    status: str
    objective: float
    bound: float
    seconds: float
    weights: Tensor
    indicators: Tensor
    m_active: Tensor

    @property
    def gap(self) -> float:
        """(objective - bound) / max(1e-10, |objective|), at least 0; inf without solution or bound."""
        if not (abs(self.objective) < float("inf") and abs(self.bound) < float("inf")):
            return float("inf")
        return max(0.0, self.objective - self.bound) / max(1e-10, abs(self.objective))


class Solved(NamedTuple):
    """Which problem was solved by what; the first fields of a `Certificate`."""

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
    rows = torch.maximum(torch.minimum(entities.rows(theta), bound), -bound)
    if integer:
        y = y.round()
        rows = rows * y.unsqueeze(-1)
    else:
        y = torch.maximum(y, rows.abs().amax(-1) / problem.M)
    free = theta[entities.free].clamp(-problem.M_free, problem.M_free)
    return entities.flat(rows, free), y

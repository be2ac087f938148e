"""What every way of solving returns: a solution, its value and a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


def relative_gap(objective: float, bound: float) -> float:
    """(objective - bound) / |objective|, at least 0; inf where either is not finite.

    There is no absolute term: the gap does not depend on the units of the target.

    >>> relative_gap(2e-12, 1e-12), relative_gap(0.0, 0.0), relative_gap(1.0, float("nan"))
    (0.5, 0.0, inf)
    """
    if not (abs(objective) < math.inf and abs(bound) < math.inf):
        return math.inf
    if objective <= bound:
        return 0.0
    return (objective - bound) / abs(objective) if objective else math.inf


@dataclass(frozen=True, eq=False, repr=False)
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
        """`relative_gap` of objective and bound."""
        return relative_gap(self.objective, self.bound)

    def __repr__(self) -> str:
        """One line: the tensors, and what subclasses add, would fill the screen."""
        kept = int((self.indicators > 0).sum())
        return (
            f"<{type(self).__name__} by {self.solver}: {self.formulation} {self.integrality}, "
            f"{self.status}, objective {self.objective:.6g}, bound {self.bound:.6g}, "
            f"gap {100 * self.gap:.3g} %, {kept} of {len(self.indicators)} entities kept>"
        )

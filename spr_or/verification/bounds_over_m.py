"""How the bounds move with M: the big-M relaxation collapses as M grows, the perspective does not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from spr_or.formulations.problem import SparseTrainingProblem

FACTORS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class SweepPoint:
    """The bounds of one instance with its M multiplied by ``factor``."""

    name: str
    factor: float
    M: float
    bigm: float
    perspective: float
    mip: float
    mip_bound: float
    m_active: int


def bounds_at(
    problem: SparseTrainingProblem, factor: float, time_limit: float
) -> SweepPoint | None:
    """Relaxations and MIP optimum of a linear problem at ``factor`` times its M.

    ``M`` in the result is the largest of the entities' bounds, ``m_active`` counts the entities that
    touch theirs at the optimum.  None where Ctrl-C stopped one of the solvers: there is no point without
    all three.
    """
    from spr_or.solvers import conic, outer_approximation

    scaled = dataclasses.replace(problem, M=problem.M * factor)
    bigm, perspective = (
        conic.solve(scaled, formulation=formulation, time_limit=time_limit)
        for formulation in ("bigm", "perspective")
    )
    mip = outer_approximation.solve(scaled, relaxed=False, time_limit=time_limit)
    if "interrupted" in (bigm.status, perspective.status, mip.status):
        return None
    return SweepPoint(
        problem.name,
        factor,
        float(scaled.M.max()),
        bigm.objective,
        perspective.objective,
        mip.objective,
        mip.bound,
        int(mip.m_active.sum()),
    )

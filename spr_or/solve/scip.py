"""SCIP through Pyomo: the big-M and the perspective model to global optimality, networks included.

SCIP is a branch and bound for mixed-integer nonlinear programs: cones, exponentials, and the
bilinear products of a network whose layers are all free.  Its dual bound holds to its feasibility
tolerance (here 1e-9), not to the last bit.  SCIP would strengthen a big-M model by perspective cuts of its
own; that is switched off, so that a formulation is measured as it stands.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from spr_or import bigm, perspective
from spr_or.problem import SparseTrainingProblem
from spr_or.solve.certificate import Certificate, certify

FORMULATIONS = {"bigm": bigm.build, "perspective": perspective.build}

_HEURISTICS = [
    "adaptivediving",
    "alns",
    "conflictdiving",
    "crossover",
    "distributiondiving",
    "feaspump",
    "fracdiving",
    "guideddiving",
    "intshifting",
    "linesearchdiving",
    "mpec",
    "nlpdiving",
    "objpscostdiving",
    "pscostdiving",
    "randrounding",
    "rins",
    "rootsoldiving",
    "rounding",
    "shifting",
    "undercover",
    "veclendiving",
    "zirounding",
]
_OPTIONS = {
    "nlhdlr/perspective/enabled": False,
    "numerics/feastol": 1e-9,
    "numerics/dualfeastol": 1e-9,
    # These trees are small: a few rounds of cuts, one heuristic (the NLP on a relaxation's binaries)
    # and no others take a third of the time of the defaults.
    "separating/maxroundsroot": 5,
    "separating/maxrounds": 1,
    **{f"heuristics/{name}/freq": -1 for name in _HEURISTICS},
}


def solve(
    problem: SparseTrainingProblem,
    formulation: str = "bigm",
    relaxed: bool = False,
    time_limit: float | None = None,
    gap: float = 1e-7,
    fixed: Tensor | None = None,
    solver: str = "scip_direct",
) -> Certificate:
    """Solve a formulation, or its relaxation in y, to the relative ``gap``.

    Parameters
    ----------
    formulation : "bigm" or "perspective"
    relaxed : whether y ranges over [0, 1]; a network's ReLUs stay exact
    time_limit : seconds, None for none; reached, the certificate says "time_limit" and has the gap
    fixed : 0/1 tensor (N,) that fixes the indicators, or None
    solver : any name of a Pyomo solver that takes these models; only SCIP is installed with SPR-OR,
        and only it gets the settings of this file

    Raises ``ValueError`` for an unknown formulation or solver, and for a bad ``fixed``.

    >>> X, y = [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.1]
    >>> p = SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> c = solve(p)
    >>> c.status, c.indicators.tolist(), round(c.objective, 4)
    ('optimal', [1.0, 0.0], 0.1005)
    """
    from pyomo.contrib.solver.common.factory import SolverFactory

    began = time.perf_counter()
    if formulation not in FORMULATIONS:
        known = ", ".join(FORMULATIONS)
        raise ValueError(f"formulation must be one of {known}, got {formulation!r}")
    model = FORMULATIONS[formulation](problem, relaxed)
    _fix(model, fixed)
    optimizer = SolverFactory(solver)
    if not optimizer.available():
        raise ValueError(f"the Pyomo solver {solver!r} is not installed")
    result = optimizer.solve(
        model,
        time_limit=time_limit,
        rel_gap=gap,
        solver_options=_OPTIONS if solver == "scip_direct" else {},
        load_solutions=False,
        raise_exception_on_nonoptimal_result=False,
    )
    weights = indicators = None
    if result.incumbent_objective is not None:
        result.solution_loader.load_vars()
        weights = _values(model.w)
        indicators = _values(model.y)
    return certify(
        problem,
        formulation=formulation,
        integrality="relaxed" if relaxed else "integer",
        solver="scip" if solver == "scip_direct" else solver,
        version=".".join(map(str, optimizer.version())),
        status=_status(result.termination_condition.name),
        bound=result.objective_bound,
        seconds=time.perf_counter() - began,
        weights=weights,
        indicators=indicators,
    )


def _fix(model: Any, fixed: Tensor | None) -> None:
    if fixed is None:
        return
    values = torch.as_tensor(fixed).tolist()
    if len(values) != len(model.y) or any(v not in (0, 1) for v in values):
        raise ValueError(f"fixed must hold {len(model.y)} zeros and ones, got {values}")
    for y, value in zip(model.y.values(), values, strict=True):
        y.fix(value)


def _values(variables: Any) -> Tensor:
    # A variable that occurs in no constraint has no value: any value is optimal, so 0.
    return torch.tensor([v.value or 0.0 for v in variables.values()], dtype=torch.float64)


def _status(condition: str) -> str:
    names = {
        "convergenceCriteriaSatisfied": "optimal",
        "maxTimeLimit": "time_limit",
        "interrupted": "interrupted",
        "provenInfeasible": "infeasible",
    }
    return names.get(condition, condition)

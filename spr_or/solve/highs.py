"""HiGHS on the big-M model: its relaxation as an LP or convex QP, and the MIP where it is linear.

HiGHS solves linear programs, mixed-integer linear programs and continuous convex quadratic programs.
Its quadratic solver adds a small regularisation of its own (1e-7 by default, switched off here), so
the bound is not taken from it: the multipliers, or the loss gradient, give a Fenchel bound that is
evaluated here (`conic.bigm_dual_bound`).
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from spr_or import bigm
from spr_or.losses import LOSSES
from spr_or.problem import SparseTrainingProblem
from spr_or.solve.certificate import Certificate, certify
from spr_or.solve.conic import bigm_dual_bound

_OPTIONS = {
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
    "mip_feasibility_tolerance": 1e-9,
    "mip_rel_gap": 1e-9,
    "mip_abs_gap": 1e-9,
    "qp_regularization_value": 0.0,
}
_STATUS = {
    "convergenceCriteriaSatisfied": "optimal",
    "maxTimeLimit": "time_limit",
    "interrupted": "interrupted",
}


def applies(problem: SparseTrainingProblem, relaxed: bool) -> bool:
    """Whether HiGHS can take the big-M model of a problem, relaxed or not."""
    return not reason_against(problem, relaxed)


def reason_against(problem: SparseTrainingProblem, relaxed: bool) -> str:
    """Why HiGHS cannot take the model; empty if it can."""
    if not problem.convex:
        return "a network's products of weights are not convex: use spr_or.solve.scip"
    if problem.loss not in ("squared", "absolute", "hinge"):
        return f"the {problem.loss} loss is not quadratic: use spr_or.solve.conic or scip"
    if not relaxed and (problem.loss == "squared" or problem.alpha > 0):
        return "HiGHS takes no quadratic term beside binaries: use spr_or.solve.cuts or scip"
    return ""


def solve(
    problem: SparseTrainingProblem, relaxed: bool = True, time_limit: float | None = None
) -> Certificate:
    """The big-M relaxation (squared, absolute, hinge), or the MIP where alpha = 0 makes it linear.

    Raises ``ValueError`` where HiGHS cannot take the model, with the route that can.

    >>> X, y = [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.1]
    >>> p = SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> certificate = solve(p)
    >>> certificate.status, certificate.gap < 1e-6
    ('optimal', True)
    """
    against = reason_against(problem, relaxed)
    if against:
        raise ValueError(against)
    import pyomo.environ  # noqa: F401  (registers the solvers)
    from pyomo.contrib.solver.common.factory import SolverFactory

    began = time.perf_counter()
    # w = 0, y = 0 satisfies every constraint: what an early stop falls back to.
    weights = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    indicators = torch.zeros(len(problem.entities), dtype=torch.float64)
    bound, status = 0.0, "interrupted"  # no loss is negative
    optimizer = SolverFactory("highs")
    try:
        model = bigm.build(problem, relaxed)
        result = optimizer.solve(
            model,
            time_limit=time_limit,
            solver_options=_OPTIONS,
            load_solutions=False,
            raise_exception_on_nonoptimal_result=False,
        )
        status = _STATUS.get(result.termination_condition.name, "inexact")
        if result.incumbent_objective is not None:
            result.solution_loader.load_vars()
            weights, indicators = _values(model.w), _values(model.y)
        if not relaxed:
            bound = max(bound, float(result.objective_bound or 0.0))
        elif result.incumbent_objective is not None:
            bound = max(bound, _relaxation_bound(problem, model, result, weights))
    except KeyboardInterrupt:
        pass
    return certify(
        problem,
        formulation="bigm",
        integrality="relaxed" if relaxed else "integer",
        solver="highs",
        version=".".join(map(str, optimizer.version())),
        status=status,
        bound=bound,
        seconds=time.perf_counter() - began,
        weights=weights,
        indicators=indicators,
    )


def _relaxation_bound(
    problem: SparseTrainingProblem, model: Any, result: Any, weights: Tensor
) -> float:
    """The Fenchel bound from the loss gradient (squared) or from the multipliers of the loss rows."""
    loss = LOSSES[problem.loss]
    if problem.loss == "squared":
        nu = loss.gradient(problem.predict(weights), problem.y)
    else:
        duals = result.solution_loader.get_duals()

        def pull(rows: Any) -> Tensor:
            values = [abs(duals.get(row, 0.0)) for row in rows.values()]
            return problem.n * torch.tensor(values, dtype=torch.float64).view_as(problem.y)

        if problem.loss == "absolute":
            nu = pull(model.over) - pull(model.under)
        else:
            nu = -pull(model.margin) * problem.y
    bound = float(bigm_dual_bound(problem, loss.project(nu, problem.y)))
    return bound if math.isfinite(bound) else 0.0


def _values(variables: Any) -> Tensor:
    return torch.tensor([v.value or 0.0 for v in variables.values()], dtype=torch.float64)

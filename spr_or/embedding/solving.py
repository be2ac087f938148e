"""Solve a Pyomo model that holds embedded networks: HiGHS and SCIP as they come, Gurobi where present."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

from spr_or.utils.interrupts import heard_interrupt

_PYOMO_NAME = {"highs": "highs", "scip": "scip_direct", "gurobi": "gurobi_direct"}
SOLVERS = tuple(_PYOMO_NAME)
# The option with which each stops at a solution, whatever it is worth.  SCIP would spend most of its time on
# cuts at the root, where a little branching decides (docs/lab/embedding.md).
_FIRST = {
    "highs": {"mip_max_improving_sols": 1},
    "scip": {"limits/solutions": 1, "separating/maxroundsroot": 0, "separating/maxrounds": 0},
    "gurobi": {"SolutionLimit": 1},
}
_STATUS = {
    "convergenceCriteriaSatisfied": "optimal",
    "maxTimeLimit": "time_limit",
    "iterationLimit": "stopped",
    "objectiveLimit": "stopped",
    "provenInfeasible": "infeasible",
    "infeasibleOrUnbounded": "infeasible",  # all variables of a block are bounded
    "interrupted": "interrupted",
}


class Outcome(NamedTuple):
    """What a solver found.

    status : "optimal", "infeasible", "time_limit", "stopped" (at a first solution), "interrupted" or
        "failed"
    value : objective of the best solution, whose values are loaded into the model; None without one
    bound : of the optimum, by the solver; None where it gives none
    nodes : of the search
    seconds, processor_seconds : wall-clock and processor time of the solver, and of Pyomo's way to it
    """

    status: str
    value: float | None
    bound: float | None
    nodes: int
    seconds: float
    processor_seconds: float


def solve_model(
    model: Any, solver: str = "highs", time_limit: float | None = None, first: bool = False
) -> Outcome:
    """Solve to optimality, or with ``first`` to the first solution.

    Raises ``ValueError`` for a solver that is unknown or not installed, and for a negative time limit.

    >>> import pyomo.environ as pyo
    >>> model = pyo.ConcreteModel()
    >>> model.x = pyo.Var(domain=pyo.Binary)
    >>> model.goal = pyo.Objective(expr=2 * model.x, sense=pyo.maximize)
    >>> solve_model(model)[:3]
    ('optimal', 2.0, 2.0)
    """
    if time_limit is not None and not time_limit >= 0:
        raise ValueError(f"time_limit must be seconds, at least 0, got {time_limit}")
    options = _FIRST.get(solver, {}) if first else {}
    outcome = _run(model, solver, time_limit, options)
    if first and outcome.status == "failed" and outcome.value is not None:
        return outcome._replace(status="stopped")  # Pyomo has no word for SCIP's limit of solutions
    return outcome


def root_bound(model: Any) -> float:
    """The bound of the model's linear relaxation, by HiGHS; nan where it is infeasible.

    The values of its solution are loaded into the model.  Raises ``ValueError`` where HiGHS cannot solve it.
    """
    outcome = _run(model, "highs", None, {"solve_relaxation": True})
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    if outcome.status == "infeasible":
        return float("nan")
    if outcome.value is None:
        raise ValueError("HiGHS cannot solve the linear relaxation: is the model linear?")
    return outcome.value


def check_solver(solver: str) -> None:
    """Raise ``ValueError`` where a solver is unknown or not installed."""
    _optimizer(solver)


def _optimizer(solver: str) -> Any:
    if solver not in _PYOMO_NAME:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    import pyomo.environ  # noqa: F401  (registers the solvers)
    from pyomo.contrib.solver.common.factory import SolverFactory

    optimizer = SolverFactory(_PYOMO_NAME[solver])
    if not optimizer or not optimizer.available():
        raise ValueError(f"the solver {solver!r} is not installed; highs and scip come with SPR-OR")
    return optimizer


def _run(model: Any, solver: str, time_limit: float | None, options: dict[str, Any]) -> Outcome:
    optimizer = _optimizer(solver)
    begun, spent = time.perf_counter(), time.process_time()
    with heard_interrupt() as pressed:
        try:
            result = optimizer.solve(
                model,
                time_limit=time_limit,
                solver_options=options,
                load_solutions=False,
                raise_exception_on_nonoptimal_result=False,
            )
        except KeyboardInterrupt:
            used = time.perf_counter() - begun, time.process_time() - spent
            return Outcome("interrupted", None, None, 0, *used)
    used = time.perf_counter() - begun, time.process_time() - spent
    value = result.incumbent_objective
    if value is not None:
        result.solution_loader.load_vars()
    bound = result.objective_bound
    status = _STATUS.get(result.termination_condition.name, "failed")
    return Outcome(
        # HiGHS 1.16 answers Ctrl-C by itself, and calls it an error.
        "interrupted" if status == "failed" and pressed() else status,
        None if value is None else float(value),
        None if bound is None or not math.isfinite(bound) else float(bound),
        _nodes(result.extra_info),
        *used,
    )


def _nodes(info: Any) -> int:
    """HiGHS, SCIP and Gurobi name their count of nodes differently; -1 stands for none."""
    told = info.value()
    counts = [told.get(name) for name in ("mip_node_count", "NNodes", "NodeCount")]
    return max([0, *(int(count) for count in counts if count is not None)])

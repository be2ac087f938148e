"""SCIP through Pyomo: the big-M and the perspective model to global optimality, networks included.

SCIP is a branch and bound for mixed-integer nonlinear programs: cones, exponentials, and the
bilinear products of a network whose layers are all free.  Its dual bound holds to its feasibility
tolerance, here 1e-9, not to the last bit.  By default SCIP adds its own perspective
cuts to a big-M model. They are switched off here, so that the given formulation is measured.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spr_or.formulations import bigm, one_hidden_layer, perspective, tightened_network
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers import fixed_support
from spr_or.solvers.certificate import Certificate, Solved, certify
from spr_or.solvers.time_limit import TimeLimit

FORMULATIONS = {"bigm": bigm.build, "perspective": perspective.build}

# All primal heuristics except the one that fixes the binaries of a relaxation and solves the rest.
_HEURISTICS = (
    "adaptivediving", "alns", "conflictdiving", "crossover", "distributiondiving", "feaspump",
    "fracdiving", "guideddiving", "intshifting", "linesearchdiving", "mpec", "nlpdiving",
    "objpscostdiving", "pscostdiving", "randrounding", "rins", "rootsoldiving", "rounding",
    "shifting", "undercover", "veclendiving", "zirounding",
)  # fmt: skip
_OPTIONS = {
    "nlhdlr/perspective/enabled": False,
    "numerics/feastol": 1e-9,
    "numerics/dualfeastol": 1e-9,
    # These trees are small: with few rounds of cuts and one heuristic they take a third of the time.
    "separating/maxroundsroot": 5,
    "separating/maxrounds": 1,
    **{f"heuristics/{name}/freq": -1 for name in _HEURISTICS},
}
_STATUS = {
    "convergenceCriteriaSatisfied": "optimal",
    "maxTimeLimit": "time_limit",
    "interrupted": "interrupted",
}


def solve(
    problem: SparseTrainingProblem,
    formulation: str = "bigm",
    relaxed: bool = False,
    time_limit: float | None = None,
    gap: float = 1e-7,
    fixed: Tensor | None = None,
    solver: str = "scip_direct",
    start: Tensor | None = None,
    own_settings: bool = True,
) -> Certificate:
    """Solve a formulation, or its relaxation in y, to the relative ``gap``.

    Parameters
    ----------
    formulation : "bigm" or "perspective"
    relaxed : whether y ranges over [0, 1]; a network's ReLUs stay exact
    time_limit : seconds, or None for no limit; when it is reached, the certificate has the status
        "time_limit" and the gap that is left
    fixed : 0/1 tensor (N,) that fixes the indicators, or None
    solver : any name of a Pyomo solver that takes these models; only SCIP is installed with SPR-OR,
        and only it gets the settings of this file
    start : weights (P,) of a solution, or None; SCIP starts from it, and solves the model that its
        value tightens (`spr_or.formulations.tightened_network`: one hidden layer, integer indicators)
    own_settings : False leaves SCIP at its defaults, with its perspective cuts and all its heuristics

    Raises ``ValueError`` for an unknown formulation or solver, and for a bad ``fixed``.

    >>> X, y = [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.1]
    >>> p = SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> c = solve(p)
    >>> c.status, c.indicators.tolist(), round(c.objective, 4)
    ('optimal', [1.0, 0.0], 0.1005)
    """
    if formulation not in FORMULATIONS:
        known = ", ".join(FORMULATIONS)
        raise ValueError(f"formulation must be one of {known}, got {formulation!r}")
    optimizer = _optimizer(solver)
    clock = TimeLimit(time_limit)
    # w = 0 satisfies every constraint and no loss is negative: the answer after an early stop.
    weights = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    indicators = _indicators(problem, fixed)
    bound, status, most = 0.0, "interrupted", math.inf
    original = problem
    if start is not None:
        if relaxed or fixed is not None:
            raise ValueError("start is for the integer problem with free indicators")
        weights = one_hidden_layer.canonical(problem, start)
        indicators = problem.entities.rows(weights).ne(0).any(-1).to(weights)
        most = one_hidden_layer.value(problem, weights)
        problem = tightened_network.within(problem, most)
    try:
        model = FORMULATIONS[formulation](problem, relaxed)
        if start is not None:
            tightened_network.tighten(model, problem, most)
            tightened_network.start_from(model, problem, weights)
        if fixed is not None:
            for y, value in zip(model.y.values(), indicators.tolist(), strict=True):
                y.fix(value)
        result = optimizer.solve(
            model,
            time_limit=None if time_limit is None else clock.left(),
            rel_gap=gap,
            warmstart_discrete_vars=start is not None,
            solver_options=_OPTIONS if own_settings and solver == "scip_direct" else {},
            load_solutions=False,
            raise_exception_on_nonoptimal_result=False,
        )
        status = _STATUS.get(result.termination_condition.name, "inexact")
        # Solutions worse than ``most`` are not in the model: it proves no more than that.
        bound = min(max(bound, result.objective_bound), most)
        if result.incumbent_objective is not None:
            result.solution_loader.load_vars()
            weights, indicators = _solution(problem, model, relaxed)
    except KeyboardInterrupt:
        status = "interrupted"
    name = "scip" if solver == "scip_direct" else solver
    version = ".".join(map(str, optimizer.version()))
    return certify(
        original,
        Solved(formulation, "relaxed" if relaxed else "integer", name, version),
        status=status,
        bound=bound,
        seconds=clock.seconds,
        weights=weights,
        indicators=indicators,
    )


def _optimizer(solver: str) -> Any:
    import pyomo.environ  # noqa: F401  (registers the solvers)
    from pyomo.contrib.solver.common.factory import SolverFactory

    optimizer = SolverFactory(solver)
    if not optimizer or not optimizer.available():
        raise ValueError(f"the Pyomo solver {solver!r} is not installed")
    return optimizer


def _solution(problem: SparseTrainingProblem, model: Any, relaxed: bool) -> tuple[Tensor, Tensor]:
    """Weights and indicators of a solved model."""
    weights, indicators = _values(model.w), _values(model.y)
    if problem.convex and problem.plain and not relaxed:
        # Training on the support removes the small weights that the solver's tolerances left.
        weights = fixed_support.fit(problem, indicators.round()).weights
    return weights, indicators


def _indicators(problem: SparseTrainingProblem, fixed: Tensor | None) -> Tensor:
    count = len(problem.entities)
    if fixed is None:
        return torch.zeros(count, dtype=torch.float64)
    values = torch.as_tensor(fixed, dtype=torch.float64).flatten()
    if len(values) != count or not bool(((values == 0) | (values == 1)).all()):
        raise ValueError(f"fixed must hold {count} zeros and ones, got {values.tolist()}")
    return values


def _values(variables: Any) -> Tensor:
    # A variable that occurs in no constraint has no value: any value is optimal, so 0.
    return torch.tensor([v.value or 0.0 for v in variables.values()], dtype=torch.float64)

r"""HiGHS on the big-M model: its relaxation as an LP or convex QP, and the MIP where it is linear.

HiGHS solves linear programs, mixed-integer linear programs and continuous convex quadratic programs.
Its active-set method for the last cycles on vertices where many rows |w_j| <= M y meet (1 in 12 of
small random problems never ended), unless the objective is strongly convex.  So a quadratic program
is solved by the proximal-point method,

.. math::  x_{k+1} = \arg\min_x\; f(x) + \rho \lVert x - x_k\rVert^2, \qquad x = (w, y),

whose fixed points are the minimisers of f itself: two or three steps end at a gap of 1e-9 or less
(Rockafellar, SIAM J. Control Optim. 14, 1976).  The bound of a relaxation does not come from HiGHS: the
loss gradient, or the multipliers, give a Fenchel bound that is evaluated here, outside the solver
(`conic.bigm_dual_bound`), so that no tolerance of HiGHS enters it.  The bound of a MIP is HiGHS's,
and holds to its feasibility tolerance of 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spr_or.formulations import bigm
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.certificate import Certificate, Solved, certify, feasible
from spr_or.solvers.conic import bigm_dual_bound
from spr_or.solvers.time_limit import TimeLimit

_OPTIONS = {
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
    "mip_feasibility_tolerance": 1e-9,
    "mip_rel_gap": 1e-9,
    "mip_abs_gap": 1e-9,
    # The proximal term below is what makes a quadratic program strongly convex; this one would not
    # vanish at the solution.
    "qp_regularization_value": 0.0,
    "qp_iteration_limit": 20_000,
}
# The first weight of the proximal term, its growth where HiGHS still cycles, and the cap on solves.
_RHO = 1e-4
_GROWTH = 10.0
_STEPS = 12
# A relative gap at which the proximal steps end.
_GAP = 1e-9
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
        return "a network's products of weights are not convex: use spr_or.solvers.scip"
    if problem.loss not in ("squared", "absolute", "hinge"):
        return f"the {problem.loss} loss is not quadratic: use spr_or.solvers.conic or scip"
    if not relaxed and (problem.loss == "squared" or problem.alpha > 0):
        return "HiGHS takes no quadratic term beside binaries: use spr_or.solvers.outer_approximation or scip"
    return ""


def solve(
    problem: SparseTrainingProblem, relaxed: bool = True, time_limit: float | None = None
) -> Certificate:
    """The big-M relaxation (squared, absolute, hinge), or the MIP where alpha = 0 makes it linear.

    Raises ``ValueError`` where HiGHS cannot take the model; the message names a solver that can.

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

    clock = TimeLimit(time_limit)
    optimizer = SolverFactory("highs")
    # w = 0, y = 0 is feasible and no loss is negative: the answer after an early stop.
    w = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    y = torch.zeros(len(problem.entities), dtype=torch.float64)
    answers = [_Answer(w, y, 0.0, "interrupted")]
    try:
        if relaxed:
            answers[0] = answers[0]._replace(bound=_bound_at_zero(problem))
        model = bigm.build(problem, relaxed)
        run = partial(_run, problem, model, optimizer, clock)
        if relaxed and _closed(problem, answers[0]):
            # Prices so far above the loss that nothing is worth a weight: HiGHS's absolute
            # tolerances would see the prices only.
            answers[0] = answers[0]._replace(status="optimal")
        elif problem.loss == "squared" or problem.alpha > 0:
            _proximal_point(problem, model, run, answers)
        else:
            answers.append(run(answers[0]))
    except KeyboardInterrupt:
        answers.append(answers[-1]._replace(status="interrupted"))
    best = answers[-1]
    version = ".".join(map(str, optimizer.version()))
    return certify(
        problem,
        Solved("bigm", "relaxed" if relaxed else "integer", "highs", version),
        status=best.status,
        bound=best.bound,
        seconds=clock.seconds,
        weights=best.weights,
        indicators=best.indicators,
    )


class _Answer(NamedTuple):
    """What HiGHS has found and proven so far, as `certify` takes it."""

    weights: Tensor
    indicators: Tensor
    bound: float
    status: str


def _proximal_point(
    problem: SparseTrainingProblem,
    model: Any,
    run: Callable[[_Answer], _Answer],
    answers: list[_Answer],
) -> None:
    """Append answers with a rising bound until the gap is closed; see the top of this file."""
    import pyomo.environ as pyo

    f, rho = model.objective.expr, _RHO
    variables = [*model.w.values(), *model.y.values()]
    for _ in range(_STEPS):
        last = answers[-1]
        centre = torch.cat([last.weights, last.indicators]).tolist()
        distance = sum((v - c) ** 2 for v, c in zip(variables, centre, strict=True))
        model.del_component(model.objective)
        model.objective = pyo.Objective(expr=f + rho * distance)
        found = run(last)
        if found.status == "inexact":
            rho *= _GROWTH
            continue
        answers.append(found._replace(bound=max(last.bound, found.bound)))
        if found.status != "optimal" or _closed(problem, answers[-1]):
            return
    # Short of _GAP: the certificate judges what is left, unless no call of HiGHS ended well.
    last = answers[-1]
    answers.append(last._replace(status="optimal" if len(answers) > 1 else "inexact"))


def _run(
    problem: SparseTrainingProblem, model: Any, optimizer: Any, clock: TimeLimit, last: _Answer
) -> _Answer:
    """One call of HiGHS; where it has no solution, the point of ``last``."""
    result = optimizer.solve(
        model,
        time_limit=clock.left() if math.isfinite(clock.limit) else None,
        solver_options=_OPTIONS,
        load_solutions=False,
        raise_exception_on_nonoptimal_result=False,
    )
    status = _STATUS.get(result.termination_condition.name, "inexact")
    if result.incumbent_objective is None:
        return last._replace(status=status)
    result.solution_loader.load_vars()
    weights, indicators = _values(model.w), _values(model.y)
    if model.y[0].is_continuous():
        bound = _relaxation_bound(problem, model, result, weights)
    else:
        bound = max(0.0, float(result.objective_bound or 0.0))
    return _Answer(weights, indicators, bound, status)


def _bound_at_zero(problem: SparseTrainingProblem) -> float:
    """The Fenchel bound from the loss gradient at w = 0, at least 0 since no loss is negative."""
    loss = LOSSES[problem.loss]
    zero = torch.zeros((problem.n, problem.n_outputs), dtype=torch.float64)
    nu = loss.project(loss.gradient(zero, problem.y), problem.y)
    return max(0.0, float(bigm_dual_bound(problem, nu)))


def _closed(problem: SparseTrainingProblem, answer: _Answer) -> bool:
    return _objective(problem, answer) - answer.bound <= _GAP * max(1.0, answer.bound)


def _objective(problem: SparseTrainingProblem, answer: _Answer) -> float:
    theta, y = feasible(problem, answer.weights, answer.indicators, integer=False)
    penalty = bigm.penalty(problem.entities.rows(theta), y, problem.alpha)
    return float(problem.objective(theta, penalty))


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

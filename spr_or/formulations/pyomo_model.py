r"""What the big-M and the perspective model share: the weights, the indicators and the loss.

The mean loss (1/n) sum_m l(f_m; y_m) becomes an expression ``loss`` on the predictions f, with an
epigraph variable ``e`` for each sample (and output) where l is not quadratic:

=========  ================================================  ==============================
loss       rows                                              l
=========  ================================================  ==============================
squared    none                                              (f - y)^2, summed over outputs
absolute   e >= f - y,  e >= y - f                           e, summed over outputs
hinge      e >= 1 - y f,  e >= 0                             e
logistic   v_0 = -e,  v_1 = -y f - e,  exp v_0 + exp v_1 <= 1  e = log(1 + exp(-y f))
softmax    v_c = f_c - f_y - e,  sum_c exp v_c <= 1          e = logsumexp(f) - f_y
=========  ================================================  ==============================

The last two rows are convex.  Their arguments v are variables with the upper bound 0, which the row
implies anyway: without the bound a solver may evaluate exp(100), and SCIP then "proved" values twice
as large as the optimum.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from spr_or.formulations import network_constraints
from spr_or.formulations.problem import SparseTrainingProblem


def start(problem: SparseTrainingProblem, relaxed: bool) -> Any:
    """A Pyomo model with ``w``, ``y``, the expression ``loss``, and no constraint between w and y.

    ``w[j]``, j = 0..P-1, are the weights, within M of their entity (or M_free); ``y[i]`` the
    indicators, binary or in [0, 1]; the set ``members`` holds the pairs (i, j) with j in entity i;
    ``f[m, o]`` is the prediction for sample m.  Raises ``ValueError`` for the poisson loss.
    """
    import pyomo.environ as pyo

    if problem.loss not in _LOSSES:
        raise ValueError(f"models for other solvers do not take the {problem.loss} loss")
    bound = network_constraints.bound_by_entity(problem).sum(-1).tolist()
    groups = problem.entities.groups
    m = pyo.ConcreteModel(name=problem.name)
    m.problem = problem
    m.w = pyo.Var(range(len(bound)), bounds=lambda _, j: (-bound[j], bound[j]))
    m.y = pyo.Var(range(len(groups)), domain=pyo.UnitInterval if relaxed else pyo.Binary)
    m.members = pyo.Set(dimen=2, initialize=[(i, j) for i, g in enumerate(groups) for j in g])
    _restrict(m, problem)
    cells = [(k, o) for k in range(problem.n) for o in range(problem.n_outputs)]
    if problem.loss == "squared" and problem.convex:
        _least_squares(m, problem, cells)
        return m
    f = network_constraints.predictions(m, problem)
    m.f = pyo.Expression(cells, rule=lambda _, k, o: f.values[k][o])
    # The largest |f| bounds the loss of a sample, which branching on f needs.
    _LOSSES[problem.loss](m, problem, torch.maximum(f.lower.abs(), f.upper.abs()))
    return m


def _restrict(m: Any, problem: SparseTrainingProblem) -> None:
    """Signs of weights, and the rules for supports."""
    import pyomo.environ as pyo

    if problem.nonnegative is not None:
        for j in (
            problem.nonnegative.repeat_interleave(problem.n_outputs).nonzero().flatten().tolist()
        ):
            m.w[j].setlb(0)
    rules = problem.rules
    if rules is None:
        return
    m.required = pyo.Constraint(
        rules.required.nonzero().flatten().tolist(), rule=lambda m, i: m.y[i] == 1
    )
    m.needs = pyo.Constraint(rules.needs.tolist(), rule=lambda m, i, p: m.y[i] <= m.y[p])
    # A support differs from a forbidden one in at least one entity.
    m.other = pyo.Constraint(
        range(len(rules.forbidden)),
        rule=lambda m, k: (
            sum(
                1 - m.y[i] if used else m.y[i] for i, used in enumerate(rules.forbidden[k].tolist())
            )
            >= 1
        ),
    )
    if rules.most is not None:
        m.most = pyo.Constraint(expr=sum(m.y.values()) <= rules.most)


def _sample_weights(problem: SparseTrainingProblem) -> list[float]:
    """The weight of each sample in the mean loss."""
    if problem.sample_weight is None:
        return [1.0] * problem.n
    return problem.sample_weight.tolist()


def squares(m: Any, i: int) -> Any:
    """||w^i||^2 as an expression."""
    return sum(m.w[j] ** 2 for j in m.problem.entities.groups[i])


def _least_squares(m: Any, problem: SparseTrainingProblem, cells: list[tuple[int, int]]) -> None:
    """||X W - Y||^2 = ||S V'W - U'Y||^2 + ||Y - U U'Y||^2 with X = U S V': min(n, p) squares, not n.

    The singular directions S V'W stand in for the predictions, which are f = U (S V'W).  Any
    factorisation of X would do: with its singular values HiGHS cycles in 1 of 62 random problems,
    with a triangular factor in 5.
    """
    import pyomo.environ as pyo

    U, S, Vt = torch.linalg.svd(problem.X, full_matrices=False)
    target = U.mT @ problem.y
    rest = float((problem.y - U @ target).square().sum())
    g = network_constraints.predictions(m, replace(problem, X=S.unsqueeze(1) * Vt, y=target)).values
    u, y = U.tolist(), target.tolist()
    m.f = pyo.Expression(cells, rule=lambda _, k, o: sum(c * g[i][o] for i, c in enumerate(u[k])))
    squares = [(g[i][o] - y[i][o]) ** 2 for i in range(len(y)) for o in range(problem.n_outputs)]
    m.loss = pyo.Expression(expr=(sum(squares) + rest) / problem.n)


def _squared(m: Any, problem: SparseTrainingProblem, reach: torch.Tensor) -> None:
    import pyomo.environ as pyo

    y = problem.y.tolist()
    m.loss = pyo.Expression(expr=sum((m.f[k, o] - y[k][o]) ** 2 for k, o in m.f) / problem.n)


def _absolute(m: Any, problem: SparseTrainingProblem, reach: torch.Tensor) -> None:
    import pyomo.environ as pyo

    y = problem.y.tolist()
    top = (reach + problem.y.abs()).tolist()
    m.e = pyo.Var(list(m.f), bounds=lambda _, k, o: (0, top[k][o]))
    m.over = pyo.Constraint(list(m.f), rule=lambda m, k, o: m.e[k, o] >= m.f[k, o] - y[k][o])
    m.under = pyo.Constraint(list(m.f), rule=lambda m, k, o: m.e[k, o] >= y[k][o] - m.f[k, o])
    m.loss = pyo.Expression(expr=sum(m.e.values()) / problem.n)


def _hinge(m: Any, problem: SparseTrainingProblem, reach: torch.Tensor) -> None:
    import pyomo.environ as pyo

    y = problem.y.flatten().tolist()
    top = (1 + reach.flatten()).tolist()
    m.e = pyo.Var(range(problem.n), bounds=lambda _, k: (0, top[k]))
    m.margin = pyo.Constraint(range(problem.n), rule=lambda m, k: m.e[k] >= 1 - y[k] * m.f[k, 0])
    m.loss = pyo.Expression(expr=sum(m.e.values()) / problem.n)


def _logistic(m: Any, problem: SparseTrainingProblem, reach: torch.Tensor) -> None:
    y = problem.y.flatten().tolist()
    _log_sum_exp(m, problem, 2, reach.amax(-1), lambda k, c: -c * y[k] * m.f[k, 0])


def _softmax(m: Any, problem: SparseTrainingProblem, reach: torch.Tensor) -> None:
    y = problem.y.tolist()
    q = problem.n_outputs
    _log_sum_exp(m, problem, q, 2 * reach.amax(-1), lambda k, c: m.f[k, c] - m.f[k, y[k]])


def _log_sum_exp(
    m: Any, problem: SparseTrainingProblem, terms: int, reach: torch.Tensor, term: Any
) -> None:
    """e_k >= log sum_c exp(term(k, c)), where |term(k, c)| <= reach_k and some term is 0."""
    import pyomo.environ as pyo

    top = (reach + math.log(terms)).tolist()
    low = (-2 * reach - math.log(terms)).tolist()
    m.e = pyo.Var(range(problem.n), bounds=lambda _, k: (0, top[k]))
    m.v = pyo.Var(range(problem.n), range(terms), bounds=lambda _, k, c: (low[k], 0))
    m.argument = pyo.Constraint(list(m.v), rule=lambda m, k, c: m.v[k, c] == term(k, c) - m.e[k])
    m.total = pyo.Constraint(
        range(problem.n), rule=lambda m, k: sum(pyo.exp(m.v[k, c]) for c in range(terms)) <= 1
    )
    size = _sample_weights(problem)
    m.loss = pyo.Expression(expr=sum(size[k] * m.e[k] for k in m.e) / problem.n)


_LOSSES = {
    "squared": _squared,
    "absolute": _absolute,
    "hinge": _hinge,
    "logistic": _logistic,
    "softmax": _softmax,
}

r"""What the big-M and the perspective model share: the weights, the indicators and the loss.

The mean loss (1/n) sum_m l(f_m; y_m) becomes an expression ``loss`` on the predictions f, with an
epigraph variable ``e`` a sample (and output) where l is not quadratic:

=========  ==========================================  =============================
loss       rows                                        l
=========  ==========================================  =============================
squared    none                                        (f - y)^2, summed over outputs
absolute   e >= f - y,  e >= y - f                     e, summed over outputs
hinge      e >= 1 - y f,  e >= 0                       e
logistic   exp(-e) + exp(-y f - e) <= 1                e = log(1 + exp(-y f))
softmax    sum_c exp(f_c - f_y - e) <= 1               e = logsumexp(f) - f_y
=========  ==========================================  =============================

The last two are sums of exponentials of linear functions, convex as they stand.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from spr_or import encode
from spr_or.problem import SparseTrainingProblem


def start(problem: SparseTrainingProblem, relaxed: bool) -> Any:
    """A Pyomo model with ``w``, ``y``, the expression ``loss``, and no constraint between w and y.

    ``w[j]``, j = 0..P-1, are the weights, within M of their entity (or M_free); ``y[i]`` the
    indicators, binary or in [0, 1]; the set ``members`` holds the pairs (i, j) with j in entity i.
    ``problem`` is the problem as written: `SparseTrainingProblem.condensed`, which spares a solver
    most of the samples of a least-squares problem.
    """
    import pyomo.environ as pyo

    problem = problem.condensed()
    bound = encode.weight_bounds(problem).sum(-1).tolist()
    groups = problem.entities.groups
    m = pyo.ConcreteModel(name=problem.name)
    m.problem = problem
    m.w = pyo.Var(range(len(bound)), bounds=lambda _, j: (-bound[j], bound[j]))
    m.y = pyo.Var(range(len(groups)), domain=pyo.UnitInterval if relaxed else pyo.Binary)
    m.members = pyo.Set(dimen=2, initialize=[(i, j) for i, g in enumerate(groups) for j in g])
    f = encode.predictions(m, problem)
    m.f = pyo.Expression(
        range(problem.n), range(problem.n_outputs), rule=lambda _, k, o: f.values[k][o]
    )
    _add_loss(m, problem, f)
    return m


def squares(m: Any, i: int) -> Any:
    """||w^i||^2 as an expression."""
    return sum(m.w[j] ** 2 for j in m.problem.entities.groups[i])


def _add_loss(m: Any, problem: SparseTrainingProblem, f: encode.Signal) -> None:
    import pyomo.environ as pyo

    n, q = problem.n, problem.n_outputs
    y = problem.y.tolist()
    cells = [(k, o) for k in range(n) for o in range(q)]
    samples = range(n)
    m.loss_rows = pyo.ConstraintList()
    # The largest |f| a sample can reach bounds its loss, which branching on f needs.
    reach = torch.maximum(f.lower.abs(), f.upper.abs())
    if problem.loss == "squared":
        m.loss = pyo.Expression(expr=sum((m.f[k, o] - y[k][o]) ** 2 for k, o in cells) / n)
        return
    if problem.loss == "absolute":
        top = (reach + problem.y.abs()).tolist()
        m.e = pyo.Var(cells, bounds=lambda _, k, o: (0, top[k][o]))
        for k, o in cells:
            m.loss_rows.add(m.e[k, o] >= m.f[k, o] - y[k][o])
            m.loss_rows.add(m.e[k, o] >= y[k][o] - m.f[k, o])
    elif problem.loss == "hinge":
        m.e = pyo.Var(samples, bounds=lambda _, k: (0, 1 + float(reach[k])))
        for k in samples:
            m.loss_rows.add(m.e[k] >= 1 - y[k][0] * m.f[k, 0])
    elif problem.loss == "logistic":
        top = torch.nn.functional.softplus(reach).flatten().tolist()
        m.e = pyo.Var(samples, bounds=lambda _, k: (0, top[k]))
        for k in samples:
            m.loss_rows.add(pyo.exp(-m.e[k]) + pyo.exp(-y[k][0] * m.f[k, 0] - m.e[k]) <= 1)
    else:
        top = (2 * reach.amax(-1) + math.log(q)).tolist()
        m.e = pyo.Var(samples, bounds=lambda _, k: (0, top[k]))
        for k in samples:
            m.loss_rows.add(sum(pyo.exp(m.f[k, c] - m.f[k, y[k]] - m.e[k]) for c in range(q)) <= 1)
    m.loss = pyo.Expression(expr=sum(m.e.values()) / n)

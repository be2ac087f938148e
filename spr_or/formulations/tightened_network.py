r"""What a solution of value U says about all that are not worse, as bounds and rows of the model.

For `spr_or.formulations.one_hidden_layer` networks with interchangeable neurons.  Every statement
holds for at least one optimum, so the optimum stays as it is; worse solutions are cut off.

* **Radius.** No loss is negative, so a used neuron has lambda u (alpha ||w||^2 + 1 - alpha) <= U, that is
  ||w||_2 <= R with R^2 = (U / (lambda u) - (1 - alpha)) / alpha.  Hence M becomes min(M, R), and
  |z_m| = |w . x~_m| <= R ||x~_m||_2 instead of M ||x~_m||_1, in the rows of the ReLU too.
* **Samples.** The loss of one sample is at most n U: |f_m - y_m| <= sqrt(n U) (squared),
  y_m f_m >= 1 - n U (hinge).
* **Order.** Exchanging neurons leaves network and penalty as they are, so some optimum is `canonical`.
  With sigma_i = 1 for a positive weight out of neuron i, and unused neurons positive,

  .. math::  \sigma_i \ge \sigma_{i+1}, \quad \sigma_i + y_i \ge 1, \quad
             y_i \ge y_{i+1} + \sigma_{i+1} - 1, \quad
             w_{i,0} \ge w_{i+1,0} - 2 M (\sigma_i - \sigma_{i+1}) - M (y_i - y_{i+1}).

  The last row is an order of the first weights where sigma and y are equal.  It is no restriction where
  sigma falls (by at least -M + 2 M = M: |w_{i,0}| <= M y_i) or y falls.
* **Cutoff.** The objective is a variable with the upper bound U.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from spr_or.formulations.one_hidden_layer import canonical, need_one_hidden_layer, places
from spr_or.formulations.problem import SparseTrainingProblem

_SLACK = (
    1e-6  # relative, on U: a solver's tolerances must not cut off the solution that has the value U
)


def within(problem: SparseTrainingProblem, value: float) -> SparseTrainingProblem:
    """The problem with M = min(M, R), which no solution of at most ``value`` notices.

    Raises ``ValueError`` if the network is not of this kind (`reason_against`).
    """
    need_one_hidden_layer(problem, "the tightened model")
    return replace(problem, M=problem.M.clamp(max=radius(problem, value)))


def radius(problem: SparseTrainingProblem, value: float) -> float:
    """R, the largest ||w||_2 of a neuron in a solution of at most ``value``; 0 if none can be used."""
    unit = value * (1 + _SLACK) / (problem.lam * float(problem.u[0]))
    return math.sqrt(max(0.0, (unit - (1 - problem.alpha)) / problem.alpha))


def tighten(model: Any, problem: SparseTrainingProblem, value: float) -> None:
    """Add the rows above to a model of `bigm` or `perspective` with integer indicators.

    ``problem`` is that of the model, from `within`; ``value`` is the objective of a solution.
    """
    import pyomo.environ as pyo

    _radius_rows(model, problem, radius(problem, value))
    _sample_rows(model, problem, value * (1 + _SLACK))
    _order_rows(model, problem)
    model.worth = pyo.Var(bounds=(0, value * (1 + _SLACK)))
    model.meets = pyo.Constraint(expr=model.objective.expr <= model.worth)
    model.objective.deactivate()
    model.least = pyo.Objective(expr=model.worth)


def _radius_rows(model: Any, problem: SparseTrainingProblem, R: float) -> None:
    import pyomo.environ as pyo

    size = problem.X.square().sum(1) + problem.bias_input**2
    reach = (R * size.sqrt()).tolist()
    z, relu = model.layer[0].z, model.layer[1]
    for m, o in z:
        z[m, o].setlb(max(z[m, o].lb, -reach[m]))
        z[m, o].setub(min(z[m, o].ub, reach[m]))
    model.tight = pyo.ConstraintList()
    for m, o in relu.a:
        a, fires = relu.a[m, o], relu.fires[m, o]
        a.setub(min(a.ub, reach[m]))
        model.tight.add(a <= reach[m] * fires)
        model.tight.add(a <= z[m, o] + reach[m] * (1 - fires))


def _sample_rows(model: Any, problem: SparseTrainingProblem, value: float) -> None:
    import pyomo.environ as pyo

    most = problem.n * value
    y = problem.y.flatten().tolist()
    model.sample = pyo.ConstraintList()
    for m in range(problem.n):
        f = model.f[m, 0]
        if problem.loss == "squared":
            model.sample.add(pyo.inequality(y[m] - math.sqrt(most), f, y[m] + math.sqrt(most)))
        elif problem.loss == "hinge":
            model.sample.add(y[m] * f >= 1 - most)


def _order_rows(model: Any, problem: SparseTrainingProblem) -> None:
    import pyomo.environ as pyo

    where = places(problem)
    first, out, M = where.rows[:, 0].tolist(), where.out.tolist(), float(problem.M[0])
    y, sign, w = model.y, [model.sign[j] for j in out], [model.w[j] for j in first]
    model.order = pyo.ConstraintList()
    for i in model.y:
        model.order.add(sign[i] + y[i] >= 1)
    for i in range(len(out) - 1):
        model.order.add(sign[i] >= sign[i + 1])
        model.order.add(y[i] >= y[i + 1] + sign[i + 1] - 1)
        fall = 2 * M * (sign[i] - sign[i + 1]) + M * (y[i] - y[i + 1])
        model.order.add(w[i] >= w[i + 1] - fall)


def start_from(model: Any, problem: SparseTrainingProblem, theta: Tensor) -> None:
    """Give the binary variables of a model the values that they have at the `canonical` theta (P,)."""
    theta = canonical(problem, theta)
    where = places(problem)
    for i, used in enumerate((theta[where.rows] != 0).any(1).tolist()):
        model.y[i].set_value(int(used))
    for j in where.out.tolist():
        model.sign[j].set_value(int(theta[j] > 0))
    named = problem.parameters(theta)
    z = problem.X @ named["0.weight"].T + problem.bias_input * named["0.bias"]
    for (m, o), fires in model.layer[1].fires.items():
        fires.set_value(int(z[m, o] > 0))

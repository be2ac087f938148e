"""Formulation (4): the perspective reformulation of the big-M program."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spr_or.formulations.problem import SparseTrainingProblem

# A solver may violate a row by an absolute tolerance (1e-9), and near w = 0 both sides of the cone
# are smaller than that. With this scale, t can gain less than 1e-6 of the optimum there.
_SCALE = 1e4


def penalty(w: Tensor, y: Tensor, alpha: float) -> Tensor:
    """alpha ||w||^2 / y + (1 - alpha) y of each entity: w (..., N, k), y (..., N) -> (..., N); eq. (4).

    The closure of the perspective at y = 0: 0 where w = 0, +inf elsewhere.

    >>> w, y = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([0.5, 0.0])
    >>> penalty(w, y, alpha=0.5).tolist()
    [25.25, 0.0]
    """
    squared = w.square().sum(-1)
    closure = torch.where(squared > 0, math.inf, 0.0).to(squared)
    quadratic = torch.where(y > 0, squared / torch.where(y > 0, y, 1.0), closure)
    return alpha * quadratic + (1 - alpha) * y


def build(problem: SparseTrainingProblem, relaxed: bool = False) -> Any:
    r"""The Pyomo model of eq. (4); ``relaxed`` lets the indicators range over [0, 1].

    ||w^i||^2 in (1) becomes its perspective ||w^i||^2 / y_i, with the value 0 at w^i = 0, y_i = 0,
    which is the epigraph variable t_i of a rotated cone:

    .. math::
        \min\;& L(w) + \lambda \sum_i u_i \bigl[\alpha t_i + (1-\alpha) y_i\bigr] &(4)\\
        & \lVert w^i\rVert^2 \le t_i y_i,\; t_i \ge 0                             \\
        & -M_i y_i \le w_j \le M_i y_i \qquad \forall i, j \in i                  &(2)\\
        & y_i \in \{0, 1\}                                                        &(3)

    Names as in `bigm.build`, with ``t`` and ``cone`` beside them; alpha = 0 needs neither.  At the
    optimum t_i = ||w^i||^2 / y_i <= k_i M_i^2 y_i, hence its upper bound.
    """
    import pyomo.environ as pyo

    from spr_or.formulations import pyomo_model

    m = pyomo_model.start(problem, relaxed)  # w, y of (3), loss L(w)
    lam, alpha, u, M = problem.lam, problem.alpha, problem.u.tolist(), problem.M.tolist()
    m.upper = pyo.Constraint(m.members, rule=lambda m, i, j: m.w[j] <= M[i] * m.y[i])  # (2)
    m.lower = pyo.Constraint(m.members, rule=lambda m, i, j: m.w[j] >= -M[i] * m.y[i])
    k = problem.entities.sizes.tolist()
    m.t = pyo.Var(list(m.y) if alpha > 0 else [], bounds=lambda m, i: (0, k[i] * M[i] ** 2))
    m.cone = pyo.Constraint(
        list(m.t), rule=lambda m, i: _SCALE * pyomo_model.squares(m, i) <= _SCALE * m.t[i] * m.y[i]
    )
    penalties = [u[i] * ((alpha * m.t[i] if alpha > 0 else 0) + (1 - alpha) * m.y[i]) for i in m.y]
    m.objective = pyo.Objective(expr=m.loss + lam * sum(penalties))  # (4)
    return m

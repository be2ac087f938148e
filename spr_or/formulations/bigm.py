"""Formulation (1)-(3): the big-M mixed-integer program of sparse training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from spr_or.formulations.problem import SparseTrainingProblem


def penalty(w: Tensor, y: Tensor, alpha: float) -> Tensor:
    """alpha ||w||^2 + (1 - alpha) y of each entity: w (..., N, k), y (..., N) -> (..., N); eq. (1).

    >>> import torch
    >>> penalty(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0]), alpha=0.5).item()
    13.0
    """
    return alpha * w.square().sum(-1) + (1 - alpha) * y


def build(problem: SparseTrainingProblem, relaxed: bool = False) -> Any:
    r"""The Pyomo model of eqs. (1)-(3); ``relaxed`` lets the indicators range over [0, 1].

    .. math::
        \min\;& L(w) + \lambda \sum_i u_i \bigl[\alpha \lVert w^i\rVert^2 + (1-\alpha) y_i\bigr] &(1)\\
        & -M_i y_i \le w_j \le M_i y_i \qquad \forall i, j \in i                                   &(2)\\
        & y_i \in \{0, 1\}                                                                         &(3)

    Variables ``w`` (P) and ``y`` (N), constraints ``upper`` and ``lower`` indexed by the pairs (i, j),
    expression ``loss``, objective ``objective``; `perspective.build` has the same names.
    """
    import pyomo.environ as pyo

    from spr_or.formulations import pyomo_model

    m = pyomo_model.start(problem, relaxed)  # w, y of (3), loss L(w)
    lam, alpha, u, M = problem.lam, problem.alpha, problem.u.tolist(), problem.M.tolist()
    m.upper = pyo.Constraint(m.members, rule=lambda m, i, j: m.w[j] <= M[i] * m.y[i])  # (2)
    m.lower = pyo.Constraint(m.members, rule=lambda m, i, j: m.w[j] >= -M[i] * m.y[i])
    penalties = [u[i] * (alpha * pyomo_model.squares(m, i) + (1 - alpha) * m.y[i]) for i in m.y]
    m.objective = pyo.Objective(expr=m.loss + lam * sum(penalties))  # (1)
    return m

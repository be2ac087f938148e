"""A linear problem as plain matrices, for the solvers that build their own models from it.

With theta = W.flatten(), the predictions of all samples and outputs are the vector A theta,
A = X (x) I_q, and problem (1)-(3) reads

    min  loss(A theta) + sum_j ridge_j theta_j^2 + sum_i cost_i y_i,   |theta_j| <= M_j y_owner(j)

with ridge_j = lambda alpha u_owner(j) and cost_i = lambda (1 - alpha) u_i.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.formulations.problem import SparseTrainingProblem

Array = NDArray[np.float64]


class LinearData(NamedTuple):
    """The matrices above, float64: A (n q, P), target (n q,), M, ridge (P,), cost (N,), owner (P,).

    ``target`` is y as the loss reads it: for softmax the class numbers, shape (n,), int64.
    """

    A: Array
    target: NDArray
    M: Array
    ridge: Array
    cost: Array
    owner: NDArray[np.int64]


def linear_data(problem: SparseTrainingProblem, route: str) -> LinearData:
    """The matrices of a linear problem, for the solver called ``route``; ``ValueError`` for a network
    and for the poisson loss.

    >>> p = SparseTrainingProblem.linear([[1.0, 2.0]], [1], [[0], [1]], lam=1, alpha=0.25, M=3)
    >>> data = linear_data(p, "conic")
    >>> data.A.tolist(), data.ridge.tolist(), data.cost.tolist(), data.owner.tolist()
    ([[1.0, 2.0]], [0.25, 0.25], [0.75, 0.75], [0, 1])
    """
    if not problem.convex:
        raise ValueError(
            f"{route} solves only linear problems, and {problem.name!r} is a network: "
            "use spr_or.solvers.scip"
        )
    if problem.loss == "poisson":
        raise ValueError(f"{route} does not take the poisson loss: use spr_or.solve")
    problem.need_plain(route)
    owner = np.empty(problem.entities.n_parameters, dtype=np.int64)
    for i, group in enumerate(problem.entities.groups):
        owner[list(group)] = i
    u = problem.u.numpy()
    return LinearData(
        A=np.kron(problem.X.numpy(), np.eye(problem.n_outputs)),
        target=problem.y.numpy().reshape(-1),
        M=problem.M.numpy()[owner],
        ridge=problem.lam * problem.alpha * u[owner],
        cost=problem.lam * (1 - problem.alpha) * u,
        owner=owner,
    )


def margin_split(problem: SparseTrainingProblem, data: LinearData) -> tuple[Array, Array, float]:
    r"""The absolute and the hinge loss as a linear program: (B, m, c) with

    .. math::  n\, loss(\theta) = \min \mathbf 1's^+ + c\, \mathbf 1's^-
               \quad\text{s.t.}\quad B\theta + s^+ - s^- = m,\; s^\pm \ge 0 .

    Absolute: the residual y - f, both signs cost 1.  Hinge: 1 - y f, whose negative part is free (c = 0);
    since y = +-1 it equals y (y - f), so that B = diag(y) A and m = 1.
    """
    if problem.loss == "hinge":
        return data.target[:, None] * data.A, np.ones_like(data.target), 0.0
    return data.A, data.target, 1.0

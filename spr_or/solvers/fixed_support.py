r"""The convex problem that is left once the indicators are fixed: training on a known support.

.. math::  \min_{|w_j| \le M_i}\; \frac1n \sum_m \ell(f(x_m; w), y_m)
           + \lambda \sum_{i: y_i = 1} u_i [\alpha \lVert w^i\rVert^2 + (1-\alpha)],
           \qquad w^i = 0 \text{ where } y_i = 0

Neither the closed form nor its proximal operator is used here, so that enumeration, which calls this
2^N times, is an independent check of both.  Smooth losses take Newton steps on the weights that are not
held at the box (for the squared loss: ridge regressions); the absolute and the hinge loss are a quadratic
program for Clarabel.

The bound needs only convexity.  For nu in the domain of the conjugate loss, with
g = X' nu / n + 2 ridge w,

.. math::  \text{loss} + \sum_j ridge_j v_j^2 \;\ge\; -\frac1n \sum_m \ell^*(\nu_m)
           - \sum_j ridge_j w_j^2 + \sum_j g_j v_j \qquad\text{for all } v,

and the last sum is at least -sum_j M_j |g_j| on the box.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.linear_data import Array, LinearData, linear_data, margin_split

Indices = NDArray[np.int64]

# The gap that Newton's method stops at, relative to max(1, value), and its cap on steps.
_GAP = 1e-11
_NEWTON_STEPS = 100
# Added to a Hessian relative to its trace, so that singular ones (alpha = 0) can be solved.
_REGULARISATION = 1e-13
_MAX_HALVINGS = 40
_CONIC_TOLERANCE = 1e-11
# Values this close, relative to max(1, value), differ by rounding; steps that gain no more than that
# are still taken while they lower the gap, which shows errors that the value no longer shows.
_ROUNDING = 1e-14


class SupportFit(NamedTuple):
    """The best weights on a support: (P,) float64, their value, and a lower bound on the best."""

    weights: Tensor
    value: float
    bound: float


def fit(problem: SparseTrainingProblem, y: Tensor) -> SupportFit:
    """Train the linear problem on the entities where ``y`` (N,) is 1; value and bound as in (1).

    Raises ``ValueError`` for a network and for indicators that are not 0 or 1.

    >>> X = [[1.0, 0.0], [0.0, 1.0]]
    >>> p = SparseTrainingProblem.linear(X, [1, 0], [[0], [1]], lam=0.5, alpha=0.5, M=2)
    >>> best = fit(p, torch.tensor([1, 0]))
    >>> best.weights.round(decimals=4).tolist(), round(best.value, 6), round(best.bound, 6)
    ([0.6667, 0.0], 0.416667, 0.416667)
    """
    data = _data(problem)
    chosen = np.asarray(y)
    if chosen.shape != data.cost.shape or not np.isin(chosen, (0, 1)).all():
        raise ValueError(f"y must hold 0 or 1 for each of {len(data.cost)} entities, got {y}")
    free = np.flatnonzero(chosen[data.owner])
    w, nu = (_newton if LOSSES[problem.loss].curvature else _quadratic_program)(problem, data, free)
    theta = np.zeros(len(data.M))
    theta[free] = w
    fixed = float(data.cost @ chosen)
    value, bound = _evaluate(problem, data, free, w, nu)
    return SupportFit(torch.from_numpy(theta), value + fixed, bound + fixed)


@lru_cache(maxsize=4)
def _data(problem: SparseTrainingProblem) -> LinearData:
    return linear_data(problem, "support.fit")


def _loss(problem: SparseTrainingProblem, f: Array) -> float:
    return float(LOSSES[problem.loss].value(_shaped(problem, f), problem.y).mean())


def _shaped(problem: SparseTrainingProblem, f: Array) -> Tensor:
    return torch.from_numpy(f).reshape(problem.n, problem.n_outputs)


def _evaluate(
    problem: SparseTrainingProblem, data: LinearData, free: Indices, w: Array, nu: Array
) -> tuple[float, float]:
    """Value and bound without the cost of the indicators; see the top of this file."""
    A, ridge = data.A[:, free], data.ridge[free]
    quadratic = float(ridge @ w**2)
    conjugate = float(LOSSES[problem.loss].conjugate(_shaped(problem, nu), problem.y).mean())
    g = A.T @ nu / problem.n + 2 * ridge * w
    return _loss(problem, A @ w) + quadratic, -conjugate - quadratic - float(
        data.M[free] @ np.abs(g)
    )


def _newton(problem: SparseTrainingProblem, data: LinearData, free: Indices) -> tuple[Array, Array]:
    """Projected Newton for the smooth losses: weights and nu = the loss gradient there.

    A weight at its bound whose gradient pushes outwards is held; the others take a Newton step,
    clipped to the box and halved until the value falls (Bertsekas, SIAM J. Control Optim. 20, 1982).
    """
    A, M, ridge = data.A[:, free], data.M[free], data.ridge[free]
    n = problem.n
    w, f = np.zeros(len(free)), np.zeros(len(A))
    value = _loss(problem, f)
    gained = best_gap = math.inf
    best = (w, f)
    for _ in range(_NEWTON_STEPS):
        nu, curvature = _derivatives(problem, f)
        g = A.T @ nu / n + 2 * ridge * w
        scale = max(1.0, value)
        gap = float(w @ g + M @ np.abs(g))
        if gap < best_gap:
            best_gap, best = gap, (w, nu)
        elif abs(gained) <= _ROUNDING * scale:
            break
        if gap <= _GAP * scale:
            break
        inside = ~((np.abs(w) >= M) & (g * w < 0))
        step = np.zeros_like(w)
        B = A[:, inside]
        H = _hessian(B, curvature) / n + np.diag(2 * ridge[inside])
        H[np.diag_indices_from(H)] += _REGULARISATION * max(np.trace(H), 1.0)
        step[inside] = -np.linalg.solve(H, g[inside])
        for halving in range(_MAX_HALVINGS):
            trial = np.clip(w + step / 2**halving, -M, M)
            trial_f = A @ trial
            trial_value = _loss(problem, trial_f) + float(ridge @ trial**2)
            if trial_value <= value + 1e-4 * float(g @ (trial - w)) + _ROUNDING * scale:
                break
        gained, w, f, value = value - trial_value, trial, trial_f, trial_value
    return best


def _derivatives(problem: SparseTrainingProblem, f: Array) -> tuple[Array, Array]:
    """l'(f), flat (n q,), and l''(f), (n, q, q)."""
    loss, shaped = LOSSES[problem.loss], _shaped(problem, f)
    assert loss.hessian is not None
    gradient = loss.gradient(shaped, problem.y).numpy().reshape(-1)
    return gradient, loss.hessian(shaped, problem.y).numpy()


def _hessian(B: Array, curvature: Array) -> Array:
    """B' l'' B, where l'' (n, q, q) holds the diagonal blocks."""
    n, q, _ = curvature.shape
    if q == 1:
        return B.T @ (curvature.reshape(-1, 1) * B)
    return B.T @ (curvature @ B.reshape(n, q, -1)).reshape(n * q, -1)


class _SplitForm(NamedTuple):
    """min 1/2 x'Px + q'x over the cones below, x = (theta, s+, s-); columns are dropped per support."""

    constraints: Any  # rows B theta + s+ - s- = m, s+ >= 0, s- >= 0, theta <= M, -theta <= M; CSC
    right: Array
    quadratic: Array  # the diagonal of P
    linear: Array


@lru_cache(maxsize=4)
def _split_form(problem: SparseTrainingProblem) -> _SplitForm:
    from scipy import sparse

    data = _data(problem)
    B, m, negative = margin_split(problem, data)
    rows, columns = B.shape
    eye, box = sparse.identity(rows), sparse.identity(columns)
    constraints = sparse.bmat(
        [[B, eye, -eye], [None, -eye, None], [None, None, -eye], [box, None, None], [-box, None, None]],
        format="csc",
    )  # fmt: skip
    n = problem.n
    return _SplitForm(
        constraints,
        np.concatenate([m, np.zeros(2 * rows), data.M, data.M]),
        np.concatenate([2 * data.ridge, np.zeros(2 * rows)]),
        np.concatenate([np.zeros(columns), np.full(rows, 1 / n), np.full(rows, negative / n)]),
    )


def _quadratic_program(
    problem: SparseTrainingProblem, data: LinearData, free: Indices
) -> tuple[Array, Array]:
    """Absolute and hinge loss in the split form of `margin_split`; nu from the multipliers."""
    import clarabel
    from scipy import sparse

    form = _split_form(problem)
    rows, width = len(data.A), len(data.M)
    columns = np.concatenate([free, np.arange(width, len(form.linear))])
    cones = [clarabel.ZeroConeT(rows), clarabel.NonnegativeConeT(len(form.right) - rows)]
    P = sparse.diags_array(form.quadratic[columns], format="csc")
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.presolve_enable = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _CONIC_TOLERANCE
    solution = clarabel.DefaultSolver(
        P, form.linear[columns], form.constraints[:, columns], form.right, cones, settings
    ).solve()
    bound = data.M[free]
    w = np.clip(np.array(solution.x[: len(free)]), -bound, bound)
    nu = np.array(solution.z[:rows]) * problem.n
    if problem.loss == "hinge":
        nu = nu * data.target
    inside = LOSSES[problem.loss].project(_shaped(problem, nu), problem.y)
    return w, inside.numpy().reshape(-1)

r"""Formulation (5) by a first-order method: the proximal operator of z and the Fenchel dual.

Each round takes accelerated proximal gradient steps (`accelerated_gradient`).  These find which entities
are zero, which weights touch M y and which indicators are 1.  There the problem is smooth, and the
round goes on with Newton steps, which bad conditioning does not slow down.

The absolute and the hinge loss are replaced by smooth minorants, tight at the multipliers nu' of the
round before (the proximal method of multipliers: Rockafellar, Math. Oper. Res. 1, 1976):

.. math::  \ell_\mu(f) = \max_\nu\; \langle\nu, f\rangle - \ell^*(\nu)
           - \tfrac\mu2 \lVert\nu - \nu'\rVert^2 .

The best value and the best dual bound of the original problem decide when to stop.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.formulations import perspective, projected
from spr_or.formulations.losses import LOSSES, Loss
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.accelerated_gradient import Iterate, advance
from spr_or.solvers.certificate import Certificate, Solved, certify
from spr_or.solvers.linear_data import linear_data
from spr_or.solvers.time_limit import TimeLimit

Bound = float | Tensor

_MAX_ROUNDS = 2000
_PROXIMAL_STEPS = 10
_NEWTON_STEPS = 10
# mu of the first minorant, relative to the spread of the targets, and how it falls.
_FIRST_SMOOTHING, _SMOOTHING_FACTOR = 0.1, 0.5
# A minorant is solved until its gap is this share of the problem's.
_INNER_SHARE = 0.1
# |w_j| within this of M y, relatively, counts as touching: the proximal operator clips exactly.
_TOUCH = 1e-9
# The smallest damping of a Newton step, relative to the curvature along each coordinate, and the
# smallest such curvature relative to the largest.
_DAMPING, _LARGEST_DAMPING, _SMALLEST_SCALE = 1e-13, 1e6, 1e-9


def solve(
    problem: SparseTrainingProblem,
    gap: float = 1e-7,
    time_limit: float | None = None,
    lower: Bound = 0.0,
    upper: Bound = 1.0,
) -> Certificate:
    """The projected optimum of a linear problem, to a duality gap of ``gap`` max(0.1, |objective|).

    ``lower`` <= y <= ``upper`` (numbers or (N,)) restrict the indicators, as in a node of a branch
    and bound.  When stopped by ``time_limit`` (seconds) or Ctrl-C, or unable to close the gap, the
    certificate holds the best point and bound so far.

    Raises ``ValueError`` for a network.

    >>> X = [[1.0, 0.0], [0.0, 1.0]]
    >>> p = SparseTrainingProblem.linear(X, [1, 0], [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> certificate = solve(p)
    >>> certificate.status, round(certificate.objective, 6), certificate.gap < 1e-6
    ('optimal', 0.095, True)
    """
    clock = TimeLimit(time_limit)
    task = _Task.of(problem, lower, upper)
    best = _Best(task, gap)
    status = "optimal"  # unless something else ends the rounds; the certificate checks the gap
    try:
        smooth = _SmoothLoss.of(task)
        w = best.w
        for _ in range(_MAX_ROUNDS):
            if clock.spent:
                status = "time_limit"
                break
            w = _newton_steps(task, smooth, _proximal_steps(task, smooth, w))
            nu = smooth.gradient(task.predict(w))
            best.offer(w, nu)
            if best.closed:
                break
            smooth = smooth.tightened(task, w, nu)
    except KeyboardInterrupt:
        status = "interrupted"
    return certify(
        problem,
        Solved("projected", "relaxed", "first-order", version("spr-or")),
        status=status,
        bound=best.bound,
        seconds=clock.seconds,
        weights=problem.entities.flat(best.w),
        indicators=task.indicator(best.w),
    )


class _Task(NamedTuple):
    """The problem in the form that the iterations use; A is (n q, N k_max), padding columns zero."""

    problem: SparseTrainingProblem
    loss: Loss
    A: Tensor
    price: Tensor  # lambda u, (N,)
    lower: Tensor
    upper: Tensor
    occupied: Tensor  # which slots of the rows hold a weight, (N, k_max)
    scales: tuple[Tensor, float]

    @classmethod
    def of(cls, problem: SparseTrainingProblem, lower: Bound, upper: Bound) -> _Task:
        A = torch.from_numpy(linear_data(problem, "first_order").A)
        padded = torch.cat([A, A.new_zeros(len(A), 1)], dim=1)
        price = problem.lam * problem.u
        low, high = (torch.as_tensor(b).to(price).expand_as(price) for b in (lower, upper))
        columns = padded[:, problem.entities.index.flatten()]
        occupied = problem.entities.index < problem.entities.n_parameters
        scales = _scales(columns, len(price))
        return cls(problem, LOSSES[problem.loss], columns, price, low, high, occupied, scales)

    def predict(self, w: Tensor) -> Tensor:
        return (self.A @ w.flatten()).reshape(self.problem.n, -1)

    def pull(self, nu: Tensor) -> Tensor:
        """A' nu / n as rows: the gradient of the loss, if nu is that of its pieces."""
        rows = (self.A.T @ nu.flatten()) / self.problem.n
        return rows.reshape(len(self.price), -1)

    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        return projected.prox(
            v, step * self.price, self.problem.alpha, self.problem.M,
            lower=self.lower, upper=self.upper,
        )  # fmt: skip

    def indicator(self, w: Tensor) -> Tensor:
        y = projected.indicator(w, self.problem.alpha, self.problem.M)
        return torch.minimum(torch.maximum(y, self.lower), self.upper)

    def clip(self, w: Tensor, y: Tensor) -> Tensor:
        """w moved to |w| <= M y, where y is first moved into its bounds."""
        reach = torch.minimum(torch.maximum(y, self.lower), self.upper) * self.problem.M
        return torch.maximum(torch.minimum(w, reach.unsqueeze(-1)), -reach.unsqueeze(-1))

    def penalty(self, w: Tensor) -> float:
        """lambda sum u_i z(w^i) under the bounds on the indicators."""
        return float(self.price @ perspective.penalty(w, self.indicator(w), self.problem.alpha))

    def value(self, w: Tensor) -> float:
        loss = self.loss.value(self.predict(w), self.problem.y).mean()
        return float(loss) + self.penalty(w)

    def bound(self, nu: Tensor) -> float:
        return float(self.problem.dual_bound(nu, self.lower, self.upper))


def _scales(A: Tensor, count: int) -> tuple[Tensor, float]:
    """The size of each entity's columns, (N,), and the norm of A with its columns divided by it."""
    norms = torch.linalg.vector_norm(A, dim=0).reshape(count, -1)
    d = torch.linalg.vector_norm(norms, dim=-1)
    d = torch.where(d > 0, d, 1.0)
    scaled = A / d.repeat_interleave(norms.shape[1])
    return d, max(float(torch.linalg.matrix_norm(scaled, ord=2)), 1e-12)


class _Best:
    """The best weights and the best dual bound seen, which need not belong to one point."""

    def __init__(self, task: _Task, gap: float) -> None:
        self._task, self._gap = task, gap
        self.w = torch.zeros(task.problem.entities.index.shape, dtype=torch.float64)
        self.value, self.bound = math.inf, -math.inf
        nothing = task.loss.gradient(task.predict(self.w), task.problem.y)
        self.offer(self.w, nothing)

    def offer(self, w: Tensor, nu: Tensor) -> None:
        value = self._task.value(w)
        if value < self.value:
            self.w, self.value = w, value
        self.bound = max(self.bound, self._task.bound(nu))

    @property
    def closed(self) -> bool:
        return self.value - self.bound <= self._gap * max(0.1, abs(self.value))


class _SmoothLoss(NamedTuple):
    """The loss itself if it is smooth (mu = 0), else its minorant around ``center`` (n, q)."""

    loss: Loss
    y: Tensor
    center: Tensor
    mu: float

    @classmethod
    def of(cls, task: _Task) -> _SmoothLoss:
        y = task.problem.y
        if task.loss.curvature is not None:
            return cls(task.loss, y, torch.zeros(0), 0.0)
        center = task.loss.project(torch.zeros_like(y), y)
        return cls(task.loss, y, center, _FIRST_SMOOTHING * max(float(y.abs().mean()), 1e-6))

    @property
    def curvature(self) -> float:
        return self.loss.curvature or 1 / self.mu

    def _raw(self, f: Tensor) -> Tensor:
        # l*(nu) = <nu, y> on its domain for both losses: the maximiser before it is projected.
        return self.center + (f - self.y) / self.mu

    def value(self, f: Tensor) -> float:
        """The mean over samples."""
        if self.mu == 0:
            return float(self.loss.value(f, self.y).mean())
        nu = self.gradient(f)
        return float((nu * (f - self.y)).sum() / len(f)) - self.distance(nu)

    def distance(self, nu: Tensor) -> float:
        """mu / 2 ||nu - center||^2, the mean over samples."""
        if self.mu == 0:
            return 0.0
        return self.mu / 2 * float((nu - self.center).square().sum() / len(nu))

    def gradient(self, f: Tensor) -> Tensor:
        if self.mu == 0:
            return self.loss.gradient(f, self.y)
        return self.loss.project(self._raw(f), self.y)

    def hessian(self, f: Tensor) -> Tensor:
        if self.loss.hessian is not None:
            return self.loss.hessian(f, self.y)
        raw = self._raw(f)
        inside = self.loss.project(raw, self.y) == raw
        return torch.diag_embed(inside.to(f) / self.mu)

    def tightened(self, task: _Task, w: Tensor, nu: Tensor) -> _SmoothLoss:
        """The next minorant, once this one is solved well enough."""
        if self.mu == 0:
            return self
        bound = task.bound(nu)
        inner = self.value(task.predict(w)) + task.penalty(w) - (bound - self.distance(nu))
        if inner > _INNER_SHARE * (task.value(w) - bound):
            return self
        return self._replace(center=nu, mu=_SMOOTHING_FACTOR * self.mu)


def _proximal_steps(task: _Task, smooth: _SmoothLoss, w: Tensor) -> Tensor:
    """Accelerated proximal gradient steps of 1 / L_i, L_i at least the curvature along entity i."""
    d, norm = task.scales
    L = smooth.curvature / task.problem.n * (norm * d) ** 2
    metric = L.unsqueeze(-1)

    def proximal_step(v: Tensor) -> Tensor:
        slope = task.pull(smooth.gradient(task.predict(v[0])))
        return task.prox(v[0] - slope / metric, 1 / L).unsqueeze(0)

    iterate = Iterate.from_rest(w.unsqueeze(0))
    for _ in range(_PROXIMAL_STEPS):
        iterate = advance(iterate, proximal_step, metric)
    return iterate.at[0]


def _newton_steps(task: _Task, smooth: _SmoothLoss, w: Tensor) -> Tensor:
    """Damped Newton steps on the face that w lies on, while they lower the objective itself.

    The damping falls while full steps succeed and rises where they do not: the Hessian of a face may
    be singular, and the face may end.
    """

    def objective(w: Tensor) -> float:
        return smooth.value(task.predict(w)) + task.penalty(w)

    value, damping = objective(w), _DAMPING
    for _ in range(_NEWTON_STEPS):
        face = _face(task, smooth, w)
        while face is not None and damping <= _LARGEST_DAMPING:
            dw, dy, slope = face.direction(damping)
            trial = task.clip(w + dw, task.indicator(w) + dy)
            trial_value = objective(trial)
            if slope < 0 and trial_value <= value + 1e-4 * slope:
                break
            damping *= 10
        else:
            break
        gained, w, value = value - trial_value, trial, trial_value
        damping = max(damping / 100, _DAMPING)
        if gained <= 1e-16 * abs(value):
            break
    return w


class _Face(NamedTuple):
    """The quadratic model of the objective in the free coordinates x of a face: (w, y) = E x + e."""

    E_w: Tensor  # (N, k_max, size)
    E_y: Tensor  # (N, size)
    gradient: Tensor
    hessian: Tensor
    scale: Tensor  # (size,), what damping is relative to: the largest curvature along each of x

    def direction(self, damping: float) -> tuple[Tensor, Tensor, float]:
        """The Newton step in w and in y, and the slope of the objective along it."""
        damped = self.hessian + damping * torch.diag(self.scale)
        dx, failed = torch.linalg.solve_ex(damped, -self.gradient)
        if failed or not bool(dx.isfinite().all()):
            dx = torch.zeros_like(dx)
        return self.E_w @ dx, self.E_y @ dx, float(self.gradient @ dx)


def _face(task: _Task, smooth: _SmoothLoss, w: Tensor) -> _Face | None:
    r"""The face of w, or None if it is a single point.

    Zero entities, weights with |w_j| = M y and indicators at a bound stay as they are, unless the
    objective falls when they move (Bertsekas, SIAM J. Control Optim. 20, 1982).  The others are
    free: (w, y) = E x + e, and the objective in x is loss + lambda sum u_i penalty_i with the
    perspective penalty (4), whose minimum over y is z.  Along (dw, dy) its second derivative is
    2 alpha (dw - (w / y) dy)^2 / y.
    """
    problem, alpha = task.problem, task.problem.alpha
    y = task.indicator(w)
    M, price = problem.M.unsqueeze(-1), task.price.unsqueeze(-1)
    on = (w != 0).any(-1, keepdim=True)
    f = task.predict(w)
    raised = torch.where(y > 0, y, 1.0).unsqueeze(-1)
    s = w / raised
    per_w = task.pull(smooth.gradient(f)) + price * 2 * alpha * s
    per_y = task.price * ((1 - alpha) - alpha * s.square().sum(-1))

    at_lower, at_upper = y <= task.lower * (1 + _TOUCH), y >= task.upper * (1 - _TOUCH)
    touching = on & (w.abs() >= M * y.unsqueeze(-1) * (1 - _TOUCH))
    held = touching & ~(at_upper.unsqueeze(-1) & (per_w * w > 0))
    free_w = on & ~held & task.occupied
    free_y = on.squeeze(-1) & ~at_lower & ~at_upper
    moved = torch.where(held, w.sign() * M, 0.0)  # how w follows y
    size_w, size = int(free_w.sum()), int(free_w.sum() + free_y.sum())
    if size == 0:
        return None
    E_y = w.new_zeros(*y.shape, size)
    E_y[free_y, torch.arange(size_w, size)] = 1
    E_w = moved.unsqueeze(-1) * E_y.unsqueeze(-2)
    E_w[free_w, torch.arange(size_w)] = 1
    g = per_w.flatten() @ E_w.reshape(-1, size) + per_y @ E_y

    A = (task.A @ E_w.reshape(-1, size)).reshape(*f.shape, size)
    H = A.reshape(-1, size).T @ (smooth.hessian(f) @ A).reshape(-1, size) / problem.n
    bend = (E_w - s.unsqueeze(-1) * E_y.unsqueeze(-2)).reshape(-1, size)
    weight = (2 * alpha * price / raised).expand_as(w).reshape(-1, 1)
    H = H + bend.T @ (weight * bend)
    scale = H.diagonal() + smooth.curvature * A.square().sum((0, 1)) / problem.n
    scale = scale + _SMALLEST_SCALE * scale.max()
    return _Face(E_w, E_y, g, H, scale)

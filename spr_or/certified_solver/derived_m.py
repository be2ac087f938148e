r"""M auto: a bound on the weights of every optimum of the problem without bounds, proven from the data.

The search and the perspective need some M, and an M chosen too small cuts off the optimum unseen.
This file derives one from the data and an incumbent.  docs/explanation/derived-m.md has the
proofs; in short, with U the value of the incumbent,
F(w) = loss + sum_i ridge_i ||w^i||^2 (ridge_i = lambda u_i alpha,
price_i = lambda u_i (1 - alpha)), and w* optimal with w*^i not zero:

0. F(w*) <= U - price_i, since w* pays for entity i.
1. Any loss that is not negative, alpha > 0: |w*_j| <= sqrt((U - price_i) / ridge_i).
2. Squared loss, Q = X'X/n + diag(ridge), W^ the minimum of F, s = F(0) - F(W^).  F is its minimum
   plus ||w - W^||_Q^2, and w*, the minimum over its own support, lies on the sphere with diameter
   from 0 to W^ (Thales), so that

   .. math:: |w^*_j| \le \min\Bigl\{ |\hat w_j| + \sqrt{(U - price_i - F(\hat w))\,\kappa_j},\;
                \tfrac12 \bigl(|\hat w_j| + \sqrt{s\,\kappa_j}\bigr)\Bigr\},
                \qquad \kappa_j = (Q^{-1})_{jj} .

3. Any dual point nu with slope g = X' nu / n and dual bound D, alpha > 0, with D_i what D becomes
   when entity i has to be in use and is not bounded:

   .. math:: |w^*_j| \le \frac{|g_j|}{2\,ridge_i} + \sqrt{\frac{U - D_i}{ridge_i}} .

Rounding: in 2 every quantity is enclosed, with the residual of each linear system and a verified
smallest eigenvalue; values of the objective carry the allowance `proof_certificate.rounding` of every proof.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.design import Design, design_of, theta_of
from spr_or.certified_solver.proof_certificate import ProofCertificate, rounding
from spr_or.certified_solver.proof_tree import provably_semidefinite
from spr_or.certified_solver.search import SearchProgress
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations import bigm, projected
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.time_limit import TimeLimit

# No optimum touches the M in use: what `Certificate.m_active` then shows is an M chosen by hand.
CLEARANCE = 1e-3
# Up to here min(n, p) gives a matrix to factorise; above, bounds 1 and 3 have to do.
LARGEST_SYSTEM = 5000
# Entities that no optimum uses get a bound of this share of the largest, not 0, which is no bound.
_SMALLEST = 1e-3
_COLUMNS = 2048


class AutomaticBound(NamedTuple):
    """M (N,) and what proves it: weights (P,) of an incumbent and of a dual point (or None)."""

    M: Tensor
    incumbent: Tensor
    point: Tensor | None


def value_without_bounds(problem: SparseTrainingProblem, theta: Tensor) -> float:
    """The objective of the problem without M at theta (P,): entities that are not zero are paid."""
    rows = problem.entities.rows(theta)
    used = (rows != 0).any(-1).to(theta)
    return float(problem.objective(theta, bigm.penalty(rows, used, problem.alpha)))


def weight_bounds(
    problem: SparseTrainingProblem, incumbent: Tensor, point: Tensor | None = None
) -> Tensor:
    """Bounds (N,) on |w^i_j| in every optimum of the linear problem without bounds; see the top.

    Parameters
    ----------
    problem : squared or logistic loss; its M is not used
    incumbent : weights (P,) of any solution; the better, the tighter the bounds
    point : weights (P,) whose loss gradient is the dual point of bound 3, such as the solution of
        the relaxation; None leaves bound 3 out

    With these bounds or larger ones in the place of M the optimal value and the optimal solutions
    are those of the problem without bounds.  Raises ``ValueError`` where no finite bound exists.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=1)
    >>> bounds = weight_bounds(p, torch.tensor([1.8, 0.0]))  # the optimum is (1.818..., 0)
    >>> bool(bounds[0] > 1.81), bool(bounds[0] < 2.2)
    (True, True)
    """
    if problem.loss != "squared" and problem.alpha == 0:
        raise ValueError(
            "M auto needs alpha > 0 for the logistic loss: without a quadratic penalty the weights "
            "of separable data grow without end; take an alpha > 0 or give M as a number"
        )
    design = design_of(problem)
    incumbent = incumbent.double()
    level = value_without_bounds(problem, incumbent) + rounding(problem)
    table = _ridge_bounds(design, level)
    if problem.loss == "squared" and min(design.X.shape) <= LARGEST_SYSTEM:
        table = torch.minimum(table, _ellipsoid_bounds(_ellipsoid(problem), design, level))
    elif problem.alpha == 0:
        raise ValueError(
            f"M auto needs alpha > 0 above {LARGEST_SYSTEM} columns: take an alpha > 0 or give M "
            f"as a number"
        )
    bounds = problem.entities.rows(theta_of(problem, design, table))
    if point is not None and problem.alpha > 0:
        boxed = dataclasses.replace(problem, M=_positive(bounds.amax(-1)))
        bounds = torch.minimum(bounds, _dual_bounds(boxed, level, point))
    return _positive(bounds.amax(-1))


def solve_without_bounds(
    problem: SparseTrainingProblem,
    gap: float = 1e-4,
    time_limit: float | None = None,
    device: str | torch.device = "cpu",
    *,
    start: Tensor | None = None,
    progress: Callable[[SearchProgress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[ProofCertificate, AutomaticBound]:
    """Solve the linear problem as if M were infinite: `branch_and_bound` with an M proven here.

    A first round of the search, with bounds from ``start`` (or from zero weights), gives an incumbent
    and a dual point; the bounds these two prove serve the search proper.  Arguments, time limit,
    ``stop`` and Ctrl-C as in `branch_and_bound`; ``problem.M`` is not used.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=1)
    >>> certificate, bound = solve_without_bounds(p)
    >>> round(float(certificate.weights[0]), 6), bool(certificate.m_active.any())
    (1.818182, False)
    """
    clock = TimeLimit(time_limit)
    incumbent = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    if start is not None and value_without_bounds(problem, start) < value_without_bounds(
        problem, incumbent
    ):
        incumbent = start
    found = AutomaticBound((1 + CLEARANCE) * weight_bounds(problem, incumbent), incumbent, None)
    pilot = branch_and_bound(
        dataclasses.replace(problem, M=found.M), gap, _left(clock), device=device, start=start,
        progress=progress, stop=lambda: True,
    )  # fmt: skip
    if not pilot.trace or pilot.status == "optimal" or clock.spent or stop():
        return pilot, found
    try:
        tight = _tightened(problem, pilot)
        certificate = branch_and_bound(
            dataclasses.replace(problem, M=tight.M), gap, _left(clock), device=device,
            start=pilot.weights, progress=progress, stop=stop,
        )  # fmt: skip
    except KeyboardInterrupt:
        return pilot, found
    return certificate, tight


def _tightened(problem: SparseTrainingProblem, pilot: ProofCertificate) -> AutomaticBound:
    """The bounds from the incumbent of a first round and the point of its root."""
    root = pilot.proof.records[0]
    design = design_of(problem)
    W = torch.zeros(design.shape, dtype=torch.float64)
    W[root.entities] = root.W
    point = theta_of(problem, design, W)
    tight = (1 + CLEARANCE) * weight_bounds(problem, pilot.weights, point)
    return AutomaticBound(torch.minimum(tight, pilot.problem.M), pilot.weights, point)


def _left(clock: TimeLimit) -> float | None:
    return None if clock.limit == float("inf") else clock.left()


def _positive(bounds: Tensor) -> Tensor:
    largest = float(bounds.max())
    return bounds.clamp(min=_SMALLEST * largest if largest > 0 else 1.0)


def _levels(design: Design, level: float) -> Tensor:
    """U - price_i (N, 1, 1), at least 0: what F may be where entity i is in use."""
    return (level - design.price).clamp(min=0).view(-1, 1, 1)


def _ridge_bounds(design: Design, level: float) -> Tensor:
    """Bound 1, (N, k, q); infinite for alpha = 0."""
    if design.alpha == 0:
        return torch.full(design.shape, torch.inf, dtype=torch.float64)
    bounds = (_levels(design, level) / design.ridge.view(-1, 1, 1)).sqrt()
    return (1 + 1e-12) * bounds.expand(design.shape)


def _dual_bounds(problem: SparseTrainingProblem, level: float, point: Tensor) -> Tensor:
    """Bound 3 in the layout of `Entities.rows`; ``problem.M`` bounds the other entities."""
    nu = LOSSES[problem.loss].gradient(problem.predict(point), problem.y)
    unit = problem.lam * problem.u
    ridge, price = unit * problem.alpha, unit * (1 - problem.alpha)
    gamma = _gamma(problem.n + problem.X.shape[1] + 10)
    rows = problem.entities.rows
    g = rows((problem.X.mT @ nu).flatten()) / problem.n
    error = gamma * rows((problem.X.abs().mT @ nu.abs()).flatten()) / problem.n
    # The others alone prove D + lambda u_i z*_i; entity i adds g.w + ridge ||w||^2 + price.
    share: Tensor = unit * projected.conjugate(-g / unit.unsqueeze(-1), problem.alpha, problem.M)
    others = float(problem.dual_bound(nu)) - rounding(problem) + share
    largest = (g.abs() + error).square().sum(-1) / (4 * ridge)
    slack = (level - others - price + (1 + gamma) * largest).clamp(min=0)
    root = (slack / ridge).sqrt().unsqueeze(-1)
    return ((g.abs() + error) / (2 * ridge).unsqueeze(-1) + root) * (1 + 1e-12)


class _Inverse(NamedTuple):
    """Of Q = X'X/n + diag(D): upper bounds of diag(Q^-1) (p,), W^ = Q^-1 X'Y/n (p, q) about, and
    a proven lower bound of the smallest eigenvalue."""

    diagonal: Tensor
    solution: Tensor
    smallest: float


class _Ellipsoid(NamedTuple):
    """Of bound 2, on the safe side: |W^| (N, k, q), kappa (N, k, 1), s, and F(W^) from below."""

    centre: Tensor
    kappa: Tensor
    gain: float
    floor: float


def _ellipsoid_bounds(ellipsoid: _Ellipsoid, design: Design, level: float) -> Tensor:
    """Bound 2, (N, k, q)."""
    centre, kappa, gain, floor = ellipsoid
    ball = centre + ((_levels(design, level) - floor).clamp(min=0) * kappa).sqrt()
    thales = (centre + (gain * kappa).sqrt()) / 2
    return (1 + 1e-12) * torch.minimum(ball, thales) * design.real.unsqueeze(-1)


@lru_cache(maxsize=1)  # one problem is bounded twice: before and after the first round
def _ellipsoid(problem: SparseTrainingProblem) -> _Ellipsoid:
    design = design_of(problem)
    X, Y, n = design.X, design.Y, design.n
    at = design.columns[design.real]
    D = torch.zeros(X.shape[1], dtype=torch.float64)
    D[at] = design.ridge.unsqueeze(-1).expand(design.columns.shape)[design.real]
    inverse = _by_columns(X, Y, n, D) if X.shape[1] <= X.shape[0] else _by_samples(X, Y, n, D)
    W, gamma = inverse.solution, _gamma(X.shape[0] + X.shape[1] + 10)
    # F(W), and half its gradient, which would be 0 at W^ itself; with what rounding can do to them.
    residual, size = X @ W - Y, X.abs() @ W.abs() + Y.abs()
    half = (X.mT @ residual / n + D.unsqueeze(-1) * W).abs()
    half += gamma * (X.abs().mT @ size / n + D.unsqueeze(-1) * W.abs())
    # ||W - W^||_Q^2 = <half, Q^-1 half> for each output, (q,)
    off = half.square().sum(0) / inverse.smallest
    if bool((D > 0).all()):
        off = torch.minimum(off, (half.square() / D.unsqueeze(-1)).sum(0))
    misfit = (residual.abs() - gamma * size).clamp(min=0).square().sum() / n
    at_W = float(misfit + (D.unsqueeze(-1) * W.square()).sum()) * (1 - gamma)
    floor = at_W - float(off.sum())
    gain = max(0.0, float(Y.square().sum() / n) * (1 + gamma) - floor)
    kappa = inverse.diagonal[design.columns].unsqueeze(-1)  # (N, k, 1)
    centre = W[design.columns].abs() + (off * kappa).sqrt()
    return _Ellipsoid(centre, kappa, gain, floor)


def _by_columns(X: Tensor, Y: Tensor, n: int, D: Tensor) -> _Inverse:
    """Through the p x p matrix Q.  With V about Q^-1 and the residual r = e_j - Q v of its column v,
    e_j'Q^-1 e_j = v_j + v'r + r'Q^-1 r."""
    rows, count = X.shape
    Q = X.mT @ X / n
    Q.diagonal().add_(D)
    gamma, trace = _gamma(rows + count + 10), float(Q.diagonal().sum())
    factor, failed = torch.linalg.cholesky_ex(Q)
    if int(failed):
        raise _dependent()
    V = torch.cholesky_inverse(factor)
    # The norm of what rounding did to Q is at most gamma ||(|X|'|X|)/n|| <= gamma trace(Q).
    trial = 0.5 / float(torch.linalg.matrix_norm(V))
    shifted = Q.clone()
    shifted.diagonal().sub_(trial)
    proven = trial - gamma * trace if provably_semidefinite(shifted) else 0.0
    smallest = max(proven, float(D.min()))
    if not smallest > 0:
        raise _dependent()
    residual = -(Q @ V)
    residual.diagonal().add_(1)
    lengths = torch.linalg.vector_norm(V, dim=0)
    r = torch.linalg.vector_norm(residual, dim=0) + 2 * gamma * trace * lengths
    diagonal = V.diagonal() + lengths * r + r.square() / smallest
    return _Inverse(diagonal, torch.cholesky_solve(X.mT @ Y / n, factor), smallest)


def _by_samples(X: Tensor, Y: Tensor, n: int, D: Tensor) -> _Inverse:
    """Through the matrix T = I + A A' of the samples, A = X (nD)^-1/2 with columns a_j (Woodbury).

    (Q^-1)_jj = (1 - a_j'T^-1 a_j) / D_j, and a'T^-1 a >= 2 a'z - z'T z for any z.
    """
    if not bool((D > 0).all()):
        raise _dependent()
    rows, count = X.shape
    scale = (n * D).rsqrt()
    T = torch.eye(rows, dtype=torch.float64)
    blocks = torch.arange(count).split(_COLUMNS)
    for block in blocks:
        A = X[:, block] * scale[block]
        T += A @ A.mT
    factor = torch.linalg.cholesky(T)
    gamma, trace = _gamma(rows + count + 10), float(T.diagonal().sum())
    target = torch.cholesky_solve(Y, factor) / n
    diagonal, solution = torch.empty_like(D), D.new_empty((count, Y.shape[1]))
    for block in blocks:
        A = X[:, block] * scale[block]
        Z = torch.cholesky_solve(A, factor)
        a, z = torch.linalg.vector_norm(A, dim=0), torch.linalg.vector_norm(Z, dim=0)
        product = 2 * (A * Z).sum(0) - (Z * (T @ Z)).sum(0)
        product -= gamma * (2 * a * z + 2 * trace * z.square())
        diagonal[block] = (1 - product) / D[block]
        solution[block] = X[:, block].mT @ target / D[block].unsqueeze(-1)
    return _Inverse(diagonal.minimum(1 / D), solution, float(D.min()))


def _gamma(operations: int) -> float:
    """k u / (1 - k u): the relative error of a sum of k products (Higham, Accuracy and Stability)."""
    unit = torch.finfo(torch.float64).eps / 2
    return operations * unit / (1 - operations * unit)


def _dependent() -> ValueError:
    return ValueError(
        "M auto found no finite bound: with alpha = 0 the columns must be linearly independent, and "
        "these are not (to rounding); take an alpha > 0, remove columns, or give M as a number"
    )

r"""The best curvature for clusters of entities, at one node: a semidefinite program by Newton's method.

The bound of `bounds` for clusters is a concave function of the block diagonal D and of the slope u =
2 (c - Rw), R = Q - D.  Several outputs share D and the supports, and each has its c, u and w; products of
these are summed over outputs.  With one block D_C a cluster, omega_S = D_SS^{-1} u_S / 2, and a logarithm of
sums in place of the maximum over supports (within tau log 2^s of it), we maximise

.. math::  F(D, u) = c_0 - \tfrac14 (2c - u)' R^{-1} (2c - u)
           - \tau \sum_C \log \sum_S \exp\bigl[(\tfrac12 u_S'\omega_S - p_S) / \tau\bigr]
           + \mu \log\det R + \nu \log\det D .

With the softmax weights pi_S of the supports, an indicator is y_i = sum of pi_S over the S with i, and
w = R^{-1} (2c - u) / 2 is the tangent point.  The box is left out of the search; the bound has it.

**Derivatives** of -F: in u, the mean of omega minus w; in D, w w' minus the mean of omega omega' plus
mu R^{-1} - nu D^{-1}, on the blocks.  The second derivative along (dD, du) is

.. math::  q(R^{-1}, w) + \sum_S \pi_S\, q(D_{SS}^{-1}, \omega_S) + \mathrm{Var}_\pi[\dot g_S] / \tau
           + \mu \operatorname{tr}(R^{-1} dD\, R^{-1} dD) + \nu \operatorname{tr}(D^{-1} dD\, D^{-1} dD),

with q(A, v) = (du - 2 dD v)' A (du - 2 dD v) / 2 and the gain's own slope
g_S' = omega_S'du - omega_S' dD omega_S.  Only the terms with R^{-1} join clusters.  Newton's equations
are solved by conjugate gradients, preconditioned by the blocks of the clusters; a product costs
4 P^2 K operations.  Columns of dD are kept packed: the lower triangle of each block, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.bounds import on_supports
from spr_or.certified_solver.linear_algebra import hold

_ENTROPY = 3.0  # tau / mu
_BARRIER = 0.02  # nu / mu
_CG_STEPS = 100
_CG_ACCURACY = 0.1
_NEGLIGIBLE = 1e-9  # weight of a support
# Newton's decrement in units of mu; from further off the next smaller mu is out of reach.
_CENTRED = 0.5
_SMALLEST_STEP = 1e-6
_BACK, _RETREATS = 0.9, 100


class Clustered(NamedTuple):
    """One node in the order of its clusters: m clusters of s entities, K = s k columns, P = m K, q outputs.

    Q (P, P), c (P, q) and c0 : the quadratic; a dead column (padding, an entity fixed to zero) has a unit
    diagonal and nothing else.  live : (m, K) bool
    price : (m, s); table : (S, s) bool, all supports; allowed : (m, S) bool
    """

    Q: Tensor
    c: Tensor
    c0: Tensor
    live: Tensor
    price: Tensor
    table: Tensor
    allowed: Tensor


class ClusterPoint(NamedTuple):
    """D (m, K, K) and u (m, K, q) with what they bring: -F, w (P, q), the factors of R (P, P) and of all
    D_SS (m, S, K, K), omega (m, S, K, q), and pi (m, S)."""

    D: Tensor
    u: Tensor
    f: float
    w: Tensor
    L: Tensor
    factors: Tensor
    omega: Tensor
    pi: Tensor


def maximise(
    problem: Clustered, D: Tensor, u: Tensor, mu: float, steps: int, stop: Callable[[], bool]
) -> ClusterPoint:
    """At most ``steps`` Newton steps from D (m, K, K), with R and D definite, and u (m, K, q).

    ``stop`` is asked before each step.
    """
    return _Newton(problem, mu).run(D, u, steps, stop)


def blocks(A: Tensor, m: int) -> Tensor:
    """The diagonal blocks of A (P, P) as a view (m, K, K) that can be written to."""
    K = A.shape[0] // m
    return A.view(m, K, m, K).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


class _Newton:
    def __init__(self, problem: Clustered, mu: float) -> None:
        self.problem, self.mu, self.tau, self.nu = problem, mu, _ENTROPY * mu, _BARRIER * mu
        self.m, self.K = problem.live.shape
        self.P, self.q = self.m * self.K, problem.c.shape[1]
        device = problem.Q.device
        self.a, self.b = torch.tril_indices(self.K, self.K, device=device)
        self.count = len(self.a)
        # E_ab = f (e_a e_b' + e_b e_a') is the packed coordinate's matrix.
        self.f = torch.where(self.a == self.b, 0.5, 1.0).to(problem.Q)
        self.columns = problem.table.repeat_interleave(self.K // problem.table.shape[1], dim=1)
        live = problem.live
        slopes = live.repeat_interleave(self.q, dim=1)
        self.dead = ~torch.cat([live[:, self.a] & live[:, self.b], slopes], dim=1)

    def run(self, D: Tensor, u: Tensor, steps: int, stop: Callable[[], bool]) -> ClusterPoint:
        point = self.start(D, u)
        for _ in range(steps):
            if stop():
                break
            step, decrement = self.step(point)
            moved = self.line_search(point, step, decrement)
            if moved is None:
                break
            point = moved
            if decrement < _CENTRED * self.mu:
                break
        return point

    def start(self, D: Tensor, u: Tensor) -> ClusterPoint:
        """The point at D, or a little behind it where rounding leaves R indefinite at the very border."""
        for back in range(_RETREATS):
            point = self.point(_BACK**back * D, u)
            if point is not None:
                return point
        raise ValueError("the curvature to start from is not positive definite, or larger than Q")

    def rest(self, D: Tensor) -> tuple[Tensor, bool]:
        """The Cholesky factor of R = Q - D, and whether there is one."""
        R = self.problem.Q.clone()
        blocks(R, self.m).sub_(D)
        L, info = torch.linalg.cholesky_ex(R)
        return L, int(info) == 0

    def point(self, D: Tensor, u: Tensor) -> ClusterPoint | None:
        """Everything at (D, u), or None where R or D is not definite."""
        problem = self.problem
        L, definite = self.rest(D)
        factors, info = torch.linalg.cholesky_ex(on_supports(D, self.columns))
        if not definite or bool(info.any()):
            return None
        right = 2 * problem.c - u.flatten(0, 1)
        w = 0.5 * torch.cholesky_solve(right, L)
        inside = u.unsqueeze(1) * self.columns.unsqueeze(-1)
        omega = 0.5 * torch.cholesky_solve(inside, factors)
        gain = 0.5 * (omega * inside).sum((-2, -1)) - problem.price @ problem.table.to(u).mT
        exponent = (gain / self.tau).masked_fill(~problem.allowed, -torch.inf)
        smooth = 0.5 * (right * w).sum() - problem.c0 + self.tau * exponent.logsumexp(-1).sum()
        barrier = self.mu * _logdet(L) + self.nu * _logdet(factors[:, -1]).sum()
        return ClusterPoint(
            D, u, float(smooth - barrier), w, L, factors, omega, exponent.softmax(-1)
        )

    def line_search(
        self, point: ClusterPoint, step: Tensor, decrement: float
    ) -> ClusterPoint | None:
        """Shrink until R and D stay definite, with a tenth to spare, and -F falls."""
        dD, du = self.unpack(step)
        size = 1.0
        while size > _SMALLEST_STEP:
            wide = point.D + 1.1 * size * dD
            if not (self.rest(wide)[1] and bool((torch.linalg.cholesky_ex(wide)[1] == 0).all())):
                size *= 0.7
                continue
            moved = self.point(point.D + size * dD, point.u + size * du)
            if moved is not None and moved.f <= point.f - 1e-3 * size * decrement:
                return moved
            size *= 0.5
        return None

    def step(self, point: ClusterPoint) -> tuple[Tensor, float]:
        """Newton's step, packed (m, count + K q), and its decrement."""
        m, K, q, n = self.m, self.K, self.q, self.count
        inverse = torch.cholesky_inverse(point.L)
        own = blocks(inverse, m).contiguous()
        w = point.w.view(m, K, q)
        used = (point.pi > _NEGLIGIBLE).any(0)
        pi, omega, columns = point.pi[:, used], point.omega[:, used], self.columns[used]
        D_inverse = torch.cholesky_inverse(point.factors[:, -1])
        on_used = torch.cholesky_inverse(point.factors[:, used])
        on_used = on_used * (columns.unsqueeze(-1) & columns.unsqueeze(-2))

        weighted = pi[..., None, None] * omega
        in_D = w @ w.mT - (weighted @ omega.mT).sum(1) + self.mu * own - self.nu * D_inverse
        in_u = weighted.sum(1) - w
        gradient = torch.cat([2 * self.f * in_D[:, self.a, self.b], in_u.flatten(1)], dim=1)
        gradient = gradient.masked_fill(self.dead, 0.0)

        local = self.matrix(on_used, omega, pi)
        local[:, :n, :n] += self.nu * self.trace_matrix(D_inverse)
        both = (omega[:, :, self.a] * omega[:, :, self.b]).sum(-1)
        slopes = torch.cat([-2 * self.f * both, omega.flatten(2)], dim=-1)
        mean = (pi.unsqueeze(-1) * slopes).sum(1)
        local += (slopes * (pi / self.tau).unsqueeze(-1)).mT @ slopes
        local -= _outer(mean, mean) / self.tau
        whole = local + self.matrix(own.unsqueeze(1), w.unsqueeze(1), w.new_ones(m, 1))
        whole[:, :n, :n] += self.mu * self.trace_matrix(own)
        precondition = _solver(whole, self.dead)

        def hessian(x: Tensor) -> Tensor:
            dD, du = self.unpack(x)
            pull = (0.5 * inverse @ (2 * (dD @ w) - du).flatten(0, 1)).view(m, K, q)
            moved = inverse.view(self.P, m, K).transpose(0, 1) @ dD  # the blocks of R^-1 dD
            moved = moved.transpose(0, 1).reshape(m, K, self.P)
            barrier = moved @ inverse.view(self.P, m, K).transpose(0, 1)
            both = pull @ w.mT
            in_D = both + both.mT + self.mu * barrier
            shared = torch.cat([2 * self.f * in_D[:, self.a, self.b], -pull.flatten(1)], dim=1)
            alone = (local @ x.unsqueeze(-1)).squeeze(-1)
            return (alone + shared).masked_fill(self.dead, 0.0)

        step = _conjugate_gradients(hessian, precondition, -gradient)
        return step, -float((gradient * step).sum())

    def unpack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """dD (m, K, K) and du (m, K, q)."""
        dD = x.new_zeros(self.m, self.K, self.K)
        dD[:, self.a, self.b] = dD[:, self.b, self.a] = x[:, : self.count]
        return dD, x[:, self.count :].view(self.m, self.K, self.q)

    def trace_matrix(self, A: Tensor) -> Tensor:
        """tr(A E_ab A E_cd) for symmetric A (m, K, K): (m, count, count)."""
        rows_a, rows_b = A[:, self.a], A[:, self.b]
        straight = rows_a[:, :, self.a] * rows_b[:, :, self.b]
        crossed = rows_a[:, :, self.b] * rows_b[:, :, self.a]
        return 2 * self.f.unsqueeze(-1) * self.f * (straight + crossed)

    def matrix(self, A: Tensor, v: Tensor, weight: Tensor) -> Tensor:
        """sum_S weight_S q(A_S, v_S) as matrices of second derivatives, (m, d, d) with d = count + K q, for
        A (m, S, K, K), v (m, S, K, q) and weight (m, S)."""
        m, S, K, q = v.shape
        n, a, b = self.count, self.a, self.b
        A = (weight[..., None, None] * A).flatten(-2)  # (m, S, K K)
        products = A.mT @ (v @ v.mT).flatten(-2)  # sum_S A_ac v_b v_d at (a c, b d)

        def gather(p: Tensor, q: Tensor) -> Tensor:
            """sum_S A_pp' v_q v_q' over packed pairs."""
            return products[:, p.unsqueeze(1) * K + p, q.unsqueeze(1) * K + q]

        def crossed(p: Tensor, q: Tensor) -> Tensor:
            """sum_S A_pq' v_q v_p' over packed pairs."""
            return products[:, p.unsqueeze(1) * K + q, q.unsqueeze(1) * K + p]

        H = v.new_zeros(m, n + K * q, n + K * q)
        mixed = gather(a, b) + gather(b, a) + crossed(a, b) + crossed(b, a)
        H[:, :n, :n] = 2 * self.f.unsqueeze(-1) * self.f * mixed
        # sum_S A_ja v_b at (j, a, b), for each output
        pull = (A.mT @ v.flatten(2)).view(m, K, K, K, q)
        mixed = -self.f.unsqueeze(-1) * (pull[:, :, a, b] + pull[:, :, b, a])
        H[:, n:, :n] = mixed.transpose(2, 3).reshape(m, K * q, n)
        H[:, :n, n:] = H[:, n:, :n].mT
        alone = 0.5 * A.sum(1).view(m, K, K)
        for output in range(q):
            H[:, n + output :: q, n + output :: q] = alone
        return H


_Map = Callable[[Tensor], Tensor]


def _conjugate_gradients(times: _Map, precondition: _Map, right: Tensor) -> Tensor:
    """An approximate solution x of times(x) = right."""
    x, residual = torch.zeros_like(right), right
    scaled = precondition(residual)
    direction = scaled
    size = first = float((residual * scaled).sum())
    for _ in range(_CG_STEPS):
        if size <= _CG_ACCURACY**2 * first or size <= 0:
            break
        product = times(direction)
        curvature = float((direction * product).sum())
        if curvature <= 0:
            break
        length = size / curvature
        x, residual = x + length * direction, residual - length * product
        scaled = precondition(residual)
        before, size = size, float((residual * scaled).sum())
        direction = scaled + size / before * direction
    return x


def _solver(matrices: Tensor, dead: Tensor) -> _Map:
    """Solves with matrices (m, d, d), which it changes, the dead coordinates (m, d) left out."""
    hold(matrices, dead)
    scale = matrices.diagonal(dim1=-2, dim2=-1).rsqrt()
    matrices = scale.unsqueeze(-1) * matrices * scale.unsqueeze(-2)
    matrices.diagonal(dim1=-2, dim2=-1).add_(1e-10)
    L, _ = torch.linalg.cholesky_ex(matrices)
    return lambda x: scale * torch.cholesky_solve((scale * x).unsqueeze(-1), L).squeeze(-1)


def _outer(v: Tensor, w: Tensor) -> Tensor:
    return v.unsqueeze(-1) * w.unsqueeze(-2)


def _logdet(L: Tensor) -> Tensor:
    return 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)

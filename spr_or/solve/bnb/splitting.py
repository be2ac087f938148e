r"""Node relaxations that move as much curvature of the loss as possible into the perspective term.

For the squared loss with one output, Q = G + diag(lambda u alpha), any diagonal D >= 0 with
R = Q - D positive semidefinite gives a valid bound (see `bounds`); which D is best is a semidefinite
program (Zheng, Sun, Li, 2014; Dong, Chen, Linderoth, 2015).  We solve the saddle problem

.. math::  \max_d \min_{y, w} \; w'Rw - 2c'w + \sum_i \bigl[\sum_j d_j w_j^2 / y_i + p_i y_i\bigr]
           + \mu \log\det R + \nu \sum_j \log d_j , \qquad |w_j| \le M_i,\; 0 \le y_i \le 1,

with p_i = lambda u_i (1 - alpha), by Newton's method in d around Newton's method in y.  (The box is M_i
y_i in the bound itself; here, where any d and w will do, M_i leaves fewer columns at their limit.)

**Given d and y**, w solves linear equations.  With omega_j = w_j / y_i, g = 2 (Rw - c) and S = sqrt(y),
omega_j = -g_j / (2 d_j) on the columns that do not touch the box, and there

.. math::  (S R S + D)\, (w / S) = S (c - R\, w_{clipped}),

which needs no division by y.  **The value phi(y)** is smooth and convex with derivative -h_i,
h_i = sum_j d_j omega_j^2 - p_i, so that phi(y) is within sum_i [h_i]_+ - y_i h_i of its minimum.  Its
Hessian is, with Omega = blockdiag(omega^i) on the columns not clipped and T = (S R S + D)^{-1} there,

.. math::  H = 2\,\Omega' \bigl(R - R S\, T\, S R\bigr) \Omega
           + \mathrm{diag} \sum_{clipped} 2 d_j \omega_j^2 / y_i .

No kink at w = 0, no case distinction.

**In d**, the derivative is t_j - mu (R^-1)_jj + nu / d_j with t_j = omega_j^2 y_i (1 - y_i): an entity wants
more curvature where its indicator is fractional.  Minus the second derivative, y and w eliminated, is

.. math::  \mu R^{-1} \circ R^{-1} + \nu / d^2 + 2\, \tau\tau' \circ (S T S) + E H^{-1} E',
           \qquad \tau_j = \omega_j (1 - y_i),\; E_{ji} = 2 \tau_j\, \partial w_j / \partial y_i
           - [j \in i]\, \omega_j^2 .

A node starts from its parent's d and y: D stays admissible when an entity leaves (a principal submatrix)
and when one is fixed to 1 (its d only falls), so that two steps in d are enough.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.solve.bnb.bounds import Penalty, Terms, dual_bound
from spr_or.solve.bnb.design import Design

_SHRINK = 0.5
_TRIALS = 10
_STEPS_Y = 30
_CLIP_ROUNDS = 25


class Nodes(NamedTuple):
    """A batch of nodes, each over its own active entities, padded with absent ones.

    position : (B, n) int64 into the design's entities (absent: 0); present, free, one : (B, n) bool
    y : (B, n), indicators to start from; d : (B, n, k), the moved curvature
    """

    position: Tensor
    present: Tensor
    free: Tensor
    one: Tensor
    y: Tensor
    d: Tensor


class Quadratic(NamedTuple):
    """What a batch of nodes needs of a design: Q (B, P, P), c (B, P), c0 (), and its penalty.

    Absent entities and padded columns have a unit diagonal and no weight."""

    Q: Tensor
    c: Tensor
    c0: Tensor
    real: Tensor
    penalty: Penalty


class Split(NamedTuple):
    """Of each node: w, d (B, n, k), bound (B,), score (B, n), indicator (B, n)."""

    w: Tensor
    d: Tensor
    bound: Tensor
    score: Tensor
    indicator: Tensor


def quadratic_of(design: Design, position: Tensor, present: Tensor) -> Quadratic:
    """Gather the quadratic of each node's entities."""
    assert design.moments is not None
    G, C, c0 = design.moments
    k = design.columns.shape[1]
    B, n = position.shape
    flat = (position.unsqueeze(-1) * k + torch.arange(k, device=G.device)).view(B, n * k)
    real = (design.real[position] & present.unsqueeze(-1)).view(B, n * k)
    pair = real.unsqueeze(-1) & real.unsqueeze(-2)
    Q = torch.where(pair, G[flat.unsqueeze(-1), flat.unsqueeze(-2)], 0.0)
    ridge = design.ridge[position].repeat_interleave(k, dim=-1)
    Q.diagonal(dim1=-2, dim2=-1).add_(torch.where(real, ridge, 1.0))
    weight = design.ridge + design.price
    penalty = Penalty(
        weight[position], design.ridge[position], design.price[position], design.M[position],
        design.alpha,
    )  # fmt: skip
    c = torch.where(real, C[flat].squeeze(-1), 0.0)
    return Quadratic(Q, c, c0, real.view(B, n, k), penalty)


def evaluate(quadratic: Quadratic, nodes: Nodes, mu: float, steps: int) -> Split:
    """Bound a batch of nodes after at most ``steps`` Newton steps in d (0: d as it comes)."""
    return _Batch(quadratic, nodes, mu).run(steps)


class _Inner(NamedTuple):
    """The answer to a given y (B, n): w, omega, gradient g and ``clipped`` (B, P), the factor of
    S R S + D, the scores h (B, n) and phi (B,)."""

    y: Tensor
    w: Tensor
    omega: Tensor
    clipped: Tensor
    L: Tensor
    h: Tensor
    phi: Tensor

    def gap(self) -> Tensor:
        """How far phi(y) can be above its minimum, (B,)."""
        return (self.h.clamp(min=0) - self.y * self.h).sum(-1)


class _Point(NamedTuple):
    """d (B, P) with R, its Cholesky factor, the minimising `_Inner` and the barrier's value (B,)."""

    d: Tensor
    R: Tensor
    L: Tensor
    inner: _Inner
    f: Tensor


class _Batch:
    """One batch in flat (B, P) form, P = n k."""

    def __init__(self, quadratic: Quadratic, nodes: Nodes, mu: float) -> None:
        self.quadratic, self.nodes, self.mu = quadratic, nodes, mu
        self.B, self.n, self.k = nodes.d.shape
        self.P = self.n * self.k
        self.Q, self.c = quadratic.Q, quadratic.c
        self.free = nodes.free
        self.movable = (nodes.free.unsqueeze(-1) & quadratic.real).view(self.B, self.P)
        self.barrier_d = 0.02 * mu
        self.price = torch.where(nodes.present, quadratic.penalty.price, 0.0)
        self.M = self.columns(quadratic.penalty.M)
        eye = torch.eye(self.n, dtype=self.Q.dtype, device=self.Q.device)
        self.membership = eye.repeat_interleave(self.k, dim=0)  # (P, n)
        # The gaps at which Newton's method in y stops: on the way, and at the end.
        scale = float(quadratic.c0.clamp(min=1e-30))
        self.loose, self.tight = max(0.1 * mu, 1e-9 * scale), 1e-9 * scale

    def columns(self, x: Tensor) -> Tensor:
        """(B, n) repeated over columns, (B, P)."""
        return x.repeat_interleave(self.k, dim=-1)

    def entity_sum(self, x: Tensor) -> Tensor:
        """(B, P) summed over the columns of each entity, (B, n)."""
        return x.view(self.B, self.n, self.k).sum(-1)

    def times_omega(self, R: Tensor, omega: Tensor) -> Tensor:
        """R Omega, (B, P, n)."""
        blocks = R.view(self.B, self.P, self.n, self.k) * omega.view(self.B, 1, self.n, self.k)
        return blocks.sum(-1)

    def inner(self, R: Tensor, d: Tensor, y: Tensor, w: Tensor) -> _Inner:
        """Solve for w at y by projected Newton from w (B, P): one step where no column is clipped."""
        columns_y = self.columns(y)
        S, alive = columns_y.sqrt(), columns_y > 0
        weight = torch.where(alive, d / columns_y.clamp(min=1e-300), 0.0)
        scaled = S.unsqueeze(-1) * R * S.unsqueeze(-2)
        scaled.diagonal(dim1=-2, dim2=-1).add_(d)
        w = w.clamp(-self.M, self.M).masked_fill(~alive, 0.0)
        Rw = _times(R, w)
        clipped = self.clipped(w, Rw, weight)
        for _ in range(_CLIP_ROUNDS):
            target, L = self.solve_clipped(R, scaled, S, w, clipped)
            moved = target.clamp(-self.M, self.M)
            if bool((moved != target).any()):
                moved = self.box_search(R, weight, w, Rw, target)
            w = moved
            Rw = _times(R, w)
            now = self.clipped(w, Rw, weight)
            if bool((now == clipped).all()):
                break
            clipped = now
        g = 2 * (Rw - self.c)
        omega = torch.where(clipped, w / columns_y.clamp(min=1e-300), -g / (2 * d))
        h = (self.entity_sum(d * omega.square()) - self.price).masked_fill(~self.free, 0.0)
        phi = self.value(w, Rw, weight) + (self.price * y).sum(-1)
        return _Inner(y, w, omega, clipped, L, h, phi)

    def value(self, w: Tensor, Rw: Tensor, weight: Tensor) -> Tensor:
        """w'Rw - 2c'w + sum_j weight_j w_j^2, (B,)."""
        return (w * (Rw - 2 * self.c + weight * w)).sum(-1)

    def clipped(self, w: Tensor, Rw: Tensor, weight: Tensor) -> Tensor:
        """Columns that touch the box and that the gradient pushes against it."""
        gradient = Rw - self.c + weight * w
        return (w.abs() >= self.M) & (gradient * w < 0)

    def solve_clipped(
        self, R: Tensor, scaled: Tensor, S: Tensor, w: Tensor, clipped: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The minimiser with the clipped columns held at w, and the factor of S R S + D."""
        if not bool(clipped.any()):
            L = _cholesky(scaled)
            return S * torch.cholesky_solve((S * self.c).unsqueeze(-1), L).squeeze(-1), L
        held = w.masked_fill(~clipped, 0.0)
        system = scaled.clone()
        _mask(system, clipped)
        L = _cholesky(system)
        right = (S * (self.c - _times(R, held))).masked_fill(clipped, 0.0)
        return S * torch.cholesky_solve(right.unsqueeze(-1), L).squeeze(-1) + held, L

    def box_search(
        self, R: Tensor, weight: Tensor, w: Tensor, Rw: Tensor, target: Tensor
    ) -> Tensor:
        """The longest projected step towards ``target`` that lowers the value."""
        old = self.value(w, Rw, weight)
        size = torch.ones_like(old)
        for _ in range(_TRIALS):
            moved = (w + size.unsqueeze(-1) * (target - w)).clamp(-self.M, self.M)
            ok = self.value(moved, _times(R, moved), weight) <= old + 1e-13 * self.quadratic.c0
            if bool(ok.all()):
                break
            size = torch.where(ok, size, _SHRINK * size)
        return _where(ok, moved, w)

    def hessian(self, R: Tensor, at: _Inner, d: Tensor) -> Tensor:
        """H (B, n, n)."""
        S = self.columns(at.y).sqrt().masked_fill(at.clipped, 0.0)
        omega = at.omega.masked_fill(at.clipped, 0.0)
        RO = self.times_omega(R, omega)
        Z = torch.linalg.solve_triangular(at.L, S.unsqueeze(-1) * RO, upper=False)
        blocks = (omega.unsqueeze(-1) * RO).view(self.B, self.n, self.k, self.n)
        H = 2 * torch.baddbmm(blocks.sum(2), Z.mT, Z, alpha=-1)
        H = 0.5 * (H + H.mT)
        rest = self.entity_sum((2 * d * at.omega.square()).masked_fill(~at.clipped, 0.0))
        H.diagonal(dim1=-2, dim2=-1).add_(rest / at.y.clamp(min=1e-12))
        return H

    def derivative(self, R: Tensor, at: _Inner) -> Tensor:
        """dw / dy, (B, P, n)."""
        S = self.columns(at.y).sqrt().masked_fill(at.clipped, 0.0).unsqueeze(-1)
        omega = at.omega.masked_fill(at.clipped, 0.0)
        back = S * torch.cholesky_solve(S * self.times_omega(R, omega), at.L)
        return omega.unsqueeze(-1) * self.membership - back

    def at_limit(self, at: _Inner) -> Tensor:
        """(B, n): indicators that stay where they are, fixed ones and those held by 0 or 1."""
        return ~self.free | ((at.y <= 0) & (at.h <= 0)) | ((at.y >= 1) & (at.h >= 0))

    def minimise(self, R: Tensor, d: Tensor, start: _Inner, stop: float) -> _Inner:
        """Projected Newton in y from a solved start."""
        at = start
        active = torch.ones(self.B, dtype=torch.bool, device=d.device)
        for _ in range(_STEPS_Y):
            active = active & (at.gap() > stop)
            if not bool(active.any()):
                break
            H = self.hessian(R, at, d)
            held = self.at_limit(at)
            _mask(H, held)
            H.diagonal(dim1=-2, dim2=-1).add_(
                1e-12 + 1e-9 * H.diagonal(dim1=-2, dim2=-1).amax(-1, True)
            )
            right = at.h.masked_fill(held, 0.0)
            step = torch.cholesky_solve(right.unsqueeze(-1), _cholesky(H)).squeeze(-1)
            size = torch.where(active, 1.0, 0.0).to(d)
            for _trial in range(_TRIALS):
                y = torch.where(self.free, (at.y + size.unsqueeze(-1) * step).clamp(0, 1), at.y)
                moved = self.inner(R, d, y, at.w)
                expected = (at.h * (y - at.y)).sum(-1)
                ok = moved.phi <= at.phi - 0.01 * expected + 1e-13 * self.quadratic.c0
                if bool((ok | ~active).all()):
                    break
                size = torch.where(ok, size, _SHRINK * size)
            active = active & ok
            at = _Inner(*(_where(active, new, old) for new, old in zip(moved, at, strict=True)))
        return at

    def point(self, d: Tensor, R: Tensor, L: Tensor, near: _Inner) -> _Point:
        inner = self.minimise(R, d, self.inner(R, d, near.y, near.w), self.loose)
        logdet = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        logs = torch.where(self.movable, d.log(), 0.0).sum(-1)
        return _Point(d, R, L, inner, inner.phi + self.mu * logdet + self.barrier_d * logs)

    def factor(self, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """R, its Cholesky factor, and whether it is positive definite, (B,)."""
        R = self.Q - torch.diag_embed(d)
        L, info = torch.linalg.cholesky_ex(R)
        return R, L, info == 0

    def step(self, at: _Point) -> tuple[Tensor, Tensor, Tensor]:
        """Newton's step in d (B, P), how y answers to it (B, n), and the decrement (B,)."""
        inner, y = at.inner, self.columns(at.inner.y)
        inverse = torch.cholesky_inverse(at.L)
        S = y.sqrt().masked_fill(inner.clipped, 0.0)
        tau = inner.omega * (1 - y)
        scaled = (tau * S).masked_fill(inner.clipped, 0.0)
        N = 2 * scaled.unsqueeze(-1) * torch.cholesky_inverse(inner.L) * scaled.unsqueeze(-2)
        N.addcmul_(inverse, inverse, value=self.mu)
        H = self.hessian(at.R, inner, at.d)
        held = self.at_limit(inner)
        _mask(H, held)
        H.diagonal(dim1=-2, dim2=-1).add_(1e-10)
        E = 2 * tau.unsqueeze(-1) * self.derivative(at.R, inner)
        E = E - inner.omega.square().unsqueeze(-1) * self.membership
        E = E.masked_fill(held.unsqueeze(-2), 0.0)
        factor = _cholesky(H)
        Z = torch.linalg.solve_triangular(factor, E.mT, upper=False)
        N.baddbmm_(Z.mT, Z)
        d = at.d
        N.diagonal(dim1=-2, dim2=-1).add_(
            torch.where(self.movable, self.barrier_d / d.square(), 1.0)
        )
        fixed = ~self.movable
        _mask(N, fixed)
        t = inner.omega.square() * y * (1 - y)
        gradient = t - self.mu * inverse.diagonal(dim1=-2, dim2=-1) + self.barrier_d / d
        gradient = gradient.masked_fill(fixed, 0.0)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), _cholesky(N)).squeeze(-1)
        answer = -torch.cholesky_solve(E.mT @ step.unsqueeze(-1), factor).squeeze(-1)
        return step, answer, (gradient * step).sum(-1)

    def run(self, steps: int) -> Split:
        d = self.nodes.d.reshape(self.B, self.P)
        R, L, _ = self.factor(d)
        y = torch.where(self.nodes.one, 1.0, torch.where(self.free, self.nodes.y, 0.0))
        start = self.inner(R, d, y, torch.zeros_like(d))
        inner = start
        if steps:
            at = self.point(d, R, L, start)
            active = torch.ones(self.B, dtype=torch.bool, device=d.device)
            for _ in range(steps):
                step, answer, decrement = self.step(at)
                active = active & (decrement > self.mu) & step.isfinite().all(-1)
                if not bool(active.any()):
                    break
                at, active = self.line_search(at, step, answer, active)
            d, R, inner = at.d, at.R, at.inner
        inner = self.minimise(R, d, inner, self.tight)
        bound, score = self.bound(R, inner.w, d)
        shape = (self.B, self.n, self.k)
        return Split(inner.w.view(shape), d.view(shape), bound, score, inner.y)

    def line_search(
        self, at: _Point, step: Tensor, answer: Tensor, active: Tensor
    ) -> tuple[_Point, Tensor]:
        """Shrink until R stays definite and the barrier rises; nodes without success stay.

        Definite with a tenth to spare: at the very border the barrier would hold the next steps.
        """
        room = torch.where(step < 0, -at.d / step, torch.inf).amin(-1)
        size = torch.where(active, (0.8 * room).clamp(max=1.0), 0.0)
        for _ in range(2 * _TRIALS):
            definite = self.factor(at.d + 1.1 * size.unsqueeze(-1) * step)[2]
            if bool(definite.all()):
                break
            size = torch.where(definite, size, 0.7 * size)
        for _ in range(3):
            d = at.d + size.unsqueeze(-1) * step
            R, L, definite = self.factor(d)
            y = torch.where(
                self.free, (at.inner.y + size.unsqueeze(-1) * answer).clamp(0, 1), at.inner.y
            )
            near = at.inner._replace(y=y)
            moved = self.point(d, R, _where(definite, L, at.L), near)
            up = definite & active & (moved.f >= at.f - self.loose)
            if bool((up | ~active).all()):
                break
            size = torch.where(up, size, 0.4 * size)
        inner = _Inner(
            *(_where(up, new, old) for new, old in zip(moved.inner, at.inner, strict=True))
        )
        chosen = _Point(
            _where(up, d, at.d), _where(up, R, at.R), _where(up, L, at.L), inner,
            torch.where(up, moved.f, at.f),
        )  # fmt: skip
        return chosen, up

    def bound(self, R: Tensor, w: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.B, self.n, self.k)
        Rw = _times(R, w)
        value = (w * (Rw - 2 * self.c)).sum(-1) + self.quadratic.c0
        gradient = (2 * (Rw - self.c)).view(*shape, 1)
        terms = Terms(d.view(shape), self.nodes.free, self.nodes.one)
        return dual_bound(self.quadratic.penalty, value, gradient, w.view(*shape, 1), terms)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)


def _mask(matrix: Tensor, rows: Tensor) -> None:
    """Replace rows and columns by those of the identity, in place."""
    matrix.masked_fill_(rows.unsqueeze(-1) | rows.unsqueeze(-2), 0.0)
    matrix.diagonal(dim1=-2, dim2=-1).add_(rows.to(matrix))


def _cholesky(matrix: Tensor) -> Tensor:
    """A Cholesky factor, of a slightly larger diagonal where rounding made the matrix indefinite."""
    L, info = torch.linalg.cholesky_ex(matrix)
    failed = info > 0
    if bool(failed.any()):
        lift = matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1) * 1e-8
        lifted = matrix + torch.diag_embed((failed * lift).unsqueeze(-1).expand(matrix.shape[:-1]))
        L, _ = torch.linalg.cholesky_ex(lifted)
    return L

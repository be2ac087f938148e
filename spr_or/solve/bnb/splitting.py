r"""Node relaxations that move as much curvature of the loss as possible into the perspective term.

For the squared loss with one output, Q = G + diag(lambda u alpha), any diagonal D >= 0 with
R = Q - D positive semidefinite gives a valid bound (see `bounds`); which D is best is a semidefinite
program (Zheng, Sun, Li, 2014; Dong, Chen, Linderoth, 2015).  We solve the saddle problem

.. math::  \max_d \min_{w} \; w'Rw - 2c'w + \sum_i \psi_i(w, d) + \mu \log\det R + \nu \sum_j \log d_j

by Newton's method in d.  With q_i = sum_j d_j w_j^2 and the best indicator y_i = min(1, sqrt(q_i/p_i)),
p_i = lambda u_i (1 - alpha), psi_i = q_i / y_i + p_i y_i.  (The box enters this inner problem as
|w_j| <= M only, and the bound in full: any w and d give a valid bound.)

The derivative in d_j is t_j - mu (R^-1)_jj + nu / d_j with t_j = w_j^2 (1/y_i - 1): an entity wants more
curvature where its indicator is fractional.  Minus the second derivative, with w eliminated, is

.. math::  \mu R^{-1} \circ R^{-1} + \nu / d^2 + J' A^{-1} J + \tfrac12 \mathrm{blk}(w^2 w^{2\prime} / (y q))

where A is the Hessian in w and J the mixed derivative.  A node starts from its parent's d and w: D stays
admissible when an entity leaves (a principal submatrix) and when one is fixed to 1 (its d only falls),
so that two or three steps are enough.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.solve.bnb.bounds import Penalty, Terms, dual_bound
from spr_or.solve.bnb.design import Design

_SHRINK = 0.5
_TRIALS = 8
_NEWTON_STEPS = 25
_SMALL_Y = 1e-6


class Nodes(NamedTuple):
    """A batch of nodes, each over its own active entities, padded with absent ones.

    position : (B, n) int64 into the design's entities (absent: 0); present, free, one : (B, n) bool
    w, d : (B, n, k), the tangent point and the moved curvature
    """

    position: Tensor
    present: Tensor
    free: Tensor
    one: Tensor
    w: Tensor
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
    state = _State(quadratic, nodes, mu)
    return state.run(steps)


class _Point(NamedTuple):
    """d with its R, Cholesky factor, minimiser w, indicator y, and the barrier's value f; all (B, .)."""

    d: Tensor
    w: Tensor
    y: Tensor
    L: Tensor
    f: Tensor


class _State:
    """The data of one batch in flat (B, P) form."""

    def __init__(self, quadratic: Quadratic, nodes: Nodes, mu: float) -> None:
        self.quadratic, self.nodes, self.mu = quadratic, nodes, mu
        self.B, self.n, self.k = nodes.w.shape
        self.P = self.n * self.k
        self.Q, self.c = quadratic.Q, quadratic.c
        self.free = nodes.free
        self.movable = (nodes.free.unsqueeze(-1) & quadratic.real).view(self.B, self.P)
        self.barrier_d = 0.02 * mu
        self.price = quadratic.penalty.price.clamp(min=torch.finfo(torch.float64).tiny)
        self.M = quadratic.penalty.M.repeat_interleave(self.k, dim=-1)
        # The decrements at which Newton's method in w stops: on the way, and at the end.
        scale = float(quadratic.c0.clamp(min=1e-30))
        self.loose, self.tight = 1e-6 * scale, 1e-11 * scale

    def columns(self, x: Tensor) -> Tensor:
        """(B, n) repeated over columns, (B, P)."""
        return x.repeat_interleave(self.k, dim=-1)

    def entity_sum(self, x: Tensor) -> Tensor:
        return x.view(self.B, self.n, self.k).sum(-1)

    def add_blocks(self, matrix: Tensor, left: Tensor, right: Tensor, factor: Tensor) -> None:
        """matrix += blockdiag(factor_i left_i right_i'), in place."""
        shape = (self.B, self.n, self.k)
        blocks = (factor.unsqueeze(-1) * left.view(shape)).unsqueeze(-1) * right.view(
            shape
        ).unsqueeze(-2)
        view = matrix.view(self.B, self.n, self.k, self.n, self.k)
        view.diagonal(dim1=1, dim2=3).add_(blocks.permute(0, 2, 3, 1))

    def indicator(self, w: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        q = self.entity_sum(d * w * w)
        y = torch.where(self.free, (q / self.price).sqrt().clamp(_SMALL_Y, 1.0), 1.0)
        return q, y

    def inner_value(self, w: Tensor, Rw: Tensor, q: Tensor) -> Tensor:
        relaxed = torch.where(q < self.price, 2 * (self.price * q).sqrt(), q + self.price)
        psi = torch.where(self.free, relaxed, q)
        return (w * (Rw - 2 * self.c)).sum(-1) + psi.sum(-1)

    def hessian(self, R: Tensor, w: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A, y and 1/(y q) of the entities in between, at (w, d)."""
        q, y = self.indicator(w, d)
        inner = self.free & (y < 1)
        factor = torch.where(inner, 1 / (y * q.clamp(min=1e-20)), 0.0)
        A = 2 * R
        A.diagonal(dim1=-2, dim2=-1).add_(2 * d / self.columns(y) + 1e-12)
        dw = d * w
        self.add_blocks(A, dw, dw, -2 * factor * (1 - 1e-9))
        return A, y, factor

    def clipped(self, w: Tensor, gradient: Tensor) -> Tensor:
        return (w.abs() >= self.M * (1 - 1e-12)) & (gradient * w < 0)

    def minimise(self, R: Tensor, d: Tensor, w: Tensor, stop: float) -> Tensor:
        """Projected Newton in w on |w_j| <= M; entities that cross zero stop there.

        An entity at zero stays there while its pull sum_j g_j^2 / (4 d_j) is at most its price, the
        condition for the kink of psi to hold it, and is nudged off it otherwise.
        """
        w = self.seeded(R, w, d)
        Rw = _times(R, w)
        q, y = self.indicator(w, d)
        f = self.inner_value(w, Rw, q)
        active = torch.ones(self.B, dtype=torch.bool, device=w.device)
        for _ in range(_NEWTON_STEPS):
            A, y, _factor = self.hessian(R, w, d)
            gradient = 2 * (Rw - self.c) + 2 * d * w / self.columns(y)
            fixed = self.clipped(w, gradient) | self.columns(self.free & (q == 0))
            step = -_solve_masked(A, gradient, fixed)
            decrement = -(gradient * step).masked_fill(fixed, 0.0).sum(-1)
            active = active & (decrement > stop)
            if not bool(active.any()):
                break
            size = torch.where(active, 1.0, 0.0).to(w)
            for _trial in range(_TRIALS):
                moved = (w + size.unsqueeze(-1) * step).clamp(-self.M, self.M)
                crossed = self.free & (self.entity_sum(d * w * moved) <= 1e-3 * q)
                moved = moved.masked_fill(self.columns(crossed), 0.0)
                Rmoved = _times(R, moved)
                qmoved, _ = self.indicator(moved, d)
                fmoved = self.inner_value(moved, Rmoved, qmoved)
                slope = (gradient * (moved - w)).sum(-1).clamp(max=0.0)
                ok = fmoved <= f + 0.1 * slope + 1e-14 * self.quadratic.c0
                if bool((ok | ~active).all()):
                    break
                size = torch.where(ok, size, _SHRINK * size)
            active = active & ok
            w, Rw, q = (_where(active, *x) for x in ((moved, w), (Rmoved, Rw), (qmoved, q)))
            f = torch.where(active, fmoved, f)
        return w

    def factor(self, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        R = self.Q - torch.diag_embed(d)
        L, info = torch.linalg.cholesky_ex(R)
        return R, L, info == 0

    def point(self, R: Tensor, L: Tensor, d: Tensor, w: Tensor) -> _Point:
        w = self.minimise(R, d, w, self.loose)
        q, y = self.indicator(w, d)
        value = self.inner_value(w, _times(R, w), q)
        logdet = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        logs = torch.where(self.movable, d.clamp(min=1e-300).log(), 0.0).sum(-1)
        return _Point(d, w, y, L, value + self.mu * logdet + self.barrier_d * logs)

    def step(self, R: Tensor, at: _Point) -> tuple[Tensor, Tensor]:
        """Newton's step in d (B, P) and its decrement (B,)."""
        inverse = torch.cholesky_inverse(at.L)
        A, y, factor = self.hessian(R, at.w, at.d)
        slope = torch.where(self.columns(self.free), 1 / self.columns(y) - 1, 0.0)
        t = at.w.square() * slope
        J = torch.diag_embed(2 * at.w * slope)
        self.add_blocks(J, at.d * at.w, at.w.square(), -factor)
        gradient_w = 2 * (_times(R, at.w) - self.c) + 2 * at.d * at.w / self.columns(y)
        clipped = self.clipped(at.w, gradient_w) | self.columns(
            self.free & (at.w == 0).view(self.B, self.n, self.k).all(-1)
        )
        J = J.masked_fill(clipped.unsqueeze(-1), 0.0)
        _mask(A, clipped)
        Z = torch.linalg.solve_triangular(_cholesky(A), J, upper=False)
        H = torch.baddbmm(self.mu * inverse.square(), Z.mT, Z)
        H.diagonal(dim1=-2, dim2=-1).add_(
            torch.where(self.movable, self.barrier_d / at.d.square().clamp(min=1e-300), 1.0)
        )
        w2 = at.w.square()
        self.add_blocks(H, w2, w2, 0.5 * factor)
        fixed = ~self.movable
        _mask(H, fixed)
        gradient = t - self.mu * inverse.diagonal(dim1=-2, dim2=-1)
        gradient = torch.where(fixed, 0.0, gradient + self.barrier_d / at.d.clamp(min=1e-300))
        step = torch.cholesky_solve(gradient.unsqueeze(-1), _cholesky(H)).squeeze(-1)
        return step, (gradient * step).sum(-1)

    def run(self, steps: int) -> Split:
        d = self.nodes.d.reshape(self.B, self.P)
        w = self.nodes.w.reshape(self.B, self.P)
        R, L, _ = self.factor(d)
        at = self.point(R, L, d, w)
        active = torch.ones(self.B, dtype=torch.bool, device=d.device)
        for _ in range(steps):
            step, decrement = self.step(R, at)
            active = active & (decrement > 0.1 * self.mu * self.P) & step.isfinite().all(-1)
            if not bool(active.any()):
                break
            room = torch.where(step < 0, -at.d / step, torch.inf).amin(-1)
            size = torch.where(active, (0.9 * room).clamp(max=1.0), 0.0)
            moved, R, active = self.line_search(at, step, size, active, R)
            at = moved
        w = self.minimise(R, at.d, at.w, self.tight)
        _, y = self.indicator(w, at.d)
        bound, score = self.bound(R, w, at.d)
        shape = (self.B, self.n, self.k)
        return Split(w.view(shape), at.d.view(shape), bound, score, y)

    def line_search(
        self, at: _Point, step: Tensor, size: Tensor, active: Tensor, R: Tensor
    ) -> tuple[_Point, Tensor, Tensor]:
        """Shrink until R stays definite and the barrier rises; nodes without success stay."""
        for _ in range(2 * _TRIALS):
            d = at.d + size.unsqueeze(-1) * step
            trial, L, definite = self.factor(d)
            if bool(definite.all()):
                break
            size = torch.where(definite, size, 0.7 * size)
        moved = self.point(trial, torch.where(definite[:, None, None], L, at.L), d, at.w)
        up = definite & active & (moved.f >= at.f)
        for _ in range(3):
            if bool((up | ~active).all()):
                break
            size = torch.where(up, size, 0.4 * size)
            d = at.d + size.unsqueeze(-1) * step
            trial, L, definite = self.factor(d)
            moved = self.point(trial, torch.where(definite[:, None, None], L, at.L), d, at.w)
            up = definite & active & (moved.f >= at.f)
        chosen = _Point(*(_where(up, new, old) for new, old in zip(moved, at, strict=True)))
        return chosen, torch.where(up[:, None, None], trial, R), up

    def seeded(self, R: Tensor, w: Tensor, d: Tensor) -> Tensor:
        """Entities at zero whose pull exceeds their price, moved a little along it."""
        gradient = 2 * (_times(R, w) - self.c)
        q = self.entity_sum(d * w * w)
        pull = self.entity_sum(gradient.square() / (4 * d.clamp(min=1e-300)))
        leaving = self.free & (q == 0) & (pull > self.price)
        nudge = -1e-2 * gradient / self.Q.diagonal(dim1=-2, dim2=-1)
        return torch.where(self.columns(leaving), nudge, w).clamp(-self.M, self.M)

    def bound(self, R: Tensor, w: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.B, self.n, self.k)
        Rw = _times(R, w)
        value = (w * (Rw - 2 * self.c)).sum(-1) + self.quadratic.c0
        gradient = (2 * (Rw - self.c)).view(*shape, 1)
        terms = Terms(d.view(shape).clamp(min=1e-300), self.nodes.free, self.nodes.one)
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


def _solve_masked(A: Tensor, right: Tensor, rows: Tensor) -> Tensor:
    """A^-1 right over the columns outside ``rows``, 0 inside; A is overwritten."""
    _mask(A, rows)
    solution = torch.cholesky_solve(right.masked_fill(rows, 0.0).unsqueeze(-1), _cholesky(A))
    return solution.squeeze(-1)

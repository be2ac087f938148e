r"""The best curvature for entities, at many nodes: a semidefinite program by Newton's method.

A node's relaxation is tighter the more curvature of the loss is moved into the perspective term.

For the squared loss with one output, Q = G + diag(lambda u alpha), any block diagonal D, one positive
definite block D_i an entity, with R = Q - D positive semidefinite gives a valid bound (see `bounds`);
which D is best is a semidefinite program (Zheng, Sun, Li, 2014; Dong, Chen, Linderoth, 2015, for
diagonal D).  We solve the saddle problem

.. math::  \max_D \min_{y, w} \; w'Rw - 2c'w + \sum_i \bigl[ w^{i\prime} D_i w^i / y_i + p_i y_i\bigr]
           + \mu \log\det R + \nu \log\det D , \qquad |w_j| \le M_i,\; 0 \le y_i \le 1,

with p_i = lambda u_i (1 - alpha), by Newton's method in D around Newton's method in y.  (The box is M_i
y_i in the bound itself; here, where any D and w will do, M_i leaves fewer columns at their limit.)

**Given D and y**, w solves linear equations.  With omega = w / y, g = 2 (Rw - c) and S = sqrt(y),
omega^i = -D_i^{-1} g^i / 2 where no column of the entity touches the box, and on the columns that do not

.. math::  (S R S + D)\, (w / S) = S (c - (R + D / y)\, w_{clipped}),

which needs no division by y for entities without clipped columns.  **The value phi(y)** is smooth and
convex with derivative -h_i, h_i = omega^i' D_i omega^i - p_i, so that phi(y) is within sum_i [h_i]_+ -
y_i h_i of its minimum.  With o the solution of D o = D omega on the columns not clipped (omega itself
where none is), and Omega = blockdiag(o^i), the Hessian is

.. math::  H = 2\,\Omega' \bigl(R - R S\, T\, S R\bigr) \Omega
           + \mathrm{diag}\; 2 (\omega' D\omega - o' D o)_i / y_i, \qquad T = (S R S + D)^{-1} .

No kink at w = 0, no case distinction.

**In D**, the derivative is Gamma_i = omega^i omega^i' y_i (1 - y_i) - mu (R^-1)_ii + nu D_i^{-1}: an entity
wants more curvature where its indicator is fractional.  Each step moves every D_i by a combination of
k rank-one matrices t t', the eigenvectors of Gamma_i in the metric of (R^-1)_ii: they span the gradient,
and the barrier's own second derivative is the identity on them.  In the coordinates t'w, minus the
second derivative, y and w eliminated, is

.. math::  \mu R^{-1} \circ R^{-1} + \nu D^{-1} \circ D^{-1} + 2\, \tau\tau' \circ (S T S)
           + E H^{-1} E', \qquad
           \tau_j = \omega_j (1 - y_i),\; E_{ji} = 2 \tau_j\, \partial w_j / \partial y_i
           - [j \in i]\, \omega_j^2 .

A node starts from its parent's D and y: D stays admissible when an entity leaves (a principal submatrix)
and when one is fixed to 1 (its block only shrinks), so that two steps in D are enough.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from spr_or.certified_solver.bounds import Penalty, Terms, dual_bound
from spr_or.certified_solver.linear_algebra import cholesky, hold

_SHRINK = 0.5
_TRIALS = 10
_STEPS_Y = 30
_CLIP_ROUNDS = 25


class BlockNodes(NamedTuple):
    """A batch of nodes, each over its own active entities, padded with absent ones.

    position : (B, n) int64 into the design's entities (absent: 0); present, free, one : (B, n) bool
    y : (B, n), indicators to start from; D : (B, n, k, k), the moved curvature
    """

    position: Tensor
    present: Tensor
    free: Tensor
    one: Tensor
    y: Tensor
    D: Tensor


class Quadratic(NamedTuple):
    """What a batch of nodes needs of a design: Q (B, P, P), c (B, P), c0 (), and its penalty.

    Absent entities and padded columns have a unit diagonal and no weight.
    """

    Q: Tensor
    c: Tensor
    c0: Tensor
    real: Tensor
    penalty: Penalty


class BlockAnswer(NamedTuple):
    """Of each node: w (B, n, k), D (B, n, k, k), bound (B,), score (B, n), indicator (B, n)."""

    w: Tensor
    D: Tensor
    bound: Tensor
    score: Tensor
    indicator: Tensor


def evaluate(quadratic: Quadratic, nodes: BlockNodes, mu: float, steps: int) -> BlockAnswer:
    """Bound a batch of nodes after at most ``steps`` Newton steps in d (0: d as it comes)."""
    return _Newton(quadratic, nodes, mu).run(steps)


class _Curvature(NamedTuple):
    """D (B, n, k, k) and its inverse, R = Q - D (B, P, P) and its Cholesky factor."""

    D: Tensor
    inverse: Tensor
    R: Tensor
    L: Tensor


class _Inner(NamedTuple):
    """The answer to a given y (B, n): w, omega, o and ``clipped`` (B, P), the factor of S R S + D, the
    scores h (B, n) and phi (B,)."""

    y: Tensor
    w: Tensor
    omega: Tensor
    o: Tensor
    clipped: Tensor
    L: Tensor
    h: Tensor
    phi: Tensor

    def gap(self) -> Tensor:
        """How far phi(y) can be above its minimum, (B,)."""
        return (self.h.clamp(min=0) - self.y * self.h).sum(-1)


class _Point(NamedTuple):
    """D with the minimising `_Inner` and the barrier's value (B,)."""

    at: _Curvature
    inner: _Inner
    f: Tensor


class _Newton:
    """One batch in flat (B, P) form, P = n k."""

    def __init__(self, quadratic: Quadratic, nodes: BlockNodes, mu: float) -> None:
        self.quadratic, self.nodes, self.mu = quadratic, nodes, mu
        self.B, self.n, self.k = nodes.D.shape[:3]
        self.P = self.n * self.k
        self.Q, self.c = quadratic.Q, quadratic.c
        self.free = nodes.free
        self.barrier_D = 0.02 * mu
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

    def per_entity(self, blocks: Tensor, x: Tensor) -> Tensor:
        """Block i times x^i, for blocks (B, n, k, k) and x (B, P)."""
        return (blocks @ x.view(self.B, self.n, self.k, 1)).view(self.B, self.P)

    def blocks(self, A: Tensor) -> Tensor:
        """The diagonal blocks of A (B, P, P) as a view (B, n, k, k) that can be written to."""
        wide = A.view(self.B, self.n, self.k, self.n, self.k)
        return wide.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)

    def times_omega(self, R: Tensor, o: Tensor) -> Tensor:
        """R Omega, (B, P, n)."""
        blocks = R.view(self.B, self.P, self.n, self.k) * o.view(self.B, 1, self.n, self.k)
        return blocks.sum(-1)

    def curvature(self, D: Tensor) -> tuple[_Curvature, Tensor]:
        """What D brings, and whether it is admissible: R and D positive definite, (B,)."""
        R = self.Q.clone()
        self.blocks(R).sub_(D)
        L, info = torch.linalg.cholesky_ex(R)
        factor, bad = torch.linalg.cholesky_ex(D)
        inverse = torch.cholesky_inverse(factor)
        return _Curvature(D, inverse, R, L), (info == 0) & (bad == 0).all(-1)

    def inner(self, at: _Curvature, y: Tensor, w: Tensor) -> _Inner:
        """Solve for w at y by projected Newton from w (B, P): one step where no column is clipped."""
        R, columns_y = at.R, self.columns(y)
        S, alive = columns_y.sqrt(), columns_y > 0
        over_y = torch.where(alive, 1 / columns_y.clamp(min=1e-300), 0.0)
        scaled = (S.unsqueeze(-1) * R).mul_(S.unsqueeze(-2))
        self.blocks(scaled).add_(at.D)
        w = w.clamp(-self.M, self.M).masked_fill(~alive, 0.0)
        Rw, Dw = _times(R, w), self.per_entity(at.D, w)
        clipped = self.clipped(w, Rw, Dw * over_y)
        for _ in range(_CLIP_ROUNDS):
            target, L = self.solve_clipped(at, scaled, S, over_y, w, clipped)
            moved = target.clamp(-self.M, self.M)
            if bool((moved != target).any()):
                moved = self.box_search(at, over_y, w, Rw, target)
            w = moved
            Rw, Dw = _times(R, w), self.per_entity(at.D, w)
            now = self.clipped(w, Rw, Dw * over_y)
            if bool((now == clipped).all()):
                break
            clipped = now
        omega = self.per_entity(at.inverse, self.c - Rw)
        o = omega
        if bool(clipped.any()):
            touched = self.columns(clipped.view(self.B, self.n, self.k).any(-1))
            omega = torch.where(touched, w * over_y, omega)
            o = torch.where(touched, self.on_unclipped(at.D, omega, clipped), omega)
        energy = self.entity_sum(omega * self.per_entity(at.D, omega))
        h = (energy - self.price).masked_fill(~self.free, 0.0)
        phi = self.value(w, Rw, Dw * over_y) + (self.price * y).sum(-1)
        return _Inner(y, w, omega, o, clipped, L, h, phi)

    def on_unclipped(self, D: Tensor, omega: Tensor, clipped: Tensor) -> Tensor:
        """o (B, P): D o = D omega on the columns not clipped, zero on the others."""
        system, held = D.clone(), clipped.view(self.B, self.n, self.k)
        right = self.per_entity(D, omega).masked_fill(clipped, 0.0)
        hold(system, held)
        shape = (self.B, self.n, self.k, 1)
        return torch.linalg.solve(system, right.view(shape)).view(self.B, self.P)

    def value(self, w: Tensor, Rw: Tensor, Dw_over_y: Tensor) -> Tensor:
        """w'Rw - 2c'w + w'Dw / y, (B,)."""
        return (w * (Rw - 2 * self.c + Dw_over_y)).sum(-1)

    def clipped(self, w: Tensor, Rw: Tensor, Dw_over_y: Tensor) -> Tensor:
        """Columns that touch the box and that the gradient pushes against it."""
        return (w.abs() >= self.M) & ((Rw - self.c + Dw_over_y) * w < 0)

    def solve_clipped(
        self, at: _Curvature, scaled: Tensor, S: Tensor, over_y: Tensor, w: Tensor, clipped: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The minimiser with the clipped columns held at w, and the factor of S R S + D."""
        if not bool(clipped.any()):
            L = cholesky(scaled)
            return S * torch.cholesky_solve((S * self.c).unsqueeze(-1), L).squeeze(-1), L
        held = w.masked_fill(~clipped, 0.0)
        system = scaled.clone()
        hold(system, clipped)
        L = cholesky(system)
        pull = _times(at.R, held) + self.per_entity(at.D, held) * over_y
        right = (S * (self.c - pull)).masked_fill(clipped, 0.0)
        return S * torch.cholesky_solve(right.unsqueeze(-1), L).squeeze(-1) + held, L

    def box_search(
        self, at: _Curvature, over_y: Tensor, w: Tensor, Rw: Tensor, target: Tensor
    ) -> Tensor:
        """The longest projected step towards ``target`` that lowers the value."""
        old = self.value(w, Rw, self.per_entity(at.D, w) * over_y)
        size = torch.ones_like(old)
        for _ in range(_TRIALS):
            moved = (w + size.unsqueeze(-1) * (target - w)).clamp(-self.M, self.M)
            value = self.value(moved, _times(at.R, moved), self.per_entity(at.D, moved) * over_y)
            ok = value <= old + 1e-13 * self.quadratic.c0
            if bool(ok.all()):
                break
            size = torch.where(ok, size, _SHRINK * size)
        return _where(ok, moved, w)

    def hessian(self, at: _Curvature, inner: _Inner) -> Tensor:
        """H (B, n, n)."""
        S = self.columns(inner.y).sqrt().masked_fill(inner.clipped, 0.0)
        o = inner.o
        RO = self.times_omega(at.R, o)
        Z = torch.linalg.solve_triangular(inner.L, S.unsqueeze(-1) * RO, upper=False)
        blocks = (o.unsqueeze(-1) * RO).view(self.B, self.n, self.k, self.n)
        H = 2 * torch.baddbmm(blocks.sum(2), Z.mT, Z, alpha=-1)
        H = 0.5 * (H + H.mT)
        if bool(inner.clipped.any()):
            all_of_it = inner.omega * self.per_entity(at.D, inner.omega)
            rest = self.entity_sum(all_of_it - o * self.per_entity(at.D, o)).clamp(min=0)
            rest = rest.masked_fill(~inner.clipped.view(self.B, self.n, self.k).any(-1), 0.0)
            H.diagonal(dim1=-2, dim2=-1).add_(2 * rest / inner.y.clamp(min=1e-12))
        return H

    def derivative(self, at: _Curvature, inner: _Inner) -> Tensor:
        """dw / dy, (B, P, n)."""
        S = self.columns(inner.y).sqrt().masked_fill(inner.clipped, 0.0).unsqueeze(-1)
        back = S * torch.cholesky_solve(S * self.times_omega(at.R, inner.o), inner.L)
        return inner.o.unsqueeze(-1) * self.membership - back

    def at_limit(self, inner: _Inner) -> Tensor:
        """(B, n): indicators that stay where they are, fixed ones and those held by 0 or 1."""
        down, up = (inner.y <= 0) & (inner.h <= 0), (inner.y >= 1) & (inner.h >= 0)
        return ~self.free | down | up

    def minimise(self, at: _Curvature, start: _Inner, stop: float) -> _Inner:
        """Projected Newton in y from a solved start."""
        inner = start
        active = torch.ones(self.B, dtype=torch.bool, device=self.Q.device)
        for _ in range(_STEPS_Y):
            active = active & (inner.gap() > stop)
            if not bool(active.any()):
                break
            H = self.hessian(at, inner)
            held = self.at_limit(inner)
            hold(H, held)
            H.diagonal(dim1=-2, dim2=-1).add_(
                1e-12 + 1e-9 * H.diagonal(dim1=-2, dim2=-1).amax(-1, True)
            )
            right = inner.h.masked_fill(held, 0.0)
            step = torch.cholesky_solve(right.unsqueeze(-1), cholesky(H)).squeeze(-1)
            size = torch.where(active, 1.0, 0.0).to(H)
            for _trial in range(_TRIALS):
                y = (inner.y + size.unsqueeze(-1) * step).clamp(0, 1)
                y = torch.where(self.free, y, inner.y)
                moved = self.inner(at, y, inner.w)
                expected = (inner.h * (y - inner.y)).sum(-1)
                ok = moved.phi <= inner.phi - 0.01 * expected + 1e-13 * self.quadratic.c0
                if bool((ok | ~active).all()):
                    break
                size = torch.where(ok, size, _SHRINK * size)
            active = active & ok
            inner = _choose(active, moved, inner)
        return inner

    def point(self, at: _Curvature, near: _Inner) -> _Point:
        inner = self.minimise(at, self.inner(at, near.y, near.w), self.loose)
        logdet = 2 * at.L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        logs = torch.where(self.free, -torch.logdet(at.inverse), 0.0).sum(-1)
        return _Point(at, inner, inner.phi + self.mu * logdet + self.barrier_D * logs)

    def directions(self, inverse: Tensor, point: _Point) -> tuple[Tensor, Tensor, Tensor]:
        """T (B, n, k, k), whose columns t are the directions t t' in D; the derivative along each, and
        whether D may move there, (B, P)."""
        y, omega = point.inner.y, point.inner.omega.view(self.B, self.n, self.k)
        metric = self.blocks(inverse)
        lower = torch.linalg.cholesky_ex(metric)[0]
        slope = (y * (1 - y))[..., None, None] * omega.unsqueeze(-1) * omega.unsqueeze(-2)
        slope = slope - self.mu * metric + self.barrier_D * point.at.inverse
        half = torch.linalg.solve_triangular(lower, slope, upper=False)
        slope = torch.linalg.solve_triangular(lower, half.mT, upper=False)
        slope = 0.5 * (slope + slope.mT)
        # Padded columns keep to themselves, as the last directions: no eigenvalue comes near theirs.
        padded = ~self.quadratic.real
        far = 10 * (1 + slope.flatten(-2).norm(dim=-1, keepdim=True))
        slope = slope + torch.diag_embed(far * padded)
        values, vectors = torch.linalg.eigh(slope)
        T = torch.linalg.solve_triangular(lower.mT, vectors, upper=True)
        count = self.quadratic.real.sum(-1, keepdim=True)
        movable = torch.arange(self.k, device=count.device) < count
        movable = (movable & self.free.unsqueeze(-1)).view(self.B, self.P)
        return T, values.view(self.B, self.P).masked_fill(~movable, 0.0), movable

    def rotated(self, T: Tensor, A: Tensor) -> Tensor:
        """blockdiag(T)' A for A (B, P, any)."""
        return (T.mT @ A.view(self.B, self.n, self.k, -1)).view(A.shape)

    def step(self, point: _Point) -> tuple[Tensor, Tensor, Tensor]:
        """Newton's step in D (B, n, k, k), how y answers to it (B, n), and the decrement (B,)."""
        at, inner, y = point.at, point.inner, self.columns(point.inner.y)
        inverse = torch.cholesky_inverse(at.L)
        T, gradient, movable = self.directions(inverse, point)
        omega = self.rotated(T, inner.omega.unsqueeze(-1)).squeeze(-1)
        tau = omega * (1 - y)
        S = y.sqrt().masked_fill(inner.clipped, 0.0)
        N = S.unsqueeze(-1) * torch.cholesky_inverse(inner.L) * S.unsqueeze(-2)
        N = self.rotated(T, self.rotated(T, N).mT.contiguous())
        N = N.mul_(2 * tau.unsqueeze(-1)).mul_(tau.unsqueeze(-2))
        inverse = self.rotated(T, self.rotated(T, inverse).mT.contiguous())
        N.addcmul_(inverse, inverse, value=self.mu)
        self.blocks(N).add_(self.barrier_D * (T.mT @ at.inverse @ T).square())
        H = self.hessian(at, inner)
        held = self.at_limit(inner)
        hold(H, held)
        H.diagonal(dim1=-2, dim2=-1).add_(1e-10)
        E = 2 * tau.unsqueeze(-1) * self.rotated(T, self.derivative(at, inner))
        E = E - omega.square().unsqueeze(-1) * self.membership
        E = E.masked_fill(held.unsqueeze(-2), 0.0)
        factor = cholesky(H)
        Z = torch.linalg.solve_triangular(factor, E.mT, upper=False)
        N.baddbmm_(Z.mT, Z)
        hold(N, ~movable)
        along = torch.cholesky_solve(gradient.unsqueeze(-1), cholesky(N)).squeeze(-1)
        answer = -torch.cholesky_solve(E.mT @ along.unsqueeze(-1), factor).squeeze(-1)
        step = (T * along.view(self.B, self.n, 1, self.k)) @ T.mT
        real = self.quadratic.real
        step = step * (real.unsqueeze(-1) & real.unsqueeze(-2))
        return 0.5 * (step + step.mT), answer, (gradient * along).sum(-1)

    def run(self, steps: int) -> BlockAnswer:
        at, _ = self.curvature(self.nodes.D)
        y = torch.where(self.nodes.one, 1.0, torch.where(self.free, self.nodes.y, 0.0))
        inner = self.inner(at, y, torch.zeros_like(self.c))
        if steps:
            point = self.point(at, inner)
            active = torch.ones(self.B, dtype=torch.bool, device=y.device)
            for _ in range(steps):
                step, answer, decrement = self.step(point)
                finite = step.flatten(1).isfinite().all(-1)
                active = active & (decrement > self.mu) & finite
                if not bool(active.any()):
                    break
                step = torch.where(active[:, None, None, None], step, 0.0)
                point, active = self.line_search(point, step, answer, active)
            at, inner = point.at, point.inner
        inner = self.minimise(at, inner, self.tight)
        bound, score = self.bound(at, inner.w)
        return BlockAnswer(inner.w.view(self.B, self.n, self.k), at.D, bound, score, inner.y)

    def line_search(
        self, point: _Point, step: Tensor, answer: Tensor, active: Tensor
    ) -> tuple[_Point, Tensor]:
        """Shrink until R and D stay definite and the barrier rises; nodes without success stay.

        Definite with a tenth to spare: at the very border the barrier would hold the next steps.
        """
        D = point.at.D
        size = active.to(D)
        for _ in range(2 * _TRIALS):
            definite = self.curvature(D + 1.1 * size[:, None, None, None] * step)[1]
            if bool(definite.all()):
                break
            size = torch.where(definite, size, 0.7 * size)
        for _ in range(3):
            at, definite = self.curvature(D + size[:, None, None, None] * step)
            y = (point.inner.y + size.unsqueeze(-1) * answer).clamp(0, 1)
            y = torch.where(self.free, y, point.inner.y)
            at = _choose(definite, at, point.at)
            moved = self.point(at, point.inner._replace(y=y))
            up = definite & active & (moved.f >= point.f - self.loose)
            if bool((up | ~active).all()):
                break
            size = torch.where(up, size, 0.4 * size)
        chosen = _Point(
            _choose(up, moved.at, point.at), _choose(up, moved.inner, point.inner),
            torch.where(up, moved.f, point.f),
        )  # fmt: skip
        return chosen, up

    def bound(self, at: _Curvature, w: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.B, self.n, self.k, 1)
        Rw = _times(at.R, w)
        value = (w * (Rw - 2 * self.c)).sum(-1) + self.quadratic.c0
        gradient = (2 * (Rw - self.c)).view(shape)
        terms = Terms(at.D, self.nodes.free, self.nodes.one)
        return dual_bound(self.quadratic.penalty, value, gradient, w.view(shape), terms)


_Fields = TypeVar("_Fields", _Curvature, _Inner)


def _choose(mask: Tensor, new: _Fields, old: _Fields) -> _Fields:
    """Node by node, the new or the old."""
    if bool(mask.all()):
        return new
    return type(new)(*(_where(mask, a, b) for a, b in zip(new, old, strict=True)))


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)

r"""Moved curvature for several outputs: `block_newton`, with W (P, q) for w and one node at a time.

The outputs share Q = G + diag(lambda u alpha) and the diagonal D that is moved, so one factorisation
serves all of them.  With Omega^i the (k, q) block of Omega = W / y, S = diag(sqrt(y)) and
A = S R S + D, the value phi(y) has the derivative -h_i, h_i = sum_jq d_j Omega_jq^2 - p_i, and

.. math::  H_{il} = 2 \sum_{j \in i,\, m \in l} \bigl[S^{-1} (D - D A^{-1} D)\, S^{-1}\bigr]_{jm}
           (\Omega\Omega')_{jm} ,

where the bracket is R - R S A^{-1} S R with the products of R written through A.  In d, with
Tau_j = Omega_j (1 - y) and the barrier mu log det R + nu sum log d of `block_newton`, the derivative is
(Tau Omega')_jj y - mu (R^-1)_jj + nu / d_j, and minus the second derivative

.. math::  \mu R^{-1} \circ R^{-1} + \nu / d^2 + 2\, (\mathrm{T}\mathrm{T}') \circ (S A^{-1} S)
           + E H^{-1} E', \quad
           E_{ji} = 2 \sum_{m \in i} \bigl[S A^{-1} D S^{-1}\bigr]_{jm} (\mathrm{T}\Omega')_{jm}
           - [j \in i]\,(\Omega\Omega')_{jj} .

y is kept above 1e-8, which makes S invertible.  The search for d and y leaves the box |W| <= M y out;
the bound, valid for any d and W, keeps it.  Where M cuts off no optimum (`derived_m`) that costs
next to nothing; a node whose W leaves the box is solved by the first-order method too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.bounds import Terms, dual_bound, penalty_of
from spr_or.certified_solver.design import Design, columns_of, design_of
from spr_or.certified_solver.linear_algebra import cholesky, hold
from spr_or.certified_solver.nodes import FirstOrderEngine, Node
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.tree import CONTINUES

if TYPE_CHECKING:
    from spr_or.certified_solver.search import Search

_ACCURACY = 3e-2  # the barrier's weight at nodes times the number of columns, of the incumbent
# Of the barrier at the root, in units of that weight.
_PATH = (60.0, 20.0, 6.0, 2.0, 0.6, 0.2, 0.07)
_ROOT_STEPS, _NODE_STEPS = 15, 1
_STEPS_Y = 30
_TRIALS = 10
_LANCZOS = 16
_LEAST = 1e-8  # of an indicator
_BARRIER = 0.02  # nu / mu, as in `block_newton`


class Begun(NamedTuple):
    """The engine for what the root left over, and the root with the best D (None: none bounds it better)."""

    engine: SharedCurvatureEngine
    root: Node | None


def begin(search: Search, node: Node, first: FirstOrderEngine) -> Begun | None:
    """Bound the root again with the best D; None where Q is singular, so that there is nothing to move."""
    design = search.design
    N, k, _ = design.shape
    values = torch.linalg.eigvalsh(design.quadratic())
    smallest = float(values[0])
    if smallest <= 1e-8 * float(values[-1]):
        return None
    mu = _ACCURACY * abs(search.best.objective) / max(1, N * k)
    best = search.along(
        node, _PATH, lambda x: SharedCurvatureEngine(first, x * mu, _ROOT_STEPS, smallest)
    )
    search.evaluated += 1
    engine = SharedCurvatureEngine(first, mu, _NODE_STEPS, smallest)
    if best is node:
        return Begun(engine, None)
    search.record(best, node.record, CONTINUES)
    search.open(search.fix(best))
    search.report()
    return Begun(engine, best)


class RelaxationPoint(NamedTuple):
    """The answer to indicators y (n,): W and omega (P, q), S (P,), the factor L of S R S + D, h (n,), and
    phi without c0, a float."""

    y: Tensor
    W: Tensor
    omega: Tensor
    S: Tensor
    L: Tensor
    h: Tensor
    phi: float

    def gap(self) -> float:
        """How far phi(y) can be above its minimum."""
        return float((self.h.clamp(min=0) - self.y * self.h).sum())


class SharedCurvatureEngine:
    """Evaluates nodes of a squared loss with moments, any number of outputs.

    ``first`` solves nodes at their box and leaves; ``mu`` weighs the barrier, ``steps`` are Newton's
    steps in d at a node, ``smallest`` is the least eigenvalue of Q.
    """

    def __init__(self, first: FirstOrderEngine, mu: float, steps: int, smallest: float) -> None:
        self.first, self.design, self.mu, self.steps = first, first.design, mu, steps
        self.floor = 0.9 * smallest  # what a node without d starts from
        # Entities fixed to 1 need no moved curvature: what they give back, the free ones can use.
        self.curvature_one = 0.1 * smallest

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        """As `nodes.Engine`."""
        for node in nodes:
            Relaxation(self, node).evaluate(cutoff)
            if node.bound < cutoff and self.leaves_box(node):
                plain = node.keep(torch.ones_like(node.one), node.one)
                limit = self.design.M[node.position, None, None]
                plain.W, plain.d = node.W.clamp(-limit, limit), None
                self.first([plain], cutoff)
                if plain.own > node.own:
                    node.W, node.d, node.own, node.bound = plain.W, None, plain.own, plain.bound
                    node.score, node.indicator = plain.score, plain.indicator

    def leaves_box(self, node: Node) -> bool:
        """Whether |W| is above M y anywhere."""
        assert node.indicator is not None
        if len(node.position) == 0:
            return False
        limit = self.design.M[node.position] * node.indicator
        return bool((node.W.abs().amax((1, 2)) > (1 + 1e-9) * limit + 1e-12).any())


class Relaxation:
    """One node's relaxation, over the P = n k columns of the entities it has left."""

    def __init__(self, engine: SharedCurvatureEngine, node: Node) -> None:
        design = engine.design
        assert design.moments is not None
        self.engine, self.node = engine, node
        at, k = node.position, design.columns.shape[1]
        flat = columns_of(at, k).flatten()
        whole = len(at) == design.shape[0]
        self.n, self.k, self.q = len(at), k, design.shape[2]
        self.G = design.moments.G if whole else design.moments.G[flat][:, flat]
        self.C = design.moments.C if whole else design.moments.C[flat]
        self.c0 = float(design.moments.c0)
        self.ridge = design.ridge[at].repeat_interleave(k)
        self.price, self.free = design.dear[at], node.free
        self.penalty = penalty_of(design, at)
        self.movable = (node.free.unsqueeze(1) & design.real[at]).flatten()
        self.scale = max(abs(self.c0), 1e-30)

    def evaluate(self, cutoff: float) -> None:
        """Fill in the node: W, d, own, bound, score, indicator."""
        node, engine = self.node, self.engine
        d = torch.full_like(self.ridge, engine.floor) if node.d is None else node.d.flatten()
        small = d.clamp(max=engine.curvature_one)
        d = torch.where(node.one.repeat_interleave(self.k), small, d)
        R = self.curvature_left(d)
        at = self.solve_y(R, d, cutoff)
        for _ in range(engine.steps):
            if self.lower(at) >= cutoff or not bool(self.movable.any()):
                break
            moved = self.step(R, d, at, cutoff)
            if moved is None:
                break
            d, R, at = moved
        at = self.minimise(R, d, at, 0.1 * engine.first.tolerance, cutoff)
        self.store(R, d, at)

    def solve_y(self, R: Tensor, d: Tensor, cutoff: float) -> RelaxationPoint:
        """The relaxation at a given d (P,), from the node's indicators."""
        y = torch.full_like(self.price, 0.5) if self.node.indicator is None else self.node.indicator
        y = torch.where(self.node.one, 1.0, y).clamp(min=_LEAST)
        return self.minimise(R, d, self.inner(R, d, y), self.loose, cutoff)

    def lower(self, at: RelaxationPoint) -> float:
        """A bound on the node's value already: what it cuts off needs no better d or y."""
        return at.phi + self.c0 - at.gap()

    def store(self, R: Tensor, d: Tensor, at: RelaxationPoint) -> None:
        node, shape = self.node, (1, self.n, self.k, self.q)
        product = R @ at.W
        value = (at.W * (product - 2 * self.C)).sum() + self.c0
        gradient = (2 * (product - self.C)).view(shape)
        terms = Terms(d.view(1, self.n, self.k), node.free.unsqueeze(0), node.one.unsqueeze(0))
        W = at.W.view(shape)
        bound, score = dual_bound(self.penalty, value.unsqueeze(0), gradient, W, terms)
        node.W, node.d = W[0], d.view(self.n, self.k)
        node.own, node.score, node.indicator = float(bound), score[0], at.y
        node.bound = max(node.bound, node.own)

    @property
    def loose(self) -> float:
        """How exactly y has to be known while d still moves."""
        return 0.1 * self.engine.mu * self.n

    def curvature_left(self, d: Tensor) -> Tensor:
        """R = Q - D."""
        R = self.G.clone()
        R.diagonal().add_(self.ridge - d)
        return R

    def columns(self, x: Tensor) -> Tensor:
        """(n,) over columns, (P,)."""
        return x.repeat_interleave(self.k)

    def blocks(self, x: Tensor) -> Tensor:
        """(P, P) summed over the blocks of entities, (n, n)."""
        return x.view(self.n, self.k, self.n, self.k).sum((1, 3))

    def inner(self, R: Tensor, d: Tensor, y: Tensor) -> RelaxationPoint:
        """Solve for W at y."""
        S = self.columns(y).sqrt()
        scaled = S.unsqueeze(1) * R * S
        scaled.diagonal().add_(d)
        L = cholesky(scaled)
        W = S.unsqueeze(1) * torch.cholesky_solve(S.unsqueeze(1) * self.C, L)
        omega = (self.C - R @ W) / d.unsqueeze(1)
        spent = (d * omega.square().sum(1)).view(self.n, self.k).sum(1)
        h = (spent - self.price).masked_fill(~self.free, 0.0)
        phi = float((self.price * y).sum() - (self.C * W).sum())
        return RelaxationPoint(y, W, omega, S, L, h, phi)

    def hessian(self, d: Tensor, at: RelaxationPoint, inverse: Tensor) -> Tensor:
        """H (n, n), from A^-1."""
        rest = -d.unsqueeze(1) * inverse * d
        rest.diagonal().add_(d)
        rest = rest / at.S.unsqueeze(1) / at.S
        return 2 * self.blocks(rest * (at.omega @ at.omega.mT))

    def held(self, at: RelaxationPoint) -> Tensor:
        """Indicators that stay: fixed ones and those held by 0 or 1, (n,)."""
        return ~self.free | ((at.y <= _LEAST) & (at.h <= 0)) | ((at.y >= 1) & (at.h >= 0))

    def minimise(
        self, R: Tensor, d: Tensor, at: RelaxationPoint, stop: float, cutoff: float
    ) -> RelaxationPoint:
        """Projected Newton in y, until phi is within ``stop`` or the node cut off."""
        for _ in range(_STEPS_Y):
            if at.gap() <= stop or self.lower(at) >= cutoff:
                break
            H = self.hessian(d, at, torch.cholesky_inverse(at.L))
            factor, held = self.factor_y(H, at)
            step = torch.cholesky_solve(at.h.masked_fill(held, 0.0).unsqueeze(1), factor)
            size = 1.0
            for _trial in range(_TRIALS):
                y = torch.where(self.free, (at.y + size * step[:, 0]).clamp(_LEAST, 1), at.y)
                moved = self.inner(R, d, y)
                expected = float((at.h * (y - at.y)).sum())
                if moved.phi <= at.phi - 0.01 * expected + 1e-13 * self.scale:
                    break
                size *= 0.5
            else:
                break
            at = moved
        return at

    def factor_y(self, H: Tensor, at: RelaxationPoint) -> tuple[Tensor, Tensor]:
        """The factor of H with the held indicators taken out, and those."""
        held = self.held(at)
        hold(H, held)
        H.diagonal().add_(1e-12 + 1e-9 * H.diagonal().amax())
        return cholesky(H), held

    def step(
        self, R: Tensor, d: Tensor, at: RelaxationPoint, cutoff: float
    ) -> tuple[Tensor, Tensor, RelaxationPoint] | None:
        """One Newton step in d, shortened until R stays definite and the barrier rises; None at the
        end."""
        mu = self.engine.mu
        nu = _BARRIER * mu
        definite = cholesky(R)
        inverse, solved = torch.cholesky_inverse(definite), torch.cholesky_inverse(at.L)
        y, S = self.columns(at.y), at.S
        tau = at.omega * (1 - y).unsqueeze(1)
        factor, held = self.factor_y(self.hessian(d, at, solved), at)
        N = 2 * (tau @ tau.mT) * (S.unsqueeze(1) * solved * S)
        N.addcmul_(inverse, inverse, value=mu)
        mixed = tau @ at.omega.mT
        E = 2 * (S.unsqueeze(1) * solved * (d / S) * mixed).view(-1, self.n, self.k).sum(2)
        rows = torch.arange(len(d), device=d.device)
        E[rows, rows // self.k] -= at.omega.square().sum(1)
        E = E.masked_fill(held, 0.0)
        N.addmm_(E, torch.cholesky_solve(E.mT, factor))
        gradient = mixed.diagonal() * y - mu * inverse.diagonal() + nu / d
        fixed = ~self.movable
        N.diagonal().add_(nu / d.square())
        hold(N, fixed)
        gradient = gradient.masked_fill(fixed, 0.0)
        step = torch.cholesky_solve(gradient.unsqueeze(1), cholesky(N))
        answer = -torch.cholesky_solve(E.mT @ step, factor)[:, 0]
        step = step[:, 0]
        if not float(gradient @ step) > mu:
            return None
        before = at.phi + self.barrier(definite, d)
        room = torch.where(step < 0, -d / step, torch.inf).amin()
        # R - t diag(step) is definite as long as t is below the inverse of this.
        steepest = _largest_eigenvalue(definite, step)
        size = min(1.0, 0.8 * float(room), 0.9 / max(steepest, 1e-300))
        for _ in range(2 * _TRIALS):
            # Definite with a tenth to spare: at the very border the barrier holds the next steps.
            spare = self.curvature_left(d + 1.1 * size * step)
            if int(torch.linalg.cholesky_ex(spare)[1]) == 0:
                moved = d + size * step
                left = self.curvature_left(moved)
                near = torch.where(self.free, (at.y + size * answer).clamp(_LEAST, 1), at.y)
                found = self.inner(left, moved, near)
                found = self.minimise(left, moved, found, self.loose, cutoff)
                after = found.phi + self.barrier(cholesky(left), moved)
                if after >= before - self.loose:
                    return moved, left, found
            size *= 0.6
        return None

    def barrier(self, L: Tensor, d: Tensor) -> float:
        """mu log det R + nu sum log d over what can move."""
        mu = self.engine.mu
        logs = torch.where(self.movable, d.log(), 0.0).sum()
        return mu * float(2 * L.diagonal().log().sum() + _BARRIER * logs)


def _largest_eigenvalue(L: Tensor, diagonal: Tensor) -> float:
    """The largest eigenvalue of L^-1 diag L^-T, from below, by some steps of Lanczos."""
    v = torch.ones_like(diagonal)
    basis = [v / v.norm()]
    values: list[float] = []
    beside: list[float] = []
    for _ in range(min(_LANCZOS, len(diagonal))):
        back = torch.linalg.solve_triangular(L.mT, basis[-1].unsqueeze(1), upper=True)
        w = torch.linalg.solve_triangular(L, diagonal.unsqueeze(1) * back, upper=False)[:, 0]
        values.append(float(basis[-1] @ w))
        known = torch.stack(basis)
        w = w - known.mT @ (known @ w)
        length = float(w.norm())
        if length < 1e-12 * (abs(values[0]) + 1e-300):
            break
        beside.append(length)
        basis.append(w / length)
    small = torch.diag(torch.tensor(values, dtype=L.dtype))
    for i, length in enumerate(beside[: len(values) - 1]):
        small[i, i + 1] = small[i + 1, i] = length
    return float(torch.linalg.eigvalsh(small)[-1])


def relaxation_at(
    design: Design, d: Tensor, accuracy: float, y: Tensor | None = None
) -> RelaxationPoint:
    """The relaxation of a design with moments without fixings, for moved curvature d (N, k) > 0.

    R = Q - diag(d) has to be positive definite, and the box is left out.  The value is within
    ``accuracy`` N of the minimum over the indicators, which is looked for from y (N,), or from 1/2.
    """
    engine = SharedCurvatureEngine(FirstOrderEngine(design, 1.0), 10 * accuracy, 0, torch.inf)
    relaxation = Relaxation(engine, _node(design, d, y))
    d = d.flatten()
    return relaxation.solve_y(relaxation.curvature_left(d), d, torch.inf)


def perspective_bound(problem: SparseTrainingProblem, accuracy: float) -> float:
    """The projected relaxation (D = lambda alpha, no curvature moved) of a linear problem with squared
    loss and alpha > 0: a lower bound, within ``accuracy`` of its optimum.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=4)
    >>> round(perspective_bound(p, 1e-6), 4)
    0.2368
    """
    design = design_of(problem).with_moments()
    N, k, _ = design.shape
    node = _node(design, design.ridge.unsqueeze(1).expand(N, k))
    SharedCurvatureEngine(FirstOrderEngine(design, accuracy), 1e-9, 0, torch.inf)([node], torch.inf)
    return node.own


def _node(design: Design, d: Tensor, y: Tensor | None = None) -> Node:
    """A node without fixings whose entities have the moved curvature d (N, k)."""
    N = design.shape[0]
    none = torch.zeros(N, dtype=torch.bool)
    return Node(torch.arange(N), none, design.X.new_zeros(design.shape), d, indicator=y)

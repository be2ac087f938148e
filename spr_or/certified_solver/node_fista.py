"""Node relaxations by accelerated proximal gradient steps: any smooth loss, many nodes at a time.

The steps are those of `spr_or.solvers.accelerated_gradient`.  The smooth part is the loss; the rest is
`formulations.projected_prox`, with the node's fixings as lower and upper limits of the indicators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver import node_newton
from spr_or.certified_solver.bounds import Terms, dual_bound, penalty_of
from spr_or.certified_solver.design import Design, curvature, descent, loss_and_gradient
from spr_or.certified_solver.node_prox import NodeProx, node_prox
from spr_or.formulations import projected
from spr_or.solvers.accelerated_gradient import Iterate, advance

_CHECK_EVERY = 10
_POWER_STEPS = 20
_RELATIVE = 0.3
_NEWTON_FROM = 20  # gradient steps
_NEWTON_STEPS = 3


class NodeAnswers(NamedTuple):
    """Of each node: W (B, N, k, q), the point behind ``bound`` (B,), scores (B, N), indicators y~
    (B, N) and the relaxation's ``value`` (B,) at W."""

    W: Tensor
    bound: Tensor
    score: Tensor
    indicator: Tensor
    value: Tensor


class SmoothPart(NamedTuple):
    """The loss as a function of the weights of some entities: its design, the samples ``block`` (n, P)
    of its columns where it has no moments, and curvatures L_i (N,): the loss is below its tangent plus
    sum_i L_i ||W^i - V^i||^2 / 2, so that 1 / L_i is the step of entity i."""

    design: Design
    block: Tensor | None
    smoothness: Tensor


def smooth_part(design: Design) -> SmoothPart:
    """The smooth part for all entities of a design."""
    block = None if design.moments is not None else design.block()
    return SmoothPart(design, block, _smoothness(design, block))


def _smoothness(design: Design, block: Tensor | None) -> Tensor:
    """L_i (N,) of `SmoothPart`: curvature d_i lambda_max(S G S), with d_i the largest diagonal entry of G in
    entity i and S = diag(d)^-1/2, by power iteration.  So columns of any scale take steps of their own."""
    if design.moments is not None:
        G = design.moments.G
        times, diagonal = (lambda v: G @ v), G.diagonal()
    else:
        assert block is not None
        rows = block if design.size is None else block * design.size.sqrt()
        times = lambda v: rows.mT @ (rows @ v) / design.n  # noqa: E731
        diagonal = rows.square().sum(0) / design.n
    d = torch.where(design.real, diagonal.view(design.real.shape), 0.0).amax(-1)
    d = torch.where(d > 0, d, 1.0)
    scale = d.rsqrt().repeat_interleave(design.real.shape[1])
    v = torch.ones_like(scale)
    length = v.norm()
    for _ in range(_POWER_STEPS):
        v = scale * times(scale * v / length)
        length = v.norm().clamp(min=torch.finfo(v.dtype).tiny)
    # It approaches from below, hence the margin; a step that is too long only costs bounds.
    return curvature(design) * 1.1 * length * d


def solve(
    smooth: SmoothPart,
    W: Tensor,
    terms: Terms,
    *,
    start: NodeAnswers | None = None,
    cutoff: float = float("inf"),
    tolerance: float = 1e-6,
    iterations: int = 1000,
    stop: Callable[[], bool] = lambda: False,
) -> NodeAnswers:
    """Solve a batch of nodes from W (B, N, k, q), until each is within ``tolerance`` (absolute) or its
    bound passes ``cutoff``, or ``stop`` says so.  ``start`` is what `evaluate` finds at W, where known."""
    design, block, _ = smooth
    best = start or evaluate(design, W, terms, block)
    open_ = (~done(best, tolerance, cutoff)).nonzero().flatten()
    iterate, terms = Iterate.from_rest(W[open_]), _of(terms, open_)
    metric = smooth.smoothness[:, None, None]
    down = descent(design, 1 / smooth.smoothness, block)
    prox = node_prox(design, 1 / smooth.smoothness, terms)

    def step(V: Tensor) -> Tensor:
        return prox.shrink(down(V))

    newton_at, wait = _NEWTON_FROM, _CHECK_EVERY
    for iteration in range(1, iterations + 1):
        if len(open_) == 0:
            break
        iterate = advance(iterate, step, metric)
        if iteration % _CHECK_EVERY == 0:
            now = evaluate(design, iterate.at, terms, block)
            part = better(NodeAnswers(*(x[open_] for x in best)), now)
            left = ~done(part, tolerance, cutoff)
            worth = iteration >= newton_at and bool(left.any())
            if worth and node_newton.affordable(design, len(open_)):
                found = _newton(smooth, now, terms, prox, down)
                up = found.value < now.value
                wait = _CHECK_EVERY if 2 * int(up.sum()) >= len(up) else 2 * wait
                newton_at = iteration + wait
                iterate = Iterate(*map(partial(_where, up), Iterate.from_rest(found.W), iterate))
                part = better(part, found)
                left = ~done(part, tolerance, cutoff)
            for whole, piece in zip(best, part, strict=True):
                whole[open_] = piece
            if not bool(left.all()):
                open_, iterate, terms = open_[left], iterate.of(left), _of(terms, left)
                prox = node_prox(design, 1 / smooth.smoothness, terms)
            if stop():
                break
    return best


def _newton(
    smooth: SmoothPart,
    at: NodeAnswers,
    terms: Terms,
    prox: NodeProx,
    down: Callable[[Tensor], Tensor],
) -> NodeAnswers:
    """Some Newton steps from ``at``: what they find at best."""
    design, block, L = smooth
    W, best = at.W, at
    for _ in range(_NEWTON_STEPS):
        moved = node_newton.step(design, W, down(W), prox, 1 / L, block)
        W = prox.shrink(down(moved))
        found = evaluate(design, W, terms, block)
        up = found.value < best.value
        best = NodeAnswers(*map(partial(_where, up), found, best))
        if not bool(up.any()):
            break
    return best


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)


def done(at: NodeAnswers, tolerance: float, cutoff: float) -> Tensor:
    """(B,): accurate enough, or cut off; a node far below the cutoff needs no accuracy yet."""
    wanted = (_RELATIVE * (cutoff - at.bound)).clamp(min=tolerance, max=1e300)
    if cutoff == float("inf"):
        wanted = torch.full_like(wanted, tolerance)
    return (at.value - at.bound <= wanted) | (at.bound >= cutoff)


def _of(terms: Terms, rows: Tensor) -> Terms:
    return Terms(None, terms.free[rows], terms.one[rows])


def evaluate(design: Design, W: Tensor, terms: Terms, block: Tensor | None) -> NodeAnswers:
    """Bound and value at W as it is."""
    value, gradient = loss_and_gradient(design, W, block)
    penalty = penalty_of(design)
    bound, score = dual_bound(penalty, value, gradient, W, terms)
    # Most entities have no weights in any node, and neither cost nor indicator.
    used = (terms.one | (W != 0).flatten(2).any(-1)).any(0).nonzero().flatten()
    rows, one, free = W[:, used].flatten(-2), terms.one[:, used], terms.free[:, used]
    alpha, unit, factor = design.scaled
    closed = projected.closed_form(factor[used, None] * rows, alpha, factor[used] * design.M[used])
    relaxed = unit[used] * closed.value
    fixed = penalty.ridge[used] * rows.square().sum(-1) + penalty.price[used]
    cost = torch.where(one, fixed, torch.where(free, relaxed, 0.0)).sum(-1)
    y = torch.zeros_like(score)
    y[:, used] = torch.where(one, 1.0, torch.where(free, closed.indicator, 0.0))
    return NodeAnswers(W, bound, score, y, value + cost - penalty.credit)


def better(old: NodeAnswers, new: NodeAnswers) -> NodeAnswers:
    """Node by node: the point with the higher bound, and the lower of both values."""
    up = new.bound > old.bound
    return NodeAnswers(
        torch.where(up[:, None, None, None], new.W, old.W),
        torch.where(up, new.bound, old.bound),
        torch.where(up[:, None], new.score, old.score),
        torch.where(up[:, None], new.indicator, old.indicator),
        torch.minimum(old.value, new.value),
    )

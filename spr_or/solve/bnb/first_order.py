r"""Node relaxations by an accelerated proximal gradient method: any smooth loss, many nodes at a time.

FISTA (Beck and Teboulle, 2009) with the adaptive restart of O'Donoghue and Candes (2015), one momentum
a node.  The smooth part is the loss, the rest is `spr_or.projected.prox` with the node's fixings as
lower and upper limits of the indicators.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or import projected
from spr_or.losses import LOSSES
from spr_or.solve.bnb.bounds import Terms, dual_bound, penalty_of
from spr_or.solve.bnb.design import Design, loss_and_gradient

_CHECK_EVERY = 10


class Solved(NamedTuple):
    """Of each node: W (B, N, k, q), the point behind ``bound`` (B,), scores (B, N), indicators y~
    (B, N) and the relaxation's ``value`` (B,) at W."""

    W: Tensor
    bound: Tensor
    score: Tensor
    indicator: Tensor
    value: Tensor


def lipschitz(design: Design, block: Tensor | None) -> float:
    """The largest eigenvalue of the loss's Hessian: curvature times that of G, by power iteration."""
    curvature = LOSSES[design.loss].curvature
    assert curvature is not None
    if design.moments is not None:
        return curvature * float(torch.linalg.matrix_norm(design.moments.G, ord=2))
    samples = design.block() if block is None else block
    v = torch.ones(samples.shape[1], dtype=samples.dtype, device=samples.device)
    size = v.norm()
    for _ in range(30):
        v = samples.mT @ (samples @ (v / size))
        size = v.norm().clamp(min=torch.finfo(v.dtype).tiny)
    # Power iteration approaches from below, hence the margin; a divergence would only cost bounds.
    return curvature * 1.1 * float(size) / design.n


def solve(
    design: Design,
    W: Tensor,
    terms: Terms,
    *,
    smoothness: float,
    block: Tensor | None = None,
    cutoff: float = float("inf"),
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> Solved:
    """Solve a batch of nodes from W (B, N, k, q), until each is within ``tolerance`` (absolute) or its
    bound passes ``cutoff``."""
    penalty = penalty_of(design)
    step = 1 / smoothness
    lower, upper = terms.one.to(W), (terms.one | terms.free).to(W)
    shape = W.shape
    V, momentum = W, torch.ones(shape[0], dtype=W.dtype, device=W.device)
    best = _evaluate(design, W, terms, block)
    for iteration in range(1, iterations + 1):
        _, gradient = loss_and_gradient(design, V, block)
        target = (V - step * gradient).flatten(-2)
        following = projected.prox(
            target, step * penalty.weight, design.alpha, design.M, lower=lower, upper=upper
        ).view(shape)
        move = following - W
        away = ((V - following) * move).sum((1, 2, 3)) > 0
        momentum = torch.where(away, 1.0, momentum)
        grown = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        V = following + ((momentum - 1) / grown)[:, None, None, None] * move
        W, momentum = following, grown
        if iteration % _CHECK_EVERY == 0:
            best = _better(best, _evaluate(design, W, terms, block))
            if bool(((best.value - best.bound <= tolerance) | (best.bound >= cutoff)).all()):
                break
    return best


def _evaluate(design: Design, W: Tensor, terms: Terms, block: Tensor | None) -> Solved:
    value, gradient = loss_and_gradient(design, W, block)
    penalty = penalty_of(design)
    bound, score = dual_bound(penalty, value, gradient, W, terms)
    rows = W.flatten(-2)
    relaxed = penalty.weight * projected.value(rows, design.alpha, design.M)
    fixed = penalty.ridge * rows.square().sum(-1) + penalty.price
    cost = torch.where(terms.one, fixed, torch.where(terms.free, relaxed, 0.0)).sum(-1)
    y = projected.indicator(rows, design.alpha, design.M)
    y = torch.where(terms.one, 1.0, torch.where(terms.free, y, 0.0))
    return Solved(W, bound, score, y, value + cost)


def _better(old: Solved, new: Solved) -> Solved:
    """Node by node: the point with the higher bound, and the lower of both values."""
    up = new.bound > old.bound
    return Solved(
        torch.where(up[:, None, None, None], new.W, old.W),
        torch.where(up, new.bound, old.bound),
        torch.where(up[:, None], new.score, old.score),
        torch.where(up[:, None], new.indicator, old.indicator),
        torch.minimum(old.value, new.value),
    )

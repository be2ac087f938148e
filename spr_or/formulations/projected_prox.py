r"""The proximal operator behind `spr_or.formulations.projected.prox`: one number s for each entity.

The prox of t z at v, over |w_j| <= M_j y and lower <= y <= upper, is

.. math::  w_j = \operatorname{clip}\bigl(v_j\, y / s,\; -M_j y,\; M_j y\bigr), \qquad
           s = y + 2 t \alpha ,

because for a given y the weights separate, each with a parabola on an interval. So weight j is
clipped where |v_j| > M_j s. What is left is convex in y, with derivative t (1 - alpha) - F(s),

.. math::  F(s) = \sum_j \psi_j(s), \qquad
           \psi_j(s) = t\alpha\, r_j^2 + M_j (|v_j| - M_j s)_+ , \quad r_j = \min(|v_j|/s,\, M_j) ,

and F decreases: s is the root of F(s) = t (1 - alpha), moved into [lower, upper] + 2 t alpha.

**Closed form.** Where no weight is clipped, F(s) = t alpha ||v||^2 / s^2, so that

.. math::  s = \sqrt{\alpha / (1-\alpha)}\; \lVert v\rVert_2 ,

moved into the interval. If max_j |v_j| / M_j <= s, then no weight is clipped there, and this is the
answer: w = v y / s, a soft-threshold of the group where y is free, (1 - 2 t sqrt(alpha (1-alpha)) / ||v||) v,
and a shrink v / (1 + 2 t alpha) where y = 1. Two reductions decide it, the norm and the largest weight.
They also find most entities that become zero in spite of clipped weights: at y = 0 psi_j is
t phi(v_j / t), phi as in `projected.slope_of`, and phi(u) <= u^2 / (4 alpha) for every u, so that
sqrt(alpha / (1-alpha)) ||v|| <= 2 t alpha suffices.

**The others.** Every psi_j is convex, so Newton's method climbs to the root from the left without
overshooting, and from the right it goes left of the root in one step. It starts at the larger of two
lower bounds of the root. One is the root that the largest weight has by itself, which is the answer
for entities of one weight. The other is the root s_0 of the closed form, if (x = |v_j| / (M_j s_0))

.. math::  \psi_j(s_0) - t\alpha\, v_j^2 / s_0^2
           = M_j^2\, (x - 1) \bigl(s_0 - t\alpha\, (x + 1)\bigr) \ge 0
           \quad\text{for every clipped weight},

so if max_j |v_j| / M_j <= s_0 (s_0 / (t alpha) - 1): then F(s_0) is not less than t (1 - alpha).

**Long rows.** Few of their weights are clipped, and only those have to be looked at one by one: the
others count by the sum of their squares. The largest weight of each block of 32 gives another lower
bound s_1: its psi_j counts as it is, the rest of the block as if it was not clipped. Blocks whose
largest weight is not clipped at s_1 are not clipped further right either, and the root of the other
blocks and that sum of squares, if it is right of s_1, is the root of all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_NEWTON_STEPS = (
    16  # a cap: ten steps were enough for rows of up to 4000 weights over 18 decades of scale
)
_MOST_MOVING = 0.5  # below this share a copy of the moving rows pays
LONG = 512  # weights of a row for which blocks pay
BLOCK = 32  # weights
_MOST_BLOCKS = 0.6  # above this share all weights are looked at
_ROUGH = 1e-2


class Range(NamedTuple):
    """Where s of each entity lies, (N,) each: ``shift`` = 2 t alpha, ``floor``, ``ceiling``.

    No number is zero, so that s divides.
    """

    shift: Tensor
    floor: Tensor
    ceiling: Tensor

    def of(self, chosen: Tensor) -> Range:
        """Some of the entities."""
        return Range(*(column.index_select(0, chosen) for column in self))


def range_of(t: Tensor, alpha: float, lower: float | Tensor, upper: float | Tensor) -> Range:
    """The range of s for steps ``t`` (N,) and lower <= y <= upper, numbers or (N,).

    >>> [x.tolist() for x in range_of(torch.tensor([0.5]), 0.5, 0.0, 1.0)]
    [[0.5], [0.5], [1.5]]
    """
    shift = (t * (2 * alpha)).clamp_(min=torch.finfo(t.dtype).tiny)
    return Range(shift, shift + lower, shift + upper)


def free_roots(
    norm: Tensor, ratio: Tensor, t: Tensor, alpha: float, within: Range
) -> tuple[Tensor, Tensor]:
    """s of entities of which no weight is clipped, and bool: whether it is theirs; all (N,).

    ``norm`` is ||v||_2, ``ratio`` max_j |v_j| / M_j, ``t`` the step. For the other entities s is a lower
    bound of theirs.

    >>> t = torch.full((3,), 0.5)
    >>> norm, ratio = torch.tensor([5.0, 0.1, 1.0]), torch.tensor([0.4, 0.1, 2.0])
    >>> [x.tolist() for x in free_roots(norm, ratio, t, 0.5, range_of(t, 0.5, 0.0, 1.0))]
    [[1.5, 0.5, 1.0], [True, True, False]]
    """
    shift, floor, ceiling = within
    if alpha == 1:
        root = torch.where(norm > 0, math.inf, 0.0).to(norm)
    else:
        root = norm * math.sqrt(alpha / (1 - alpha))
    s = torch.maximum(torch.minimum(root, ceiling), floor)
    # Weights that are at their bound but for rounding are left to those who clip them.
    free = ratio <= s * (1 - 4 * torch.finfo(s.dtype).eps)
    if alpha > 0:
        free |= (root <= shift) & (floor <= shift)
        below = ratio <= root * (root / (alpha * t) - 1)
        s = torch.where(free | below, s, floor)
    return s, free


def roots(
    v: Tensor,
    bound: Tensor,
    t: Tensor,
    alpha: float,
    start: Tensor,
    ceiling: Tensor,
    work: Tensor | None = None,
) -> Tensor:
    """s of any entities, (n,), from the signed or absolute weights v (n, k).

    ``bound`` is (n, 1), or (n, k) with one for each weight; the others are (n,). ``start`` is the least
    that s can be, or a lower bound of it. On a CPU, entities that have arrived are left out of the
    steps. ``work`` is memory for twice as many numbers as v has, or more, in its dtype: fresh memory
    costs more than the arithmetic.

    >>> one = torch.ones(1)
    >>> roots(torch.tensor([[3.0, 4.0]]), one[:, None], one, 0.5, one, 2 * one)
    tensor([2.])
    """
    if alpha == 1:
        return ceiling
    work = v.new_empty(2 * v.numel()) if work is None else work
    t, start, ceiling = t.unsqueeze(1), start.unsqueeze(1), ceiling.unsqueeze(1)
    ridge = t * alpha
    scale = ridge.sqrt()
    rows = _Rows(v, bound, ridge, scale, scale * bound, t - ridge, torch.zeros_like(t))
    cpu = v.device.type == "cpu"
    if cpu and bound.shape[1] == 1 and v.shape[1] >= LONG and v.shape[1] % BLOCK == 0:
        return _long_root(rows, start, ceiling, work, alpha).squeeze(1)
    rows = _absolute(rows, work)
    s = _above_largest(rows, start, ceiling, alpha)
    return (s if v.shape[1] == 1 else _climb(rows, s, ceiling, work, _exact(s))).squeeze(1)


class _Rows(NamedTuple):
    """Entities and what Newton's steps need of them: v or |v| (n, k) and columns (n, 1).

    ``bound`` M and ``most`` = sqrt(t alpha) M are (n, k) where each weight has its own; ``ridge`` is
    t alpha, ``scale`` its root and ``price`` t (1 - alpha); ``rest`` is the sum of the squares of other
    weights of the entity, which are not clipped.
    """

    weights: Tensor
    bound: Tensor
    ridge: Tensor
    scale: Tensor
    most: Tensor
    price: Tensor
    rest: Tensor

    def of(self, chosen: Tensor) -> _Rows:
        """Some of the entities."""
        return _Rows(*(column.index_select(0, chosen) for column in self))


def _exact(s: Tensor) -> float:
    return 4 * torch.finfo(s.dtype).eps


def _absolute(rows: _Rows, work: Tensor) -> _Rows:
    """The rows with |v|, in the second half of ``work``."""
    v = rows.weights
    room = work[-v.numel() :].view(v.shape)
    return rows._replace(weights=torch.abs(v, out=room))


def _above_largest(rows: _Rows, start: Tensor, ceiling: Tensor, alpha: float) -> Tensor:
    """``start``, or the largest root that a weight |v_j| of the entity would have by itself; (n, 1)."""
    weights, bound, ridge, _, _, price, _ = rows
    # Under one bound it is that of the largest weight.
    largest = weights.amax(1, keepdim=True) if bound.shape[1] == 1 else weights
    clipped = largest / bound + (ridge - price / bound / bound)
    on_the_line = math.sqrt(alpha) * bound <= math.sqrt(1 - alpha)
    root = torch.where(on_the_line, clipped, largest * math.sqrt(alpha / (1 - alpha)))
    return torch.minimum(torch.maximum(root.amax(1, keepdim=True), start), ceiling)


def _long_root(
    rows: _Rows, start: Tensor, ceiling: Tensor, work: Tensor, alpha: float
) -> Tensor:
    """The root of rows v under one bound, from the blocks that hold clipped weights; (n, 1)."""
    n, k = rows.weights.shape
    blocks = rows.weights.reshape(n * (k // BLOCK), BLOCK)
    tops = torch.maximum(blocks.amax(1), -blocks.amin(1)).view(n, -1)
    total = _squares(rows.weights)
    largest = rows._replace(weights=tops, rest=(total - _squares(tops)).clamp_(min=0))
    start = _above_largest(largest, start, ceiling, alpha)
    low = _climb(largest, start, ceiling, work, _ROUGH)
    # A little to the left, so that a root that has been found here already is right of it.
    low = torch.maximum(low * (1 - 0.1 * _ROUGH), start)
    looked_at = tops > rows.bound * low
    counts = looked_at.sum(1)
    width = int(counts.max())
    # Where the sum of squares is a small part of another, rounding would show.
    rounds = rows.ridge * total > 4 * rows.price * low * low
    if width > _MOST_BLOCKS * tops.shape[1] or bool(rounds.any()):
        return _climb(_absolute(rows, work), low, ceiling, work, _exact(low))
    some = _chosen_blocks(blocks, looked_at, counts, width)
    few = rows._replace(weights=some, rest=(total - _squares(some)).clamp_(min=0))
    s = _climb(few, low, ceiling, work, _exact(low))
    wrong = ((s <= low) & (low > start)).squeeze(1).nonzero().squeeze(1)
    if len(wrong):
        again = _absolute(rows.of(wrong), work)
        found = _climb(again, start[wrong], ceiling[wrong], work, _exact(low))
        s = s.index_copy(0, wrong, found)
    return s


def _chosen_blocks(blocks: Tensor, chosen: Tensor, counts: Tensor, width: int) -> Tensor:
    """|v| in the ``chosen`` blocks (n, b) of each of n rows, ``counts`` (n,) of them, beside each other.

    Rows of fewer than ``width`` blocks end with zeros: (n, width * BLOCK).
    """
    n, most = chosen.shape
    owner, place = chosen.nonzero(as_tuple=True)
    rank = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    index = torch.zeros((n, width), dtype=torch.int64)
    index[owner, rank] = owner * most + place
    some = blocks.index_select(0, index.flatten()).abs_()
    missing = torch.arange(width) >= counts.unsqueeze(1)
    some.index_fill_(0, missing.flatten().nonzero().squeeze(1), 0.0)
    return some.view(n, width * BLOCK)


def _squares(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, 2, 1, keepdim=True).square_()


def _climb(rows: _Rows, start: Tensor, ceiling: Tensor, work: Tensor, near: float) -> Tensor:
    """The root of F(s) = price from ``start``, which is a lower bound or the floor, to ``ceiling``.

    It has been found when a step moves s by less than ``near`` times itself.
    """
    s = start
    root, index = s, torch.arange(len(s)) if s.device.type == "cpu" else None
    for _ in range(_NEWTON_STEPS):
        # Never to the left: close to the root, rounding could move a step there.
        following = torch.maximum(torch.minimum(_newton(rows, s, work), ceiling), s)
        if index is None:
            root = s = following
            continue
        moving = following - s > near * s
        s = following
        root = s if len(index) == len(root) else root.index_copy(0, index, s)
        left = int(moving.sum())
        if left == 0:
            break
        if left < _MOST_MOVING * len(moving):
            chosen = moving.squeeze(1).nonzero().squeeze(1)
            index, s, ceiling = index[chosen], s[chosen], ceiling[chosen]
            rows = rows.of(chosen)
    return root


def _newton(rows: _Rows, s: Tensor, work: Tensor) -> Tensor:
    """Newton's step from s, (n, 1)."""
    magnitude, bound, ridge, scale, most, price, rest = rows
    room = work[: magnitude.numel()].view(magnitude.shape)
    # Reductions and steps in place: torch.where and comparisons take many times as long on a CPU.
    excess = torch.sub(magnitude, bound * s, out=room).clamp_(min=0)
    # Bounds are not squared before it is known that something is clipped: they may be huge.
    if bound.shape[1] == 1:
        beyond = bound * excess.sum(1, keepdim=True)
        steep = bound * (bound * excess.gt_(0).sum(1, keepdim=True))
    else:
        beyond = (bound * excess).sum(1, keepdim=True)
        steep = excess.gt_(0).mul_(bound).mul_(bound).sum(1, keepdim=True)
    factor = scale / s
    r = torch.mul(magnitude, factor, out=room)
    r = torch.minimum(r, most, out=room)
    quadratic = torch.addcmul(_squares(r), rest, factor.square_())
    unclipped = torch.addcmul(quadratic, ridge, steep, value=-1).clamp_(min=0)
    slope = torch.addcdiv(steep, unclipped, s, value=2).clamp_(min=torch.finfo(s.dtype).tiny)
    return torch.addcdiv(s, quadratic + beyond - price, slope)

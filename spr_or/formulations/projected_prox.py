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
LONG = 1024  # weights of a row for which blocks pay
BLOCK = 32  # weights
_MOST_BLOCKS = 0.6  # above this share all weights are looked at
_ROUGH = 1e-2


class Terms(NamedTuple):
    """What s depends on besides v, for n entities: columns (n, 1).

    ``bound`` M, ``most`` = sqrt(t alpha) M, ``gain`` and ``offset`` are (n, k) where each weight has its own
    bound. ``shift`` is 2 t alpha, and s lies between ``floor`` and ``ceiling``, lower + shift and
    upper + shift; ``ridge`` is t alpha, ``scale`` its root and ``price`` t (1 - alpha). Weight j by itself
    has the root gain |v_j| / M_j + offset. Entities whose closed form is at most ``dead`` are zero in
    spite of clipped weights; it is negative where that cannot be said. ``together`` is None, or (11, n, 1)
    with all of the columns (n, 1), as `stacked` gives them.
    """

    bound: Tensor
    most: Tensor
    gain: Tensor
    offset: Tensor
    floor: Tensor
    ceiling: Tensor
    ridge: Tensor
    scale: Tensor
    price: Tensor
    shift: Tensor
    dead: Tensor
    together: Tensor | None = None

    def stacked(self) -> Terms:
        """The same, stored so that `of` selects all columns in one call: for terms used many times."""
        if self.bound.shape[1] > 1:
            return self
        together = torch.stack(self[:-1])
        return Terms(*together.unbind(0))._replace(together=together)

    def of(self, chosen: Tensor) -> Terms:
        """Those of some of the entities."""
        if self.bound.shape[1] > 1:
            return Terms(*(column.index_select(0, chosen) for column in self[:-1]))
        together = torch.stack(self[:-1]) if self.together is None else self.together
        return Terms(*together.index_select(1, chosen).unbind(0))


def terms_of(
    t: Tensor, alpha: float, bound: Tensor, lower: float | Tensor, upper: float | Tensor
) -> Terms:
    """The terms for steps ``t`` (n, 1), ``bound`` (n, 1) or (n, k), and lower <= y <= upper (n, 1).

    >>> t = torch.tensor([[0.5]])
    >>> terms = terms_of(t, 0.5, t, 0.0, 1.0)
    >>> terms.floor.item(), terms.ceiling.item()
    (0.5, 1.5)
    """
    ridge = t * alpha
    scale, price = ridge.sqrt(), t * (1 - alpha)  # t - ridge would cancel where alpha is near 1
    # Never zero, so that s divides.
    shift = (2 * ridge).clamp_(min=torch.finfo(t.dtype).tiny)
    floor = shift + lower
    dead = torch.where(floor <= shift, shift, -1.0) if alpha > 0 else torch.full_like(t, -1.0)
    # The root of a weight is where it is clipped, or else where it is not.
    on_the_line = math.sqrt(alpha) * bound <= math.sqrt(1 - alpha)
    alone = bound * (math.sqrt(alpha / (1 - alpha)) if alpha < 1 else math.inf)
    gain = torch.where(on_the_line, 1.0, alone)
    offset = torch.where(on_the_line, ridge - price / bound / bound, 0.0)
    return Terms(
        bound, scale * bound, gain, offset, floor, shift + upper, ridge, scale, price, shift, dead
    )


def free_roots(norm: Tensor, ratio: Tensor, alpha: float, terms: Terms) -> tuple[Tensor, Tensor]:
    """s of entities of which no weight is clipped, and bool: whether it is theirs; all (n, 1).

    ``norm`` is ||v||_2, ``ratio`` max_j |v_j| / M_j. What s is for the others does not matter.

    >>> t = torch.full((3, 1), 0.5)
    >>> norm, ratio = torch.tensor([[5.0], [0.1], [1.0]]), torch.tensor([[0.4], [0.1], [2.0]])
    >>> s, free = free_roots(norm, ratio, 0.5, terms_of(t, 0.5, t, 0.0, 1.0))
    >>> s.flatten().tolist(), free.flatten().tolist()
    ([1.5, 0.5, 1.0], [True, True, False])
    """
    root = _unclipped_root(norm, alpha)
    s = torch.clamp(root, terms.floor, terms.ceiling)
    # Weights that are at their bound but for rounding are left to those who clip them.
    free = ratio * (1 + 4 * torch.finfo(s.dtype).eps) <= s
    return s, free.logical_or_(root <= terms.dead)


def _unclipped_root(norm: Tensor, alpha: float) -> Tensor:
    if alpha == 1:
        return torch.where(norm > 0, math.inf, 0.0).to(norm)
    return norm * math.sqrt(alpha / (1 - alpha))


def roots(
    v: Tensor, norm: Tensor, ratio: Tensor, alpha: float, terms: Terms, work: Tensor | None = None
) -> Tensor:
    """s of any entities, (n, 1), from the signed or absolute weights v (n, k); the others as above.

    On a CPU, entities that have arrived are left out of the steps. ``work`` is memory for twice as
    many numbers as v has, or more, in its dtype: fresh memory costs more than the arithmetic.

    >>> one, v = torch.ones(1, 1), torch.tensor([[3.0, 4.0]])
    >>> roots(v, 5 * one, 4 * one, 0.5, terms_of(one, 0.5, one, 0.0, 1.0)).item()
    2.0
    """
    if alpha == 1:
        return terms.ceiling
    work = v.new_empty(2 * v.numel()) if work is None else work
    start = _start(v, norm, ratio, alpha, terms)
    if v.shape[1] == 1:
        return start
    rows = _Rows(
        v, terms.bound, terms.ridge, terms.scale, terms.most, terms.price, torch.zeros_like(norm)
    )
    cpu = v.device.type == "cpu"
    if cpu and terms.bound.shape[1] == 1 and v.shape[1] >= LONG and v.shape[1] % BLOCK == 0:
        return _long_root(rows, norm, start, terms.ceiling, work)
    return _climb(_absolute(rows, work), start, terms.ceiling, work, _exact(start))


def _start(v: Tensor, norm: Tensor, ratio: Tensor, alpha: float, terms: Terms) -> Tensor:
    """A lower bound of the root, moved between floor and ceiling; (n, 1)."""
    if terms.bound.shape[1] == 1:
        root = torch.addcmul(terms.offset, ratio, terms.gain)
    else:
        root = (terms.offset + v.abs() / terms.bound * terms.gain).amax(1, keepdim=True)
    if alpha > 0 and v.shape[1] > 1:
        free = _unclipped_root(norm, alpha)
        below = ratio <= free * (free / terms.ridge - 1)
        root = torch.where(below, torch.maximum(root, free), root)
    return torch.clamp(root, terms.floor, terms.ceiling)


def shrink(v: Tensor, alpha: float, terms: Terms, upper: float | Tensor, inverse: Tensor) -> Tensor:
    """The proximal points of v (n, k); ``upper`` as in `terms_of`, ``inverse`` is 1 / M.

    >>> one, v = torch.ones(1, 1), torch.tensor([[3.0, 4.0], [0.1, -0.1]])
    >>> t, ten = one.expand(2, 1) / 2, 10 * one.expand(2, 1)
    >>> shrink(v, 0.5, terms_of(t, 0.5, ten, 0.0, 1.0), 1.0, 1 / ten)[0].tolist()
    [2.0, 2.6666667461395264]
    """
    s, left = _scales(v, alpha, terms, inverse)
    y = s - terms.shift
    y = y.clamp_(max=upper) if isinstance(upper, float | int) else torch.minimum(y, upper)
    w = v * (y / s)
    if left is not None and len(left) == 0:
        return w
    limit = terms.bound * y
    return torch.clamp(w, -limit, limit)


class Derivative(NamedTuple):
    """The derivative of `shrink` at v (n, k), for each entity diag(``diagonal``) + ``factor`` column column',
    with ``diagonal`` and ``column`` (n, k) and ``factor`` (n, 1)."""

    diagonal: Tensor
    column: Tensor
    factor: Tensor


def derivative(v: Tensor, alpha: float, terms: Terms, inverse: Tensor) -> Derivative:
    r"""An element of the generalised derivative of `shrink` at v (n, k), with ``inverse`` 1 / M (n, 1).

    With y = s - 2 t alpha, w_j = v_j y / s, or M y where it is clipped. F(s, v) = t (1 - alpha) gives s,
    and dF / dv_j = dw_j / ds, so that

    .. math::  \frac{dw}{dv} = \frac ys\, \mathrm{diag}(\text{not clipped})
               + \frac{1}{-F_s}\, \frac{dw}{ds} \Bigl(\frac{dw}{ds}\Bigr)' ,

    without the second term where y is held by its limits.

    >>> one, v = torch.ones(1, 1).double(), torch.tensor([[3.0, 4.0]]).double()
    >>> terms = terms_of(one, 0.5, 100 * one, 0.0, 10.0)
    >>> found = derivative(v, 0.5, terms, one / 100)
    >>> jacobian = torch.diag(found.diagonal[0]) + found.factor * found.column.mT @ found.column
    >>> moved = shrink(v + 1e-6, 0.5, terms, 10.0, one / 100) - shrink(v, 0.5, terms, 10.0, one / 100)
    >>> torch.allclose(moved / 1e-6, jacobian.sum(1), atol=1e-5)
    True
    """
    s, _ = _scales(v, alpha, terms, inverse)
    clipped = v.abs() > terms.bound * s
    share = v / s
    column = torch.where(clipped, terms.bound * v.sign(), terms.shift / s * share)
    steep = torch.where(clipped, terms.bound.square(), terms.shift / s * share.square())
    steep = steep.sum(1, keepdim=True)
    moves = (s > terms.floor) & (s < terms.ceiling) & (steep > torch.finfo(v.dtype).tiny)
    factor = torch.where(moves, 1 / steep, 0.0)
    return Derivative(torch.where(clipped, 0.0, 1 - terms.shift / s), column, factor)


def _scales(v: Tensor, alpha: float, terms: Terms, inverse: Tensor) -> tuple[Tensor, Tensor | None]:
    """s (n, 1) of any entities; on a CPU, the indices of those whose closed form does not hold."""
    magnitude = v.abs()
    peak = magnitude.amax(1, keepdim=True)
    ratio = peak * inverse if inverse.shape[1] == 1 else (magnitude * inverse).amax(1, keepdim=True)
    norm = norm_of(magnitude, peak)
    s, free = free_roots(norm, ratio, alpha, terms)
    if v.device.type != "cpu":
        return torch.where(free, s, roots(magnitude, norm, ratio, alpha, terms)), None
    left = free.logical_not().flatten().nonzero().flatten()
    if len(left):
        some = magnitude.index_select(0, left)
        n, largest = norm.index_select(0, left), ratio.index_select(0, left)
        s.index_copy_(0, left, roots(some, n, largest, alpha, terms.of(left)))
    return s, left


def norm_of(magnitude: Tensor, peak: Tensor) -> Tensor:
    """||w||_2 from |w| (..., k) and its largest (..., 1): (..., 1)."""
    if magnitude.dtype == torch.float64:
        return torch.linalg.vector_norm(magnitude, dim=-1, keepdim=True)
    # Dividing by the peak first keeps the squares of very small or very large weights representable.
    scale = torch.where(peak > 0, peak, 1.0)
    return scale * torch.linalg.vector_norm(magnitude / scale, dim=-1, keepdim=True)


class _Rows(NamedTuple):
    """Entities and what Newton's steps need of them: v or |v| (n, k) and columns (n, 1).

    The columns are those of `Terms`; ``rest`` is the sum of the squares of other weights of the entity,
    which are not clipped.
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


def _long_root(rows: _Rows, norm: Tensor, start: Tensor, ceiling: Tensor, work: Tensor) -> Tensor:
    """The root of rows v under one bound, from the blocks that hold clipped weights; (n, 1)."""
    n, k = rows.weights.shape
    blocks = rows.weights.reshape(n * (k // BLOCK), BLOCK)
    tops = torch.maximum(blocks.amax(1), -blocks.amin(1)).view(n, -1)
    total = norm.square()
    largest = rows._replace(weights=tops, rest=(total - _squares(tops)).clamp_(min=0))
    low = _climb(largest, start, ceiling, work, _ROUGH)
    # A little to the left, so that a root that has been found here already is right of it.
    low = torch.maximum(low * (1 - 0.1 * _ROUGH), start)
    looked_at = tops > rows.bound * low
    counts = looked_at.sum(1)
    width = int(counts.max())
    # Where the sum of squares is a small part of another, rounding would show.
    rounds = rows.ridge * total > 4 * rows.price * low * low
    if width > _MOST_BLOCKS * tops.shape[1] or bool(rounds.any()):
        rows = _absolute(rows, work)
        # A step from anywhere ends left of the root, where the climb has to begin.
        below = torch.minimum(_newton(rows, low, work), ceiling)
        return _climb(rows, torch.maximum(below, start), ceiling, work, _exact(low))
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

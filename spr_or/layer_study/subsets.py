"""Supports to compare with, and the price of a channel at which a given size is the best one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.layer_study.standard import Standard


class Elimination(NamedTuple):
    """``curve``: loss and ridge with 0, 1, ..., N groups; ``order``: the groups as they were dropped."""

    curve: list[float]
    order: list[int]

    def support(self, size: int) -> Tensor:
        """The groups left when ``size`` are, as (N,) bool."""
        left = torch.ones(len(self.order), dtype=torch.bool)
        left[self.order[: len(self.order) - size]] = False
        return left


def elimination(standard: Standard, ridge: float) -> Elimination:
    """Drop the group that costs least, one after another.

    The cost of dropping a group i at the current weights is tr W_i' ((Q^-1)_ii)^-1 W_i, with Q = G +
    ridge over the groups left; weights and Q^-1 follow by block elimination.
    """
    Q = standard.G
    C = standard.U.mT @ standard.Y
    Q.diagonal().add_(ridge)
    inverse = torch.linalg.inv(Q)
    W = inverse @ C
    owner = torch.cat([torch.full((len(g),), i) for i, g in enumerate(standard.groups)])
    value = 1.0 - float((C * W).sum())
    curve, order = [value], []
    while len(owner):
        costs = [
            (float((W[at] * torch.linalg.solve(inverse[at][:, at], W[at])).sum()), int(i))
            for i in owner.unique()
            for at in [owner == i]
        ]
        cost, worst = min(costs)
        value += cost
        out, left = owner == worst, owner != worst
        pivot = torch.linalg.solve(inverse[out][:, out], torch.cat([W[out], inverse[out]], 1))
        cross = inverse[left][:, out]
        q = W.shape[1]
        W = W[left] - cross @ pivot[:, :q]
        inverse = inverse[left][:, left] - cross @ pivot[:, q:][:, left]
        owner = owner[left]
        curve.append(value)
        order.append(worst)
    return Elimination(curve[::-1], order)


def price_for(curve: list[float], size: int) -> float:
    """A price at which ``size`` is the best size on the curve's lower convex hull, or next to it.

    The best size for a price p minimises curve[s] + p s.  At a corner of the hull the geometric mean of
    the slopes beside it is taken, along an edge its slope.

    >>> price_for([1.0, 0.5, 0.3, 0.2], 1), price_for([1.0, 0.9, 0.2], 1)
    (0.316..., 0.4)
    """
    hull: list[int] = []
    for s in range(len(curve)):
        while len(hull) > 1 and _slope(curve, hull[-2], hull[-1]) <= _slope(curve, hull[-1], s):
            hull.pop()
        hull.append(s)
    left = max(h for h in hull if h <= size)
    right = min(h for h in hull if h >= size)
    if left < right:
        return _slope(curve, left, right)
    place = hull.index(size)
    slopes = []
    if place > 0:
        slopes.append(_slope(curve, hull[place - 1], size))
    if place + 1 < len(hull):
        slopes.append(_slope(curve, size, hull[place + 1]))
    product = torch.tensor(slopes, dtype=torch.float64).clamp(min=1e-12).log().mean().exp()
    return float(product)


def largest(norms: Tensor, channels: Tensor, size: int) -> Tensor:
    """The ``size`` of ``channels`` (N,) with the largest kernels, as (N,) bool: magnitude pruning."""
    chosen = torch.zeros(len(channels), dtype=torch.bool)
    chosen[norms[channels].argsort(descending=True)[:size]] = True
    return chosen


def _slope(curve: list[float], a: int, b: int) -> float:
    """What each channel between sizes a < b saves."""
    return (curve[a] - curve[b]) / (b - a)

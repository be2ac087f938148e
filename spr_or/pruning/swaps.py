r"""Better masks by swaps: an entity that goes comes back, and another of its layer goes for it.

A cut chooses by prices of single entities. What a set of entities costs is more: two that do the same
are each cheap, and both are not. Around the present masks the loss as a function of gates m (0 or 1, one
for each entity's output) is

.. math::  \ell(m + \delta) \approx \ell(m) + g^\top\delta + \tfrac12 \delta^\top F \delta,

with g the mean gradient and F the Fisher matrix, :math:`\frac1B\sum_b s_b s_b^\top`, where s_b is the
gradient at image b for a label drawn from the network's own probabilities. F has the rank of the
images and is never formed: F delta is two products with S. Swaps with a falling model are taken one
after the other, g being updated by F delta, and kept if the loss of other images falls.

Swaps stay within a layer, which keeps its number of entities, so every limit and multiple that was met
still is, and every budget where numbers decide what is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spr_or.pruning.budget import EntityNumbers, Masks
from spr_or.pruning.counts import Example
from spr_or.pruning.entity_gates import Batch, EntityGates
from spr_or.pruning.layer_entities import LayerEntities

_ROUNDS = 40
_SWAPS = 16  # tried together at first
_DECIDED = 0.05  # indicators nearer than this to 0 or 1 are not touched


class Improved(NamedTuple):
    """Masks after ``swaps`` swaps, and the loss on the images that judged them, before and after."""

    masks: Masks
    swaps: int
    loss_before: float
    loss_after: float


def improve_by_swaps(
    model: nn.Module,
    layers: Sequence[LayerEntities],
    masks: Masks,
    modelled: Batch,
    judged: Batch,
    example: Example,
    indicators: EntityNumbers | None = None,
    allowed: Callable[[Masks], bool] = lambda masks: True,
) -> Improved:
    """Swap entities within layers as long as the loss on ``judged`` falls.

    model: with the weights of all entities, masked or not; it is left as it was. masks: True = keep,
    (N,) for each of ``layers``. modelled, judged: images and labels, on the model's device. indicators:
    y~ of the entities; those near 0 or 1 stay where they are (relaxation-induced neighbourhoods).
    allowed: whether masks meet the budget, for networks where more than the numbers of a layer counts.

    Raises ``ValueError`` for entities that are no channels of layers, such as positions.
    """
    gates = EntityGates(model, layers, example)
    present = torch.cat([masks[layer.name].cpu() for layer in layers])
    free = torch.ones_like(present)
    if indicators is not None:
        y = torch.cat([indicators[layer.name].double().cpu() for layer in layers])
        free = (y > _DECIDED) & (y < 1 - _DECIDED)
    parts = [layer.count for layer in layers]

    def split(present: Tensor) -> Masks:
        rows = zip(layers, present.split(parts), strict=True)
        return {layer.name: part.to(masks[layer.name].device) for layer, part in rows}

    before = loss = gates.loss(present, judged)
    done, together = 0, _SWAPS
    slopes = None
    for number in range(_ROUNDS):
        if slopes is None:
            slopes = gates.slopes(present, modelled, seed=number)
        swaps = _best_swaps(present, free, parts, *slopes, limit=together)
        if not swaps:
            break
        moved = present.clone()
        for out, back in swaps:
            moved[out], moved[back] = False, True
        after = gates.loss(moved, judged) if allowed(split(moved)) else math.inf
        if after < loss:
            present, loss, slopes = moved, after, None
            done += len(swaps)
        elif len(swaps) == 1:
            free[swaps[0][0]] = False  # the model was wrong about this one
        else:
            together = max(1, len(swaps) // 4)
    return Improved(split(present), done, before, loss)


def _best_swaps(
    present: Tensor, free: Tensor, parts: Sequence[int], slope: Tensor, S: Tensor, limit: int
) -> list[tuple[int, int]]:
    """Swaps (out, back) that lower the model, the best first, each seeing those before it."""
    B = len(S)
    curvature = S.square().sum(0) / B
    open_ = free.clone()
    swaps: list[tuple[int, int]] = []
    while len(swaps) < limit:
        best: tuple[float, int, int] = (0.0, -1, -1)
        start = 0
        for count in parts:
            own = torch.arange(start, start + count)
            start += count
            out, back = own[present[own] & open_[own]], own[~present[own] & open_[own]]
            if not len(out) or not len(back):
                continue
            shared = S[:, out].T @ S[:, back] / B
            change = (
                (curvature[out] / 2 - slope[out]).unsqueeze(1)
                + (curvature[back] / 2 + slope[back]).unsqueeze(0)
                - shared
            )
            place = int(change.argmin())
            value = float(change.flatten()[place])
            if value < best[0]:
                best = value, int(out[place // len(back)]), int(back[place % len(back)])
        if best[1] < 0:
            break
        _, out_, back_ = best
        swaps.append((out_, back_))
        open_[[out_, back_]] = False
        slope = slope + S.T @ (S[:, back_] - S[:, out_]) / B
    return swaps

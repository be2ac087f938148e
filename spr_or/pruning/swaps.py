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

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.pruning.budget import EntityNumbers, Masks
from spr_or.pruning.counts import Example
from spr_or.pruning.following_norms import LAYERS, NORMS, following_norms
from spr_or.pruning.layer_entities import LayerEntities, SliceEntities
from spr_or.pruning.module_masks import groups_of
from spr_or.utils.evaluating import evaluating

_ROUNDS = 40
_SWAPS = 16  # tried together at first
_DECIDED = 0.05  # indicators nearer than this to 0 or 1 are not touched
_CRACK = 1e-3

Batch = tuple[Tensor, Tensor]


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
    gates = _Gates(model, layers, example)
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


class _Gates:
    """A number for each entity that multiplies its channels, behind the norm if there is one."""

    def __init__(self, model: nn.Module, layers: Sequence[LayerEntities], example: Example) -> None:
        self.model = model
        self.entities = gated_channels(model, layers, example)

    @torch.no_grad()
    def loss(self, present: Tensor, batch: Batch) -> float:
        """The mean cross-entropy with entities present or not."""
        images, labels = batch
        with self._gated(present.to(images).unsqueeze(0)):
            return float(F.cross_entropy(self.model(images), labels))

    def slopes(self, present: Tensor, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """The mean gradient by the gates (E,), and the gradients for drawn labels (B, E), in float64."""
        images, labels = batch
        # A ReLU has no slope at zero: what has gone is opened by a crack.
        gates = present.to(images).clamp(min=_CRACK).expand(len(images), -1).clone()
        gates.requires_grad_()
        with self._gated(gates), torch.enable_grad():
            outputs = self.model(images)
            generator = torch.Generator().manual_seed(seed)
            chances = outputs.detach().softmax(1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1).to(labels)
            sums = [F.cross_entropy(outputs, y, reduction="sum") for y in (labels, drawn)]
            (own,) = torch.autograd.grad(sums[0], gates, retain_graph=True)
            (other,) = torch.autograd.grad(sums[1], gates)
        return own.double().mean(0).cpu(), other.double().cpu()

    @contextlib.contextmanager
    def _gated(self, gates: Tensor) -> Iterator[None]:
        modules = dict(self.model.named_modules())
        padded = torch.cat([gates, gates.new_ones(len(gates), 1)], dim=1)

        def hook(module: nn.Module, inputs: object, output: Tensor, where: Tensor) -> Tensor:
            axis = output.dim() - 1 if isinstance(module, nn.Linear) else 1
            shape = [1] * output.dim()
            shape[0], shape[axis] = len(padded), len(where)
            return output * padded[:, where.to(padded.device)].view(shape)

        hooks = [
            modules[name].register_forward_hook(
                lambda module, inputs, output, w=where: hook(module, inputs, output, w)
            )
            for name, where in self.entities.items()
        ]
        with evaluating(self.model, hooks):
            yield


def gated_channels(
    model: nn.Module, layers: Sequence[LayerEntities], example: Example
) -> dict[str, Tensor]:
    """For each module that is gated the entity of each of its channels, int64; E where it has none.

    Entities of all ``layers`` are counted through, E is their number. What is gated is the norm behind
    a layer, or the layer itself where none follows.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> gated_channels(net, layer_entities(net, {"0": "neurons"}), torch.zeros(1, 2))
    {'0': tensor([0, 1, 2])}
    """
    norms = following_norms(model, example)
    total = sum(layer.count for layer in layers)
    found: dict[str, Tensor] = {}
    start = 0
    for layer, places in zip(layers, _channels(model, layers), strict=True):
        for name, index in places.items():
            for gated in norms.get(name) or [name]:
                module = model.get_submodule(gated)
                where = found.setdefault(gated, torch.full((_width(module),), total))
                where[index] = torch.arange(start, start + layer.count).unsqueeze(1)
        start += layer.count
    return found


def _channels(model: nn.Module, layers: Sequence[LayerEntities]) -> list[Mapping[str, Tensor]]:
    """For each of ``layers`` the modules that write its entities, with their channels (N, m)."""
    groups = groups_of(model, layers)
    if groups:
        return [
            {
                member.parameter.removesuffix(".weight"): member.index
                for member in group.members
                if _writes(model, member.parameter, member.dim)
            }
            for group in groups
        ]
    for layer in layers:
        if not isinstance(layer, SliceEntities):
            raise ValueError(f"{layer.name!r} has entities given by positions: no swaps there")
    return [{layer.name: torch.arange(layer.count).unsqueeze(1)} for layer in layers]


def _writes(model: nn.Module, parameter: str, dim: int) -> bool:
    """Whether it is the weight of a layer, cut along its outputs; other parameters follow one."""
    owner, _, key = parameter.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, LAYERS):
        return key == "weight" and dim == 0
    if isinstance(module, NORMS):
        return False
    raise ValueError(f"{parameter!r} is of no layer or norm: its entities cannot be gated")


def _width(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    if weight is None:
        raise ValueError(
            f"{type(module).__name__} behind a layer has no weight to count channels by"
        )
    return len(weight)

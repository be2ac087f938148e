"""Numbers that multiply the channels of entities, so that masks can be tried without being applied.

A gate stands behind the norm that follows a layer, or behind the layer itself. With 0 and 1 the network
computes what it would with the masks applied; between them its slopes tell what entities are worth.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.pruning.counts import Example
from spr_or.pruning.following_norms import LAYERS, NORMS, following_norms
from spr_or.pruning.layer_entities import LayerEntities, SliceEntities
from spr_or.pruning.module_masks import groups_of
from spr_or.utils.evaluating import evaluating

_CRACK = 1e-3

Batch = tuple[Tensor, Tensor]


class EntityGates:
    """A number for each entity that multiplies its channels, behind the norm if there is one."""

    def __init__(self, model: nn.Module, layers: Sequence[LayerEntities], example: Example) -> None:
        self.model = model
        self.entities = gated_channels(model, layers, example)

    @torch.no_grad()
    def loss(self, present: Tensor, batch: Batch) -> float:
        """The mean cross-entropy with entities present or not."""
        images, labels = batch
        with self.gated(present.to(images).unsqueeze(0)):
            return float(F.cross_entropy(self.model(images), labels))

    def slopes(self, present: Tensor, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """The mean gradient by the gates (E,), and the gradients for drawn labels (B, E), in float64."""
        images, labels = batch
        # A ReLU has no slope at zero: what has gone is opened by a crack.
        gates = present.to(images).clamp(min=_CRACK).expand(len(images), -1).clone()
        gates.requires_grad_()
        with self.gated(gates), torch.enable_grad():
            outputs = self.model(images)
            generator = torch.Generator().manual_seed(seed)
            chances = outputs.detach().softmax(1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1).to(labels)
            sums = [F.cross_entropy(outputs, y, reduction="sum") for y in (labels, drawn)]
            (own,) = torch.autograd.grad(sums[0], gates, retain_graph=True)
            (other,) = torch.autograd.grad(sums[1], gates)
        return own.double().mean(0).cpu(), other.double().cpu()

    @contextlib.contextmanager
    def gated(self, gates: Tensor) -> Iterator[None]:
        """Evaluation mode with these gates, (B, E) or (1, E), until it is left."""
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

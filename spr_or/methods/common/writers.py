"""Which modules write the entities, and scores of a module's channels as scores of entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spr_or.pruning.following_norms import NORMS
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.groups import CONVOLUTIONS, output_dim
from spr_or.pruning.layer_entities import LayerEntities, SliceEntities


class Channels(NamedTuple):
    """Channels of one module's output: entity i has those of ``numbers[i]``, int64 (N, m)."""

    module: str
    numbers: Tensor


def writers(model: nn.Module, layer: LayerEntities) -> list[Channels]:
    """The convolutions and linear layers whose outputs the entities are, with the channels of each.

    A filter or neuron is one channel of its layer; a group may have channels in several layers. Empty
    for entities of another kind: input channels, positions.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3))
    >>> writers(net, layer_entities(net)[0])
    [Channels(module='0', numbers=tensor([[0],
            [1]]))]
    """
    return [
        Channels(name, index)
        for name, key, dim, index in _slices(model, layer)
        if key == "weight"
        and isinstance(module := model.get_submodule(name), (*CONVOLUTIONS, nn.Linear))
        and dim == output_dim(module)
    ]


def scaling_norms(
    model: nn.Module, layer: LayerEntities, following: Mapping[str, Sequence[str]]
) -> list[Channels]:
    """The norms whose scales belong to the entities.

    Of a filter they are those in ``following`` (`spr_or.pruning.following_norms`), of a group those
    that are its members. Norms without a scale do not count.
    """
    if isinstance(layer, GroupEntities):
        named = [
            Channels(name, index)
            for name, key, _, index in _slices(model, layer)
            if key == "weight" and isinstance(model.get_submodule(name), NORMS)
        ]
    else:
        named = [
            Channels(norm, made.numbers)
            for made in writers(model, layer)
            for norm in following.get(made.module, ())
        ]
    return [c for c in named if getattr(model.get_submodule(c.module), "weight", None) is not None]


def mean_score(channels: Sequence[Channels], by_module: Mapping[str, Tensor]) -> Tensor:
    """The mean of the scores of each entity's channels, (N,), over all modules that have some.

    >>> both = [Channels("a", torch.tensor([[0], [1]])), Channels("b", torch.tensor([[1], [0]]))]
    >>> mean_score(both, {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])})
    tensor([2.5000, 2.5000])
    """
    parts = [by_module[c.module][c.numbers.to(by_module[c.module].device)] for c in channels]
    return torch.cat(parts, 1).mean(1)


def _slices(model: nn.Module, layer: LayerEntities) -> list[tuple[str, str, int, Tensor]]:
    """(module, key, dimension, index) of every parameter with something of the entities."""
    names = {id(p): name for name, p in model.named_parameters()}
    if isinstance(layer, SliceEntities):
        index = torch.arange(layer.count).unsqueeze(1)
        return [(layer.name, "weight", layer.dim, index)]
    if isinstance(layer, GroupEntities):
        found = []
        for part in layer.parts:
            module, _, key = names[id(part.parameter)].rpartition(".")
            found.append((module, key, part.dim, part.index))
        return found
    return []

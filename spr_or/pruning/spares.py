"""The last weights of entities that a proximal step has made zero, should a budget want some back.

A zero filter behind a BatchNorm and a ReLU often gets no gradient, so it cannot return by itself, and
compaction would take it away whatever its mask says. One that is given back needs weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spr_or.pruning.following_norms import following_norms
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.regularizer import SPR

State = dict[str, Any]
_PARAMETERS = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var")


class _Place(NamedTuple):
    """A tensor in which entity i has the slices ``slices[i]`` along ``dim``.

    Buffers are replaced when a model moves to another device, so the tensor is looked up by name.
    """

    module: nn.Module
    key: str
    dim: int
    slices: Tensor

    def tensor(self) -> Tensor:
        found: Tensor = getattr(self.module, self.key)
        return found.detach()

    def copy_(self, target: Tensor, source: Tensor, chosen: Tensor) -> None:
        """Copy the slices of the ``chosen`` entities (bool (N,)), also between devices."""
        slices = self.slices[chosen.to(self.slices.device)].flatten()
        part = source.index_select(self.dim, slices.to(source.device))
        target.index_copy_(self.dim, slices.to(target.device), part.to(target.device))


class Spares:
    """Copies of every entity's weights and BatchNorm statistics, from when it last had any.

    ``example``: an input, for networks in which only a run shows the norm behind a layer.

    ``age``: {layer: (N,) float64}, the epoch in which an entity was last not zero plus half its
    indicator then; -1 before the first epoch. The larger, the later it went.
    """

    def __init__(self, model: nn.Module, spr: SPR, example: Any = None) -> None:
        self.spr = spr
        grouped = any(isinstance(layer, GroupEntities) for layer in spr.layers)
        norms = {} if grouped else following_norms(model, example)
        self.places = {
            layer.name: (
                _of_group(model, layer)
                if isinstance(layer, GroupEntities)
                else _of_layer(model, layer, norms.get(layer.name, []))
            )
            for layer in spr.layers
        }
        self.copies = {
            name: [place.tensor().clone() for place in places]
            for name, places in self.places.items()
        }
        self.age = {
            layer.name: torch.full((layer.count,), -1.0, dtype=torch.float64)
            for layer in spr.layers
        }

    @torch.no_grad()
    def keep(self, epoch: int) -> None:
        """After an epoch: copy what the entities have that are not zero."""
        for name, value in self.spr.entity_values().items():
            alive = value.peak > 0
            for place, copy in zip(self.places[name], self.copies[name], strict=True):
                place.copy_(copy, place.tensor(), alive)
            age = (epoch + value.indicator / 2).to(self.age[name])
            self.age[name] = torch.where(alive.cpu(), age, self.age[name])

    @torch.no_grad()
    def give_back_(self, masks: dict[str, Tensor]) -> None:
        """Write the copies into the zero entities that ``masks`` (True = keep) keep."""
        for name, value in self.spr.entity_values().items():
            back = masks[name] & (value.peak == 0)
            for place, copy in zip(self.places[name], self.copies[name], strict=True):
                place.copy_(place.tensor(), copy, back)

    def state(self) -> State:
        """What `load` takes: for a checkpoint."""
        copies = {name: [copy.cpu() for copy in rows] for name, rows in self.copies.items()}
        return {"copies": copies, "age": dict(self.age)}

    def load(self, state: State) -> None:
        """Continue from `state`."""
        self.age = dict(state["age"])
        for name, rows in state["copies"].items():
            for copy, kept in zip(self.copies[name], rows, strict=True):
                copy.copy_(kept)


def _of_layer(model: nn.Module, layer: LayerEntities, norms: list[str]) -> list[_Place]:
    """The slices of a layer, along dimension 1 if it is transposed, and of the BatchNorms behind it."""
    index = torch.arange(layer.count).unsqueeze(1)
    own = model.get_submodule(layer.name)
    return [
        _Place(module, key, layer.entity_dim if (module, key) == (own, "weight") else 0, index)
        for module in (own, *map(model.get_submodule, norms))
        for key in (*_PARAMETERS, *_STATISTICS)
        if getattr(module, key, None) is not None
    ]


def _of_group(model: nn.Module, group: GroupEntities) -> list[_Place]:
    """The slices of a group, and the statistics of norms that have a scale or shift in it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places = []
    counted: dict[nn.Module, Tensor] = {}
    for part in group.parts:
        owner, _, key = names[id(part.parameter)].rpartition(".")
        module = model.get_submodule(owner)
        places.append(_Place(module, key, part.dim, part.index))
        if getattr(module, "running_mean", None) is not None:
            counted[module] = part.index
    return places + [
        _Place(m, key, 0, index) for m, index in counted.items() for key in _STATISTICS
    ]

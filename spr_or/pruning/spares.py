"""The last weights of entities that a proximal step has made zero, should a budget want some back.

A zero filter behind a BatchNorm and a ReLU often gets no gradient, so it cannot return by itself, and
compaction would take it away whatever its mask says. One that is given back needs weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spr_or.pruning.following_norms import following_norms
from spr_or.pruning.regularizer import SPR

State = dict[str, Any]
_ROWS = ("weight", "bias", "running_mean", "running_var")


class Spares:
    """Copies of every entity's rows (weight, bias, the BatchNorm behind), from when it last had any.

    ``age``: {layer: (N,) float64}, the epoch in which an entity was last not zero plus half its
    indicator then; -1 before the first epoch. The larger, the later it went.
    """

    def __init__(self, model: nn.Module, spr: SPR) -> None:
        self.spr = spr
        norms = following_norms(model)
        # Buffers are replaced when a model moves to another device, so they are looked up by name.
        self.places: dict[str, list[tuple[nn.Module, str]]] = {}
        for layer in spr.layers:
            modules = [model.get_submodule(name) for name in (layer.name, *norms[layer.name])]
            self.places[layer.name] = [
                (module, key)
                for module in modules
                for key in _ROWS
                if getattr(module, key, None) is not None
            ]
        self.copies = {name: [t.clone() for t in self._rows(name)] for name in self.places}
        self.age = {
            layer.name: torch.full((layer.count,), -1.0, dtype=torch.float64)
            for layer in spr.layers
        }

    def _rows(self, name: str) -> list[Tensor]:
        return [getattr(module, key).detach() for module, key in self.places[name]]

    @torch.no_grad()
    def keep(self, epoch: int) -> None:
        """After an epoch: copy the rows of the entities that are not zero."""
        for name, value in self.spr.entity_values().items():
            alive = value.peak > 0
            rows = self._rows(name)
            self.copies[name] = [
                copy.to(tensor.device) for tensor, copy in zip(rows, self.copies[name], strict=True)
            ]
            for tensor, copy in zip(rows, self.copies[name], strict=True):
                copy[alive] = tensor[alive]
            age = (epoch + value.indicator / 2).to(self.age[name])
            self.age[name] = torch.where(alive.cpu(), age, self.age[name])

    @torch.no_grad()
    def give_back_(self, masks: dict[str, Tensor]) -> None:
        """Write the copies into the zero entities that ``masks`` (True = keep) keep."""
        for name, value in self.spr.entity_values().items():
            back = masks[name] & (value.peak == 0)
            for tensor, copy in zip(self._rows(name), self.copies[name], strict=True):
                tensor[back] = copy[back]

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

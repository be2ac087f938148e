"""The entities of a network, found once: its graph is traced for seconds, and its copies have the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from spr_or.pruning.counts import Example
from spr_or.pruning.ignored import Ignored
from spr_or.pruning.layer_entities import (
    GROUP_KINDS,
    EntitySpec,
    LayerEntities,
    layer_entities,
)
from spr_or.pruning.module_masks import groups_of
from spr_or.pruning.output_layers import output_layers
from spr_or.pruning.unwrap import unwrap


class ChosenEntities(NamedTuple):
    """Arguments of `SPR`, `SPR.bounds_from` and `layer_entities`, for every network of one structure."""

    entities: EntitySpec
    include_norm: bool
    ignored: tuple[str | type[nn.Module], ...]

    def of(self, model: nn.Module) -> tuple[LayerEntities, ...]:
        """The entities of ``model``, see `layer_entities`."""
        return layer_entities(model, **self._asdict())


def chosen_entities(
    model: nn.Module,
    example: Example,
    entities: EntitySpec,
    include_norm: bool = False,
    ignored: Ignored = (),
) -> ChosenEntities:
    """What ``entities`` means for ``model``, without the layers that write its outputs.

    Kinds that the network's graph gives become names of parameters, so nobody need trace it again.
    Arguments and errors are those of `layer_entities`; ``example`` is on the model's device.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> chosen_entities(net, torch.zeros(1, 2), "neurons").entities
    {'0': 'neurons'}
    """
    model = unwrap(model)
    left_out = (*ignored, *sorted(output_layers(model, example) - {""}))
    if not _on_graph(entities):
        return ChosenEntities(entities, include_norm, left_out)
    layers = layer_entities(model, entities, include_norm, example=example, ignored=left_out)
    found: Any = groups_of(model, layers) or {
        layer.name: _kind(model.get_submodule(layer.name)) for layer in layers
    }
    return ChosenEntities(found, include_norm, ())


def _kind(layer: nn.Module) -> str:
    return "neurons" if isinstance(layer, nn.Linear) else "filters"


def _on_graph(entities: EntitySpec) -> bool:
    """Whether the network's graph says what the entities are."""
    several = isinstance(entities, Sequence) and not isinstance(entities, str)
    words = entities if several else [entities]
    return any(isinstance(word, str) and word in (*GROUP_KINDS, "neurons") for word in words)  # type: ignore[union-attr]

"""Entities together with what a following norm has for their channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from spr_or.pruning.following_norms import LAYERS, following_norms
from spr_or.pruning.groups import output_dim
from spr_or.pruning.layer_entities import LayerEntities, SliceEntities


def with_norms(
    model: nn.Module,
    layers: Sequence[LayerEntities],
    keys: Sequence[str] = ("weight", "bias"),
    example: Any = None,
) -> tuple[LayerEntities, ...]:
    """``layers``, whose filters and neurons hold the scale and shift of the norm behind them too.

    Groups of parameters say themselves what belongs to them and stay as they are, and so do input
    channels. ``keys`` are the parameters of the norm that are taken; ``example`` as for
    `following_norms`, whose errors are raised.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    >>> [len(layer.parameters) for layer in with_norms(net, layer_entities(net))]
    [4]
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    norms = following_norms(model, example)
    found: list[LayerEntities] = []
    for layer in layers:
        module = modules.get(layer.name)
        if (
            isinstance(layer, SliceEntities)
            and isinstance(module, LAYERS)
            and layer.dim == output_dim(module)
        ):
            held = {id(p) for p in layer.parameters}
            behind = [getattr(modules[n], key, None) for n in norms[layer.name] for key in keys]
            more = [p for p in behind if p is not None and id(p) not in held]
            layer = SliceEntities(layer.name, (*layer.parameters, *more), layer.dim)
        found.append(layer)
    return tuple(found)

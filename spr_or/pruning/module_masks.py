"""Masks of entities as masks of modules and parameters, which `apply_masks_` and `compact` take."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.groups import EntityGroup, Member, layer_masks
from spr_or.pruning.layer_entities import LayerEntities


def module_masks(
    model: nn.Module, layers: Sequence[LayerEntities], masks: dict[str, Tensor]
) -> dict[str, Tensor]:
    """``masks`` of ``spr.layers`` by module; they are those already unless entities cross layers."""
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [
        EntityGroup(
            layer.name,
            tuple(Member(names[id(part.parameter)], part.dim, part.index) for part in layer.parts),
        )
        for layer in layers
        if isinstance(layer, GroupEntities)
    ]
    return layer_masks(model, groups, masks) if groups else masks

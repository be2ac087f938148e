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
    groups = groups_of(model, layers)
    return layer_masks(model, groups, masks) if groups else masks


def groups_of(model: nn.Module, layers: Sequence[LayerEntities]) -> list[EntityGroup]:
    """The groups among ``layers``, by the names of the model's parameters."""
    names = {id(p): n for n, p in model.named_parameters()}
    return [
        EntityGroup(
            layer.name,
            tuple(Member(names[id(part.parameter)], part.dim, part.index) for part in layer.parts),
            layer.kind,
        )
        for layer in layers
        if isinstance(layer, GroupEntities)
    ]


def branches_of(layers: Sequence[LayerEntities]) -> frozenset[str]:
    """Names of the layers that are one residual branch, which may go whole."""
    return frozenset(
        layer.name
        for layer in layers
        if isinstance(layer, GroupEntities) and layer.kind == "blocks"
    )

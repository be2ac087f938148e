"""Numbers given for each weight, added up over the weights of each entity."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.layer_entities import LayerEntities, SliceEntities


def entity_sums(layer: LayerEntities, numbers: Mapping[int, Tensor]) -> Tensor:
    """The sum over each entity's weights, (N,); ``numbers`` has a tensor for each parameter, by its id.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 2))
    >>> (layer,) = layer_entities(net)
    >>> entity_sums(layer, {id(p): torch.ones_like(p) for p in net.parameters()}).tolist()
    [5.0, 5.0]
    """
    given = [numbers[id(p)] for p in layer.parameters]
    if isinstance(layer, SliceEntities):
        weight, *extra = given
        return torch.stack([weight.movedim(layer.dim, 0).flatten(1).sum(1), *extra]).sum(0)
    if isinstance(layer, GroupEntities):
        total = given[0].new_zeros(layer.count)
        for part in layer.parts:
            moved = numbers[id(part.parameter)].movedim(part.dim, 0)
            slices = moved.reshape(len(moved), -1).sum(1)
            total = total + slices[part.index.to(slices.device)].sum(1)
        return total
    flat = torch.cat([tensor.flatten() for tensor in given])
    return layer.entities.rows(flat.cpu()).sum(1).to(flat.device)

"""The weights of each entity as a row, for methods that look at nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spr_or.pruning.gradient_passes import rows_of
from spr_or.pruning.layer_entities import LayerEntities


def entity_rows(layers: Sequence[LayerEntities]) -> dict[str, Tensor]:
    """{layer name: (N, k)}: all weights of every entity, with the biases that belong to it.

    >>> import torch
    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    >>> entity_rows(layer_entities(net))["0"].shape
    torch.Size([4, 28])
    """
    return {layer.name: rows_of(layer.gather()) for layer in layers}

"""What a target can be a share of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from spr_or.pruning.budget import Count
from spr_or.pruning.counts import Example
from spr_or.pruning.latency import LatencyCounter
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.removed_share import Counter

# In words: "60 % of the …".
MEASURES = {"params": "parameters", "macs": "multiplications", "latency": "measured time"}


def counter_of(measure: str, model: nn.Module, example: Example) -> Count:
    """The function masks -> percent removed, of one of `MEASURES`.

    >>> import torch
    >>> counter_of("macs", nn.Sequential(nn.Linear(2, 4)), torch.zeros(1, 2))({})
    0.0
    """
    if measure == "latency":
        return LatencyCounter(model, example)
    return Counter(model, example, of="macs" if measure == "macs" else "params")


def of_entities(count: Count, model: nn.Module, layers: Sequence[LayerEntities]) -> Count:
    """A count of masks by module as one of masks by entity, those of ``layers`` (``spr.layers``)."""
    return lambda masks: count(module_masks(model, layers, masks))

"""Which convolution reads the entities of a layer, where it is the only one and they are its inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spr_or.layer_study.activations import refusal
from spr_or.methods.common.writers import writers
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.network_groups import Features


class Consumer(NamedTuple):
    """A convolution, and the entity that each of its input channels is, int64 (c_in,)."""

    name: str
    entity: Tensor


def consumer_of(model: nn.Module, layer: LayerEntities, found: Features) -> Consumer | None:
    """The convolution whose input channels are just the entities of ``layer``; None where there is none.

    None too where several layers read them, where something else writes the same channels (a filter in
    a residual stream), and for a convolution that the layer problems do not cover
    (`spr_or.layer_study.activations.refusal`). found: of `spr_or.pruning.network_groups.features`.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> from spr_or.pruning.network_groups import features
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3))
    >>> consumer_of(net, layer_entities(net)[0], features(net, torch.zeros(2, 1, 8, 8)))
    Consumer(name='2', entity=tensor([0, 1]))
    """
    made = writers(model, layer)
    if not made or made[0].numbers.shape[1] != 1:
        return None
    rows = {name: numbers for (name, dim), numbers in found.written.items() if dim >= 0}
    own = rows[f"{made[0].module}.weight"][made[0].numbers[:, 0]]
    writing = {name for name, numbers in rows.items() if torch.isin(numbers, own).any()}
    if writing != {f"{channels.module}.weight" for channels in made}:
        return None
    readers = [name for (name, _), read in found.read.items() if torch.isin(read, own).any()]
    name = readers[0].removesuffix(".weight") if len(readers) == 1 else ""
    module = model.get_submodule(name)
    if not isinstance(module, nn.Conv2d) or refusal(module):
        return None
    columns = found.read[readers[0], 1]
    if not torch.equal(columns.sort().values, own.sort().values):
        return None
    return Consumer(name, own.argsort()[columns.argsort().argsort()])

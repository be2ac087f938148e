"""The plain baseline: the smallest filters of the dense network go, as many as SPR took."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.masks import Masks, apply_masks_, filter_rows
from spr_or.pruning.module_masks import module_masks
from spr_or.training.seed_run import SeedRun


def magnitude_masks(
    dense: nn.Module, masks: Masks, layers: Sequence[LayerEntities] = ()
) -> dict[str, Tensor]:
    """Masks that keep as many entities of each layer as ``masks``, those of the largest norm.

    ``layers`` are those of `SPR`. Of entities that cross layers all weights count, else those of the
    filter, without its bias. A residual branch is the only entity of its layer, so it does as SPR did.

    >>> layer = nn.Sequential(nn.Conv2d(1, 2, 1))
    >>> _ = nn.init.constant_(layer[0].weight[1], 9.0)
    >>> magnitude_masks(layer, {"0": torch.tensor([True, False])})
    {'0': tensor([False,  True])}
    """
    groups = {layer.name: layer for layer in layers if isinstance(layer, GroupEntities)}
    found = {}
    for name, keep in masks.items():
        group = groups.get(name)
        rows = filter_rows(dense.get_submodule(name)) if group is None else group.gather().weights
        norms = rows.flatten(1).norm(dim=1)
        found[name] = torch.zeros_like(keep)
        found[name][norms.topk(int(keep.sum())).indices.to(keep.device)] = True
    return found


def magnitude_accuracy(run: SeedRun, dense: nn.Module, masks: Masks) -> float:
    """Accuracy of the dense network under `magnitude_masks`, in percent; ``masks`` are of entities.

    Nothing is trained after the cut, so this compares with the accuracy before fine-tuning.
    """
    cut = copy.deepcopy(dense)
    layers = run.chosen.of(cut)
    chosen = module_masks(cut, layers, magnitude_masks(cut, masks, layers))
    apply_masks_(cut, chosen, run.example)
    return run.evaluate(cut).accuracy

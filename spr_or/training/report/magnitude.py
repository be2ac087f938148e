"""The plain baseline: the smallest filters of the dense network go, as many as SPR took."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from spr_or.pruning.masks import Masks, apply_masks_
from spr_or.training.seed_run import SeedRun


def magnitude_masks(dense: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Masks that keep as many filters of each layer as ``masks``, those of the largest norm.

    >>> layer = nn.Sequential(nn.Conv2d(1, 2, 1))
    >>> _ = nn.init.constant_(layer[0].weight[1], 9.0)
    >>> magnitude_masks(layer, {"0": torch.tensor([True, False])})
    {'0': tensor([False,  True])}
    """
    found = {}
    for name, keep in masks.items():
        layer: Any = dense.get_submodule(name)
        norms = layer.weight.detach().flatten(1).norm(dim=1)
        found[name] = torch.zeros_like(keep)
        found[name][norms.topk(int(keep.sum())).indices] = True
    return found


def magnitude_accuracy(run: SeedRun, dense: nn.Module, masks: Masks) -> float:
    """Accuracy of the dense network under `magnitude_masks`, in percent.

    Nothing is trained after the cut, so this compares with the accuracy before fine-tuning.
    """
    cut = copy.deepcopy(dense)
    apply_masks_(cut, magnitude_masks(dense, masks))
    return run.evaluate(cut).accuracy

"""Sets and weights of single layers: against enumeration, and what the search leaves as it was."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_task import small_data, small_net
from torch import Tensor, nn

from spr_or.methods.common import layer_sets
from spr_or.methods.common.layer_sets import improve_by_layers, readers
from spr_or.pruning.budget import Masks
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.masks import apply_masks_

EXAMPLE = torch.zeros(2, 1, 8, 8)


def together(seed: int) -> tuple[Tensor, Tensor]:
    pictures, labels = zip(*small_data(seed), strict=True)
    return torch.cat(pictures), torch.cat(labels)


def bent_masks(net: nn.Module, kept: int = 3) -> Masks:
    """The first filters of each layer stay: no good choice."""
    return {
        layer.name: torch.arange(layer.count) < min(kept, layer.count - 1)
        for layer in layer_entities(net)
    }


def improved(net: nn.Module, masks: Masks, **limits: Any) -> layer_sets.LayerSets:
    arguments = net, layer_entities(net), masks, [together(0)], together(1), EXAMPLE
    return improve_by_layers(*arguments, **limits)


def masked_loss(net: nn.Module, masks: Masks) -> float:
    masked = copy.deepcopy(net).eval()
    apply_masks_(masked, masks)
    pictures, labels = together(1)
    with torch.no_grad():
        return float(F.cross_entropy(masked(pictures), labels))


def least_lost(net: nn.Module, masks: Masks, size: int) -> tuple[int, ...]:
    """The filters of conv1 from which the kept outputs of conv2 are reproduced best, all sets tried."""
    with torch.no_grad():
        inputs = F.relu(net.bn1(net.conv1(together(0)[0])))
    X = F.unfold(inputs, 3, padding=1, stride=2).mT.reshape(-1, 6, 9).double().numpy()
    W = net.conv2.weight.detach()[masks["conv2"]].double().flatten(1).mT.numpy()
    X = X - X.mean(0)
    Y = X.reshape(len(X), -1) @ W

    def lost(channels: tuple[int, ...]) -> float:
        part = X[:, channels].reshape(len(X), -1)
        return float(((Y - part @ np.linalg.lstsq(part, Y, rcond=None)[0]) ** 2).sum())

    return min(itertools.combinations(range(6), size), key=lost)


def test_the_set_that_is_tried_is_that_of_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    options = layer_sets._options

    def noted(*arguments: Any) -> Any:
        for option in options(*arguments):
            tried.append(option)
            yield option

    monkeypatch.setattr(layer_sets, "_options", noted)
    agreed = 0
    for seed, size in itertools.product((0, 1, 2), (2, 3, 4)):
        net = small_net(seed).eval()
        masks = bent_masks(net) | {"conv1": torch.arange(6) < size}
        wanted = set(least_lost(net, masks, size))
        tried.clear()
        improved(net, masks, layer_seconds=20.0)
        assert tried and all(int(option.keep.sum()) == size for option in tried)
        for option in tried:
            if option.proven:
                agreed += set(option.keep.nonzero().flatten().tolist()) == wanted
                assert set(option.keep.nonzero().flatten().tolist()) == wanted
    assert agreed > 5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_falls_and_is_that_of_the_masked_network(seed: int) -> None:
    net = small_net(seed)
    masks = bent_masks(net)
    before, stream = masked_loss(net, masks), net.conv3.weight.detach().clone()
    found = improved(net, masks)
    assert found.loss_before == pytest.approx(before, rel=1e-4)
    assert found.loss_after == pytest.approx(masked_loss(net, found.masks), rel=1e-4)
    assert found.loss_after < found.loss_before and found.new_sets + found.new_weights > 0
    for name, keep in masks.items():
        assert int(found.masks[name].sum()) == int(keep.sum())
        assert name == "conv1" or torch.equal(found.masks[name], keep)
    if found.new_weights:
        assert not net.conv2.weight[:, ~found.masks["conv1"]].any()
    assert torch.equal(net.conv3.weight, stream) and net.training


def test_what_does_not_help_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    masks = bent_masks(net)
    monkeypatch.setattr(layer_sets._Network, "loss", lambda self, masks, batch: 1.0)
    found = improved(net, masks)
    assert (found.new_sets, found.new_weights, found.loss_after) == (0, 0, 1.0)
    assert all(torch.equal(found.masks[name], keep) for name, keep in masks.items())
    assert all(torch.equal(before[name], now) for name, now in net.state_dict().items())


def test_larger_layers_keep_their_set_and_get_new_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_sets, "MAX_CHANNELS", 5)
    net = small_net()
    masks = bent_masks(net)
    found = improved(net, masks)
    assert (found.new_sets, found.new_weights, found.proven) == (0, 1, 0)
    assert all(torch.equal(found.masks[name], keep) for name, keep in masks.items())


def test_a_layer_that_is_dead_or_whole_is_left_alone() -> None:
    net = small_net()
    whole = {layer.name: torch.ones(layer.count, dtype=torch.bool) for layer in layer_entities(net)}
    found = improved(net, whole)
    assert found.new_sets == found.new_weights == 0
    with torch.no_grad():
        net.bn1.weight.zero_()
        net.bn1.bias.fill_(-1.0)
    improved(net, bent_masks(net))
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_a_network_without_such_a_layer_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="no convolution that reads only one layer's entities, am"):
        readers(net, layer_entities(net, "neurons"), torch.zeros(2, 4))

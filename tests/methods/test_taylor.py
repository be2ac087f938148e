"""Taylor's score against finite differences of the loss, and on entities of every kind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from small_task import SmallNet, small_data, small_net, small_task, train
from torch import nn

from spr_or.methods import taylor
from spr_or.pruning.masks import apply_masks_
from spr_or.training.method import PruningPlan


def loss_of(net: SmallNet, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(net(images), labels))


def norm_of(net: SmallNet, layer: str) -> nn.BatchNorm2d:
    found = net.get_submodule(layer.replace("conv", "bn"))
    assert isinstance(found, nn.BatchNorm2d)
    return found


def test_it_is_the_slope_of_the_loss_as_the_channel_behind_the_norm_shrinks() -> None:
    net = small_net().double()
    batches = [(images.double(), labels) for images, labels in small_data(0)]
    task = small_task(net, batches=lambda seed: batches)
    scores = taylor.plan(task, taylor.Keys(images=32)).scores()
    net.eval()
    h = 1e-5
    for name, score in scores.items():
        norm = norm_of(net, name)
        by_hand = np.zeros(len(score))
        for i in range(len(score)):
            kept = norm.weight[i].item(), norm.bias[i].item()
            for images, labels in batches[:2]:
                sides = []
                for factor in (1 + h, 1 - h):
                    with torch.no_grad():
                        norm.weight[i], norm.bias[i] = factor * kept[0], factor * kept[1]
                    sides.append(loss_of(net, images, labels))
                by_hand[i] += ((sides[0] - sides[1]) / (2 * h)) ** 2 / 2
            with torch.no_grad():
                norm.weight[i], norm.bias[i] = kept
        assert score.numpy() == pytest.approx(by_hand, rel=1e-4, abs=1e-12)
    assert max(float(score.max()) for score in scores.values()) > 1e-6


def trained_net() -> SmallNet:
    task = small_task(epochs=5)
    train(task, PruningPlan(scores=dict))
    assert isinstance(task.model, SmallNet)
    return task.model.eval()


def removals(net: SmallNet, images: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """What the loss changes when one filter is removed as the cut removes it."""
    found = {}
    for layer in small_task(net).layers:
        changes = []
        for i in range(layer.count):
            cut = copy.deepcopy(net)
            apply_masks_(cut, {layer.name: torch.arange(layer.count) != i})
            changes.append(loss_of(cut, images, labels) - loss_of(net, images, labels))
        found[layer.name] = np.array(changes)
    return found


def test_scores_rank_as_real_removals_do_and_the_slope_has_their_sign() -> None:
    net = trained_net()
    images, labels = (torch.cat(parts) for parts in zip(*small_data(0), strict=True))
    real = removals(net, images, labels)
    layers = small_task(net).layers
    scores = taylor.squared_changes(net, layers, [(images, labels)])
    net.zero_grad()
    F.cross_entropy(net(images), labels).backward()
    of_filters, slopes = {}, {}
    for name in real:
        norm, weight = norm_of(net, name), net.get_submodule(name).weight
        of_filters[name] = (weight * weight.grad).flatten(1).sum(1).square().detach().numpy()
        slopes[name] = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach()
        assert scores[name].numpy() == pytest.approx(slopes[name].square().numpy(), rel=1e-3)
    true = np.concatenate([real[name] for name in real])
    ours = spearmanr(np.concatenate([scores[n].numpy() for n in real]), true**2).statistic
    old = spearmanr(np.concatenate([of_filters[n] for n in real]), true**2).statistic
    signs = np.sign(-np.concatenate([slopes[n].numpy() for n in real])) == np.sign(true)
    large = np.abs(true) >= np.median(np.abs(true))
    assert ours > old + 0.05 and ours > 0.6
    assert signs[large].mean() > 0.8


@pytest.mark.parametrize(
    ("entities", "norms"),
    [("channels", {"conv1": ["bn1"], "conv2": ["bn2", "bn3"]}), ("blocks", {"conv3": ["bn3"]})],
)
def test_a_group_adds_the_gates_of_all_norms_that_write_it(
    entities: str, norms: dict[str, list[str]]
) -> None:
    task = small_task(entities=entities)
    scores = taylor.plan(task, taylor.Keys(images=16)).scores()
    images, labels = small_data(0)[0]
    task.model.eval()
    F.cross_entropy(task.model(images), labels).backward()
    assert set(scores) == set(norms)
    for name, behind in norms.items():
        parts = [norm_of(task.model, norm) for norm in behind]
        slopes = [n.weight * n.weight.grad + n.bias * n.bias.grad for n in parts]
        slope = torch.stack(slopes).sum(0).detach()
        expected = (slope if entities == "channels" else slope.sum().view(1)).square()
        assert scores[name].numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-10)


@pytest.mark.parametrize("entities", ["input_channels"])
def test_every_kind_of_entity_adds_its_own_weights(entities: str) -> None:
    """The score of an entity is the squared sum of the products g w, read here from the rows."""
    task = small_task(entities=entities)
    scores = taylor.plan(task, taylor.Keys(images=16)).scores()
    images, labels = small_data(0)[0]
    task.model.eval()
    F.cross_entropy(task.model(images), labels).backward()
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.copy_(parameter * parameter.grad)
    for layer in task.layers:
        weights = layer.gather()
        rows = weights.weights.movedim(weights.dim, 0).flatten(1).sum(1)
        extra = 0 if weights.extra is None else weights.extra.sum(1)
        expected = (rows + extra).double().square()
        assert scores[layer.name].numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-10)


def test_the_network_and_its_gradients_stay_as_they_are() -> None:
    task = small_task()
    task.model.fc.weight.requires_grad_(False)
    task.model.bn1.requires_grad_(False)
    scores = taylor.plan(task, taylor.Keys(images=16)).scores()
    assert all(p.grad is None for p in task.model.parameters())
    assert not scores["conv1"].any() and scores["conv2"].any()
    before, after = task.dense.state_dict(), task.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)

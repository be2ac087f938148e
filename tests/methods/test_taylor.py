"""Taylor's score against finite differences of the loss, and on entities of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_task import SmallNet, small_data, small_net, small_task

from spr_or.methods import taylor


def loss_of(net: SmallNet, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(net(images), labels))


def test_it_is_the_slope_of_the_loss_as_a_filter_shrinks() -> None:
    net = small_net().double()
    batches = [(images.double(), labels) for images, labels in small_data(0)]
    task = small_task(net, batches=lambda seed: batches)
    scores = taylor.plan(task, taylor.Keys(images=32)).scores()
    net.eval()
    h = 1e-5
    for name, score in scores.items():
        weight = net.get_submodule(name).weight
        by_hand = np.zeros(len(weight))
        for i in range(len(weight)):
            kept = weight[i].detach().clone()
            for images, labels in batches[:2]:
                sides = []
                for factor in (1 + h, 1 - h):
                    with torch.no_grad():
                        weight[i] = factor * kept
                    sides.append(loss_of(net, images, labels))
                by_hand[i] += ((sides[0] - sides[1]) / (2 * h)) ** 2 / 2
            with torch.no_grad():
                weight[i] = kept
        assert score.numpy() == pytest.approx(by_hand, rel=1e-4, abs=1e-12)
    assert max(float(score.max()) for score in scores.values()) > 1e-6


@pytest.mark.parametrize("entities", ["channels", "input_channels", "blocks"])
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
    task.model.conv1.weight.requires_grad_(False)
    scores = taylor.plan(task, taylor.Keys(images=16)).scores()
    assert all(p.grad is None for p in task.model.parameters())
    assert not scores["conv1"].any() and scores["conv2"].any()
    before, after = task.dense.state_dict(), task.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)

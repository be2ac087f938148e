"""HRank's scores are ranks of feature maps computed by NumPy, of every entity that it serves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_task import SmallNet, small_data, small_net, small_task
from torch import nn

from spr_or.methods import hrank


def maps_by_hand(net: SmallNet, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Behind norm and activation, and behind the addition at the block's end: (B, N, H, W)."""
    net.eval()
    with torch.no_grad():
        first = F.relu(net.bn1(net.conv1(images)))
        second = F.relu(net.bn2(net.conv2(first)))
        third = F.relu(second + net.bn3(net.conv3(second)))
    return {"conv1": first.numpy(), "conv2": second.numpy(), "conv3": third.numpy()}


def mean_ranks(maps: np.ndarray) -> np.ndarray:
    return np.linalg.matrix_rank(maps).mean(0)


def test_the_scores_are_mean_ranks() -> None:
    net = small_net(1)
    with torch.no_grad():
        net.bn1.bias[0] = -10.0  # a dead filter
        net.bn2.bias[3] -= 1.0  # few positions of its map are alive
    task = small_task(net)
    scores = hrank.plan(task, hrank.Keys(images=20)).scores()
    images = torch.cat([x for x, _ in small_data(0)])[:20]
    expected = {name: mean_ranks(maps) for name, maps in maps_by_hand(net, images).items()}
    for name, score in scores.items():
        assert score.numpy() == pytest.approx(expected[name])
    assert scores["conv1"][0] == 0 < scores["conv1"][1:].min()
    assert scores["conv2"].argmin() == expected["conv2"].argmin()


def test_a_channel_has_the_mean_of_its_filters() -> None:
    task = small_task(entities="channels")
    scores = hrank.plan(task, hrank.Keys(images=16)).scores()
    images = small_data(0)[0][0]
    maps = maps_by_hand(small_net(), images)
    assert scores["conv1"].numpy() == pytest.approx(mean_ranks(maps["conv1"]))
    stream = (mean_ranks(maps["conv2"]) + mean_ranks(maps["conv3"])) / 2
    assert scores["conv2"].numpy() == pytest.approx(stream)


def test_the_model_stays_as_it_is() -> None:
    task = small_task()
    task.model.train()
    hrank.plan(task, hrank.Keys(images=16)).scores()
    assert task.model.training
    for (name, one), other in zip(
        task.model.state_dict().items(), task.dense.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_neurons_and_input_channels_are_refused_before_anything_runs() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="HRank judges feature maps.*neurons"):
        hrank.plan(small_task(net, "neurons"), hrank.Keys())
    with pytest.raises(ValueError, match="no outputs of a layer"):
        hrank.plan(small_task(entities="input_channels"), hrank.Keys())

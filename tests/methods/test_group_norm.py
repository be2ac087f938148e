"""The group norm against sums written out in NumPy for a network whose dependencies are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_task import SmallNet, cut_and_finish, small_net, small_task
from torch import Tensor, nn

from spr_or.methods import group_norm


def parts(net: SmallNet) -> dict[str, np.ndarray]:
    """Squared norms of rows ("conv1"), columns ("conv2 reads") and squared scales ("bn1")."""
    squares = {n: p.detach().double().numpy() ** 2 for n, p in net.named_parameters()}
    found = {}
    for name in ("conv1", "conv2", "conv3", "fc"):
        weight = squares[f"{name}.weight"]
        weight = weight.reshape(*weight.shape[:2], -1)
        found[name], found[f"{name} reads"] = weight.sum((1, 2)), weight.sum((0, 2))
    return found | {name: squares[f"{name}.weight"] for name in ("bn1", "bn2", "bn3")}


def over_mean(norms: np.ndarray) -> np.ndarray:
    return norms / norms.mean()


def test_a_channel_has_all_that_depends_on_it() -> None:
    task = small_task(entities="channels")
    scores = group_norm.plan(task, group_norm.METHOD.keys()).scores()
    p = parts(task.model)
    inner = p["conv1"] + p["bn1"] + p["conv2 reads"]
    stream = p["conv2"] + p["bn2"] + p["conv3"] + p["bn3"] + p["conv3 reads"] + p["fc reads"]
    assert scores["conv1"].numpy() == pytest.approx(over_mean(inner), rel=1e-5)
    assert scores["conv2"].numpy() == pytest.approx(over_mean(stream), rel=1e-5)


@pytest.mark.parametrize("include_norm", [False, True])
def test_a_filter_has_its_norm_and_its_readers(include_norm: bool) -> None:
    task = small_task(include_norm=include_norm)
    scores = group_norm.plan(task, group_norm.METHOD.keys()).scores()
    p = parts(task.model)
    readers = p["conv3 reads"] + p["fc reads"]
    expected = {
        "conv1": p["conv1"] + p["bn1"] + p["conv2 reads"],
        "conv2": p["conv2"] + p["bn2"] + readers,
        "conv3": p["conv3"] + p["bn3"] + readers,
    }
    for name, norms in expected.items():
        assert scores[name].numpy() == pytest.approx(over_mean(norms), rel=1e-5)


def test_neurons_have_the_columns_that_read_them() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3))
    task = small_task(net, "neurons")
    scores = group_norm.plan(task, group_norm.METHOD.keys()).scores()
    rows = (net[1].weight.detach().numpy() ** 2).sum(1) + (net[3].weight.detach().numpy() ** 2).sum(
        0
    )
    assert scores["1"].numpy() == pytest.approx(over_mean(rows), rel=1e-5)


class TwoBranches(SmallNet):
    """A second residual branch behind the first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv4 = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(x + self.bn3(self.conv3(x)))
        return self.fc((x + self.conv4(x)).mean((2, 3)))


def test_branches_are_compared_with_each_other() -> None:
    net = TwoBranches()
    task = small_task(net, entities="blocks")
    scores = group_norm.plan(task, group_norm.METHOD.keys()).scores()
    squares = {n: float(p.detach().square().sum()) for n, p in net.named_parameters()}
    norms = np.array([squares["conv3.weight"] + squares["bn3.weight"], squares["conv4.weight"]])
    found = [float(scores[name]) for name in ("conv3", "conv4")]
    assert found == pytest.approx(over_mean(norms), rel=1e-5)


def test_a_dead_layer_goes_first_and_gives_no_nan() -> None:
    net = small_net()
    with torch.no_grad():
        for name in ("conv1.weight", "bn1.weight", "conv2.weight"):
            net.get_parameter(name).zero_()
    task = small_task(net, target_pct=36)
    plan = group_norm.plan(task, group_norm.METHOD.keys())
    assert plan.scores()["conv1"].tolist() == [0.0] * 6
    masks = cut_and_finish(task, plan).masks
    assert int(masks["conv1"].sum()) == 1  # the last of a layer stays

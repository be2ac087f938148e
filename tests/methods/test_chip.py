"""CHIP's scores are differences of nuclear norms computed by NumPy, one filter at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_task import small_data, small_net, small_task
from test_hrank import maps_by_hand
from torch import nn

from spr_or.methods import chip


def drops(maps: np.ndarray) -> np.ndarray:
    """(B, N, H, W) to the sum over images of ‖A‖ - ‖A without row i‖, (N,)."""
    total = np.zeros(maps.shape[1])
    for A in maps.reshape(*maps.shape[:2], -1).astype(np.float64):
        for i in range(len(A)):
            without = A.copy()
            without[i] = 0
            total[i] += np.linalg.norm(A, "nuc") - np.linalg.norm(without, "nuc")
    return total


@pytest.mark.parametrize(
    "shape", [(3, 6, 5, 5), (2, 20, 2, 2), (1, 33, 8, 8)], ids=["wide", "tall", "larger"]
)
def test_the_integral_is_the_difference_of_norms(shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    maps[:, 2] = maps[:, 0] + maps[:, 1]  # depends on the others
    maps[:, 3] = 0
    maps[:, 4] = 1e-5 * maps[:, 0]
    found = chip.independence(maps)
    scale = float(torch.linalg.matrix_norm(maps.flatten(2), 2).sum())
    assert found.numpy() == pytest.approx(drops(maps.numpy()), abs=1e-7 * scale)
    assert found[3].abs() < 1e-9 and found.isfinite().all()


def test_the_scores_are_the_formula_on_the_network() -> None:
    net = small_net(2)
    scores = chip.plan(small_task(net, seed=2), chip.Keys(images=12)).scores()
    maps = maps_by_hand(net, small_data(2)[0][0][:12])
    for name, score in scores.items():
        assert score.numpy() == pytest.approx(drops(maps[name]) / 12, abs=1e-5)


def test_dead_layers_have_finite_scores() -> None:
    net = small_net()
    with torch.no_grad():
        net.bn1.weight.zero_()
        net.bn1.bias.fill_(-1.0)
    scores = chip.plan(small_task(net), chip.Keys(images=8)).scores()
    assert scores["conv1"].tolist() == [0.0] * 6
    assert all(score.isfinite().all() for score in scores.values())


def test_neurons_are_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="CHIP judges feature maps"):
        chip.plan(small_task(net, "neurons"), chip.Keys())

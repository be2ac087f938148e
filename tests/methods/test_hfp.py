"""Holistic Filter Pruning: sizes against counts, straight-through gradients, a loss that meets a target."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_task import cut_and_finish, small_net, small_task, train
from torch import nn

from spr_or.methods.hfp import METHOD, Keys, excess, indicators, sizes_of, switched
from spr_or.pruning.compaction.api import compact
from spr_or.pruning.counts import count_macs
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.masks import apply_masks_
from spr_or.pruning.module_masks import module_masks


def test_sizes_of_a_chain_are_products_of_what_is_kept():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    )
    layers = layer_entities(net)
    shares = sizes_of(net, layers, torch.zeros(2, 1, 8, 8)).shares(torch.tensor([1.0, 2.0])).numpy()
    ins, outs, whole_in, whole_out = (
        np.array(x) for x in ([1, 3, 64], [3, 4, 5], [1, 4, 96], [4, 6, 5])
    )
    kernel, positions = np.array([9, 9, 1]), np.array([36, 16, 1])
    weights = (kernel * ins * outs).sum() / (kernel * whole_in * whole_out).sum()
    products = kernel * positions
    macs = (products * ins * outs).sum() / (products * whole_in * whole_out).sum()
    np.testing.assert_allclose(shares, [weights, macs], rtol=1e-6)


def test_sizes_of_channels_are_those_of_the_compact_network():
    net, x = small_net(), torch.zeros(2, 1, 8, 8)
    layers = layer_entities(net, "channels", example=x)
    gone = torch.tensor([float(n) for n in range(1, len(layers) + 1)])
    shares = sizes_of(net, layers, x).shares(gone)
    keep = {layer.name: torch.arange(layer.count) >= n for n, layer in enumerate(layers, start=1)}
    masks = module_masks(net, layers, keep)
    apply_masks_(net, masks, x)
    small = compact(net, masks, x)
    whole_macs, macs = count_macs(net, (1, 1, 8, 8)), count_macs(small, (1, 1, 8, 8))
    assert float(shares[1]) == pytest.approx(macs / whole_macs, rel=1e-5)


def test_indicators_step_forwards_and_pass_backwards():
    scales = torch.tensor([0.5, -0.05, 0.2, 0.02, -0.03], requires_grad=True)
    b = indicators(scales, [3, 2], 0.1)
    np.testing.assert_array_equal(b.detach().numpy(), [1, 0, 1, 0, 1])  # the last is the largest
    (b * torch.arange(5.0)).sum().backward()
    np.testing.assert_array_equal(
        scales.grad.numpy(), np.sign(scales.detach().numpy()) * np.arange(5)
    )
    factors = switched(scales, [3, 2], 0.1)
    np.testing.assert_allclose(factors.detach().numpy(), [0.5, 0, 0.2, 0, -0.03])


def test_nothing_is_paid_below_the_target():
    assert float(excess(torch.tensor([0.2, 0.3]), 0.4)) == 0
    assert float(excess(torch.tensor([0.9, 0.6]), 0.4)) == pytest.approx(0.5**2 + 0.2**2)


def test_the_loss_switches_channels_off_until_the_target_is_met():
    task = small_task(epochs=25, target_pct=40.0, lr=0.1)
    plan = METHOD.plan(task, Keys(lam=1.0))
    before = plan.after_epoch(0)
    assert before == {"weights_on_pct": 100, "multiplications_on_pct": 100}
    assert np.isfinite(train(task, plan)).all()
    after = plan.after_epoch(0)
    assert after["weights_on_pct"] < 75 and after["multiplications_on_pct"] < 75
    state = plan.state()
    scores = plan.scores()
    plan.load({"scales": torch.zeros(22)})
    assert not any(score.any() for score in plan.scores().values())
    plan.load(state)
    for name, score in plan.scores().items():
        assert torch.equal(score, scores[name])
    assert cut_and_finish(task, plan).removed_pct == pytest.approx(40, abs=5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in task.model.modules())

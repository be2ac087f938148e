"""Gates act behind norms, fold without changing the network, and refuse what has no channels."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_task import SmallNet, small_net, small_task
from torch import nn

from spr_or.methods.common.gates import add_gates, kept_share, price_to_zero
from spr_or.methods.common.soft_threshold import soft_threshold
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.masks import apply_masks_
from spr_or.pruning.module_masks import module_masks

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def set_gates(gates, seed=3):
    with torch.no_grad():
        gates.values.copy_(
            torch.rand(len(gates.values), generator=torch.Generator().manual_seed(seed))
        )


@pytest.mark.parametrize("kind", ["filters", "channels", "blocks"])
def test_folded_gates_compute_what_the_hooks_did(kind):
    net = small_net().eval()
    layers = layer_entities(net, kind, example=X)
    before = net(X)
    gates = add_gates(net, layers, X)
    assert torch.equal(net(X), before)  # gates of one
    set_gates(gates)
    gated = net(X)
    assert not torch.allclose(gated, before, atol=1e-3)
    gates.fold([torch.ones(layer.count, dtype=torch.bool) for layer in layers])
    torch.testing.assert_close(net(X), gated, rtol=1e-5, atol=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("kind", ["filters", "channels", "blocks"])
def test_a_gate_of_zero_is_a_masked_entity(kind):
    net = small_net().eval()
    masked = copy.deepcopy(net)
    layers = layer_entities(net, kind, example=X)
    gates = add_gates(net, layers, X)
    first = {layer.name: torch.arange(layer.count) > 0 for layer in layers}
    with torch.no_grad():
        gates.values.copy_(torch.cat([first[layer.name].float() for layer in layers]))
    masks = module_masks(masked, layer_entities(masked, kind, example=X), first)
    apply_masks_(masked, masks, X)
    torch.testing.assert_close(net(X), masked(X), rtol=1e-5, atol=1e-6)


def test_gates_of_a_layer_without_a_norm_act_on_its_output():
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    gates = add_gates(net, layer_entities(net, "neurons"), x)
    set_gates(gates)
    g = gates.values.detach().double().numpy()
    w, b, v, c = (p.detach().numpy() for p in net.parameters())
    expected = np.maximum((x.numpy() @ w.T + b) * g, 0) @ v.T + c
    np.testing.assert_allclose(net(x).detach().numpy(), expected, rtol=1e-7)
    gates.fold([torch.ones(4, dtype=torch.bool)])
    np.testing.assert_allclose(net(x).detach().numpy(), expected, rtol=1e-6)


def test_an_entity_that_stays_is_not_folded_to_zero():
    net = small_net()
    layers = layer_entities(net, {"conv1": "filters"})
    gates = add_gates(net, layers, X)
    scale = net.bn1.weight.detach().clone()
    with torch.no_grad():
        gates.values.copy_(torch.tensor([0.0, 0.0, 0.5, 0.25, 1.0, 1.0]))
    gates.fold([torch.tensor([False, True, True, True, True, True])])
    expected = torch.tensor([0.0, 0.25, 0.5, 0.25, 1.0, 1.0]) * scale
    torch.testing.assert_close(net.bn1.weight.detach(), expected)


def test_entities_without_channels_are_refused():
    net = small_net()
    with pytest.raises(ValueError, match="'conv2' are not the outputs of a layer"):
        add_gates(net, layer_entities(net, {"conv2": "input_channels"}), X)
    with pytest.raises(ValueError, match="are not the outputs of a layer"):
        add_gates(net, layer_entities(net, [[0, 1], [2, 3]]), X)


def test_norms_that_cannot_hold_a_gate_are_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False))
    with pytest.raises(ValueError, match="the norm '1' behind '0' has no scale"):
        add_gates(net, layer_entities(net), X)

    class Shared(SmallNet):
        def forward(self, x):
            x = self.bn2(self.conv2(self.bn1(self.conv1(x))))
            return self.fc(self.bn2(self.conv3(x)).mean((2, 3)))

    net = Shared()
    with pytest.raises(ValueError, match="follows 'conv2' and 'conv3'"):
        add_gates(net, layer_entities(net), X)


def test_the_kept_share_meets_the_budget():
    task = small_task(target_pct=40.0)
    share = kept_share(task)
    assert share == kept_share(task)  # drawn with the seed
    assert kept_share(small_task(target_pct=70.0)) < share < 1


def test_the_price_takes_a_gate_from_one_to_zero_in_its_share_of_the_phase():
    task = small_task(epochs=5, lr=0.1)  # 20 steps
    price = price_to_zero(task, 0.0, 0.5)
    gate = torch.ones(1)
    for _ in range(10):
        gate = soft_threshold(gate, 0.1 * price)
    assert float(gate) == pytest.approx(0, abs=1e-6)

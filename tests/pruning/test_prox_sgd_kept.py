"""ProxSGD as an object: copies and pickles, parameter groups, half precision, frozen layers."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from models.toy import convnet
from spr_or.formulations import projected
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR

ALPHA = 0.3


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return convnet().double()


def through_pickle(pair: tuple[nn.Module, ProxSGD]) -> tuple[nn.Module, ProxSGD]:
    return pickle.loads(pickle.dumps(pair))


def through_torch(pair: tuple[nn.Module, ProxSGD]) -> tuple[nn.Module, ProxSGD]:
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = 0.1 * noise.to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("through", [copy.deepcopy, through_pickle, through_torch])
@pytest.mark.parametrize("entities", ["filters", [[0, 1, 2], [5, 9]]])
def test_copies_and_pickles_go_on_as_the_original(through, entities, compiled):
    net = network()
    spr = SPR(net, 3.0, ALPHA, 0.8, entities=entities)
    if compiled:
        spr.compile()  # compiles at its first use, and ProxSGD has none
    optimizer = ProxSGD(net, spr, lr=0.05, momentum=0.9, scale=4.0)
    train(net, optimizer, range(2))
    other, twin = through((net, optimizer))
    assert twin.spr is not spr and twin.scale == 4.0 and twin.spr.lam == 3.0
    train(net, optimizer, range(2, 5))
    train(other, twin, range(2, 5))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert p is not q and torch.equal(p, q)
    twin.spr.lam = 0.0
    assert spr.lam == 3.0


def test_a_state_dict_round_trip_keeps_spr():
    net = network()
    spr = SPR(net, 3.0, ALPHA, 0.8)
    optimizer = ProxSGD(net, spr, lr=0.05, momentum=0.9, scale=4.0)
    train(net, optimizer, range(2))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.spr is spr and optimizer.scale == 4.0
    train(net, optimizer, range(2, 3))


def split_by_decay(net: nn.Module, **of_biases: float) -> list[dict]:
    weights = [p for p in net.parameters() if p.dim() > 1]
    biases = [p for p in net.parameters() if p.dim() == 1]
    return [
        {"params": weights, "weight_decay": 0.1},
        {"params": biases, "weight_decay": 0.0} | of_biases,
    ]


def test_biases_may_have_a_group_without_weight_decay():
    net, plain = network(), network()
    settings = {"lr": 0.05, "momentum": 0.9}
    optimizer = ProxSGD(split_by_decay(net), SPR(net, 3.0, ALPHA, 0.8), **settings)
    sgd = torch.optim.SGD(split_by_decay(plain), **settings)
    train(net, optimizer, range(1))
    train(plain, sgd, range(1))
    names = {layer.name: layer for layer in optimizer.spr.layers}
    total = sum(p.numel() for layer in names.values() for p in layer.parameters)
    for name in names:
        before, after = (
            torch.cat([m.weight.detach().flatten(1), m.bias.detach()[:, None]], 1)
            for m in (plain.get_submodule(name), net.get_submodule(name))
        )
        t = 0.05 * 3.0 * before.shape[1] / total / (1 - 0.9)
        torch.testing.assert_close(after, projected.prox(before, t, ALPHA, 0.8))


def test_groups_of_one_layer_with_two_rates_are_named():
    net = network()
    spr = SPR(net, 3.0, ALPHA, 0.8)
    both = r"layer '0'.*group 0 \(lr 0.1, momentum 0.*group 1 \(lr 0.2, momentum 0"
    with pytest.raises(ValueError, match=both):
        ProxSGD(split_by_decay(net, lr=0.2), spr, lr=0.1)
    with pytest.raises(ValueError, match=r"group 1 \(lr 0.1, momentum 0.9"):
        ProxSGD(split_by_decay(net, momentum=0.9), spr, lr=0.1)
    optimizer = ProxSGD(split_by_decay(net), spr, lr=0.1)
    optimizer.param_groups[1]["lr"] = 0.2  # as a scheduler may
    start = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=both):
        train(net, optimizer, range(1))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), start, strict=True))


def test_a_frozen_layer_outside_the_groups_says_what_to_do():
    net = network()
    net[0].requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    with pytest.raises(ValueError, match=r"layer '0'.*frozen.*entities.*requires_grad_\(True\)"):
        ProxSGD(trained, SPR(net, 3.0, ALPHA, 1.0), lr=0.1)
    ProxSGD(trained, SPR(net, 3.0, ALPHA, 1.0, entities={"4": "filters"}), lr=0.1)  # left out
    ProxSGD(net, SPR(net, 3.0, ALPHA, 1.0), lr=0.1)  # all parameters passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("entities", ["filters", "input_channels"])
@pytest.mark.parametrize("bound", [0.2, 0.1, 0.0301])
def test_half_precision_stays_within_the_bound(dtype, entities, bound):
    net = network().to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(20)  # so that many weights are clipped to M
    spr = SPR(net, 0.0, ALPHA, bound, entities=entities)
    optimizer = ProxSGD(net, spr, lr=0.0)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    limit = float(spr.bound[0])
    below = math.nextafter(limit, 0)
    for layer in spr.layers:
        for parameter in layer.parameters:
            assert parameter.dtype == dtype
            assert float(parameter.detach().abs().max()) <= limit
        nearest = torch.tensor(below, dtype=torch.float64).to(dtype)
        largest = max(float(p.detach().abs().max()) for p in layer.parameters)
        assert largest == pytest.approx(float(nearest), rel=2**-7)  # clipped to M, not far inside


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -1e-30])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_lambda_must_be_a_number_that_is_not_negative(value, kind):
    spr = SPR(network(), 3.0, ALPHA, 1.0)
    with pytest.raises(ValueError, match="lam must be a finite number >= 0, got"):
        spr.lam = kind(value)
    assert spr.lam == 3.0
    spr.lam = kind(2.5)
    assert spr.lam == 2.5
    with pytest.raises(ValueError, match="lam must be a finite number"):
        SPR(network(), kind(value), ALPHA, 1.0)

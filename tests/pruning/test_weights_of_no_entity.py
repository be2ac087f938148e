"""Entities given by positions: the weights that they leave out are left alone."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spr_or.formulations import projected
from spr_or.formulations.entities import parameter_indices
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR

ALPHA, LAM, M, LR = 0.3, 2.0, 0.4, 0.1


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)).double()


SIZE = sum(p.numel() for p in network().parameters())


@st.composite
def position_lists(draw: st.DrawFn) -> list[list[int]]:
    """Between one and four disjoint lists, which seldom hold all positions."""
    order = draw(st.permutations(range(SIZE)))
    cuts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    starts = [sum(cuts[:i]) for i in range(len(cuts))]
    return [order[start : start + cut] for start, cut in zip(starts, cuts, strict=True)]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = noise
        optimizer.step()


@given(
    groups=position_lists(),
    settings=st.sampled_from(
        [
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-3},
            {"momentum": 0.5, "dampening": 0.5, "weight_decay": 0.1},
            {"lr": 0.0},
        ]
    ),
    lam=st.sampled_from([0.0, LAM]),
    seed=st.integers(0, 99),
)
def test_they_follow_sgd_to_the_last_bit(groups, settings, lam, seed):
    settings = {"lr": LR} | settings
    net, plain = network(seed), network(seed)
    optimizer = ProxSGD(net, SPR(net, lam, ALPHA, M, entities=groups), **settings)
    sgd = torch.optim.SGD(plain.parameters(), **settings)
    train(net, optimizer, 3, seed)
    train(plain, sgd, 3, seed)
    theta, free = (nn.utils.parameters_to_vector(n.parameters()).detach() for n in (net, plain))
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[[j for group in groups for j in group]] = False
    assert torch.equal(theta[outside], free[outside])
    assert (theta[~outside].abs() <= M).all()


@given(groups=position_lists(), seed=st.integers(0, 99))
def test_inside_it_is_sgd_and_then_the_prox(groups, seed):
    net, plain = network(seed), network(seed)
    optimizer = ProxSGD(net, SPR(net, LAM, ALPHA, M, entities=groups), lr=LR, momentum=0.5)
    sgd = torch.optim.SGD(plain.parameters(), lr=LR, momentum=0.5)
    train(net, optimizer, 1, seed)
    train(plain, sgd, 1, seed)
    theta, free = (nn.utils.parameters_to_vector(n.parameters()).detach() for n in (net, plain))
    total = sum(map(len, groups))
    for group in groups:
        t = LR * LAM * len(group) / total / (1 - 0.5)
        torch.testing.assert_close(theta[group], projected.prox(free[group][None], t, ALPHA, M)[0])


def test_two_of_four_filters():
    """lr = 0 and lambda = 0: nothing may move, as M is larger than every weight."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False))
    index = parameter_indices(net)["0.weight"]
    start = net[0].weight.detach().clone()
    spr = SPR(net, 0.0, ALPHA, 10.0, entities=[index[i].flatten().tolist() for i in (0, 2)])
    optimizer = ProxSGD(net, spr, lr=0.0)
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    optimizer.step()
    assert torch.equal(net[0].weight[[1, 3]], start[[1, 3]])
    torch.testing.assert_close(net[0].weight.detach(), start)


@given(groups=position_lists(), seed=st.integers(0, 99))
def test_the_penalty_gives_them_no_gradient(groups, seed):
    net = network(seed)
    spr = SPR(net, LAM, ALPHA, M, entities=groups, u="uniform")
    noise = {p: torch.randn_like(p) for p in net.parameters()}
    for parameter in net.parameters():
        parameter.grad = noise[parameter].clone()
    spr.add_gradient_()
    added = [(p.grad - noise[p]).flatten() for p in net.parameters()]
    expected = torch.zeros(SIZE, dtype=torch.float64)
    theta = nn.utils.parameters_to_vector(net.parameters()).detach()
    for group in groups:
        expected[group] = LAM * projected.gradient(theta[group][None], ALPHA, M)[0]
    torch.testing.assert_close(torch.cat(added), expected)
    outside = expected == 0
    unchanged = torch.cat([(p.grad == noise[p]).flatten() for p in net.parameters()])
    assert unchanged[outside].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_them_too(dtype):
    net = network().to(dtype)
    index = parameter_indices(net)["0.weight"]
    optimizer = ProxSGD(net, SPR(net, LAM, ALPHA, 0.1, entities=[index[0].flatten().tolist()]), 0.0)
    start = copy.deepcopy(net.state_dict())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, tensor in net.state_dict().items():
        if name == "0.weight":
            assert torch.equal(tensor[1:], start[name][1:])
            assert (tensor[0].double().abs() <= 0.1).all() and tensor[0].any()
        else:
            assert torch.equal(tensor, start[name])

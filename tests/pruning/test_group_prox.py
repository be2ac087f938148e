"""ProxSGD on entities that cross layers: SGD, then the prox of every entity's weights together."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from grouped_networks import (
    CHANNELS,
    all_groups,
    bound_of_layers,
    entity_weights,
    one_each,
    some_rows_group,
    stream_group,
    streams,
)
from projected_reference import golden
from torch import Tensor, nn

from spr_or.formulations import projected
from spr_or.pruning import prox_passes, prox_sgd
from spr_or.pruning.groups import EntityGroup, Member
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR

ALPHA = 0.3


def set_gradients(net: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (scale * noise).to(parameter.dtype)


def least(v: Tensor, M: Tensor, step: float) -> Tensor:
    """argmin of ||w - v||^2 / 2 + step z(w) over |w_j| <= M_j, by a search over y."""
    target, bound = v.numpy(), M.numpy()

    def point(y: np.ndarray) -> np.ndarray:
        y = y[:, None]
        stationary = target * y / np.maximum(y + 2 * step * ALPHA, 1e-300)
        return np.clip(stationary, -bound * y, bound * y)

    def objective(y: np.ndarray) -> np.ndarray:
        w = point(y)
        squares = (w * w).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            quadratic = np.where(squares > 0, ALPHA * squares / y, 0.0)
        return ((w - target) ** 2).sum(1) / 2 + step * (quadratic + (1 - ALPHA) * y)

    return torch.from_numpy(point(golden(objective, np.zeros(1), np.ones(1)))[0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("per", ["layer", "entity"])
def test_a_step_is_sgd_then_the_prox_of_every_entity(momentum, merged, per, monkeypatch):
    if merged:  # what an accelerator does
        monkeypatch.setattr(prox_passes, "fits", lambda layers: False)
    net, plain, groups = streams(), streams(), all_groups()
    M = {name: 0.8 * bound for name, bound in SPR.bounds_from(net, groups, per).items()}
    lam, rates = 15 * (1 - momentum), dict(lr=0.1, momentum=momentum, weight_decay=1e-3)
    optimizer = ProxSGD(net, SPR(net, lam, ALPHA, M, groups), **rates)
    sgd = torch.optim.SGD(plain.parameters(), **rates)
    for model, stepped in ((net, optimizer), (plain, sgd)):
        set_gradients(model, 1, scale=0.1)
        stepped.step()
    before, after = dict(plain.named_parameters()), dict(net.named_parameters())
    sizes = {g.name: sum(w.numel() for w in entity_weights(before, g, 0).values()) for g in groups}
    total = sum(sizes[group.name] * group.count for group in groups)
    owned = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in after.items()}
    zeros = 0
    for group in groups:
        for member in group.members:
            owned[member.parameter].index_fill_(member.dim, member.index.flatten(), True)
        for i in range(group.count):
            pieces = entity_weights(before, group, i)
            limits = bound_of_layers(M[group.name], list(pieces), i)
            bounds = torch.cat([w.new_full(w.shape, limits[n]) for n, w in pieces.items()])
            step = 0.1 * lam * sizes[group.name] / total / (1 - momentum)
            wanted = least(torch.cat(list(pieces.values())).detach(), bounds.double(), step)
            found = torch.cat(list(entity_weights(after, group, i).values())).detach()
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
            assert (found.abs() <= bounds * (1 + 1e-12)).all()
            zeros += int(not found.any())
    assert 0 < zeros < sum(group.count for group in groups)
    for name, parameter in after.items():
        assert torch.equal(parameter[~owned[name]], before[name][~owned[name]])


def test_weights_of_no_entity_keep_the_step_of_sgd():
    """In a layer of which two filters are entities, to the last bit, over many steps."""
    net, plain = streams(torch.float32), streams(torch.float32)
    optimizer = ProxSGD(net, SPR(net, 3.0, ALPHA, 0.3, some_rows_group()), 0.1, 0.9, 1e-2)
    sgd = torch.optim.SGD(plain.parameters(), 0.1, 0.9, weight_decay=1e-2)
    for seed in range(5):
        for model, stepped in ((net, optimizer), (plain, sgd)):
            set_gradients(model, seed)
            stepped.step()
    assert not torch.equal(net.narrow.weight[1], plain.narrow.weight[1])
    for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
        rows = [0, 2, 4] if name.startswith("narrow") else slice(None)
        assert torch.equal(p[rows], q[rows])


@pytest.mark.parametrize("layer", ["narrow", "widen", "depthwise"])
def test_a_group_in_one_layer_is_the_layer(layer):
    found = []
    for grouped in (True, False):
        net = streams()
        keys = [key for key, _ in net.get_submodule(layer).named_parameters()]
        rows = one_each(len(net.get_submodule(layer).weight))
        members = tuple(Member(f"{layer}.{key}", 0, rows) for key in keys)
        entities = EntityGroup(layer, members) if grouped else {layer: "filters"}
        M = SPR.bounds_from(net, entities, "entity")
        optimizer = ProxSGD(net, SPR(net, 2.0, ALPHA, M, entities), 0.1, 0.9)
        for seed in range(3):
            set_gradients(net, seed, 0.1)
            optimizer.step()
        found.append(net.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_the_bounds(dtype):
    net, groups = streams(dtype), all_groups()
    M = {name: 0.37 * bound.float() for name, bound in SPR.bounds_from(net, groups).items()}
    spr = SPR(net, 0.01, ALPHA, M, groups)
    optimizer = ProxSGD(net, spr, 0.1)
    outside = net.narrow.weight[[0, 2, 4]].clone()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for layer, bounds in zip(spr.ordered_layers(), spr.bounds(), strict=True):
        peaks = layer.peaks().double()
        assert (peaks <= (bounds if bounds.dim() == 2 else bounds.unsqueeze(1)).double()).all()
        assert peaks.any()
    assert torch.equal(net.narrow.weight[[0, 2, 4]], outside)


def test_frozen_members_stay():
    net = streams()
    net.norm.weight.requires_grad_(False)
    start = net.norm.weight.clone()
    optimizer = ProxSGD(net, SPR(net, 1e4, ALPHA, 1.0, stream_group()), 0.1)
    set_gradients(net, 0, 0.0)
    optimizer.step()
    assert torch.equal(net.norm.weight, start)
    assert not net.stem.weight.any() and not net.norm.bias.any() and not net.embed.weight.any()


def test_members_with_two_rates_are_named():
    net = streams()
    slow = [{"params": [net.norm.weight], "lr": 0.01}]
    rest = [p for p in net.parameters() if p is not net.norm.weight]
    with pytest.raises(ValueError, match="parameters of layer 'stem' are entities of spr"):
        ProxSGD([{"params": rest}, *slow], SPR(net, 1.0, ALPHA, 1.0, stream_group()), 0.1)


def through_torch(pair):
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), through_torch]
)
def test_copies_and_pickles_go_on_as_the_original(through):
    net, groups = streams(), all_groups()
    optimizer = ProxSGD(net, SPR(net, 1.0, ALPHA, SPR.bounds_from(net, groups), groups), 0.1, 0.9)
    set_gradients(net, 0, 0.1)
    optimizer.step()
    pairs = [(net, optimizer), through((net, optimizer))]
    for model, stepped in pairs:
        set_gradients(model, 1, 0.1)
        stepped.step()
    for p, q in zip(*(model.parameters() for model, _ in pairs), strict=True):
        assert torch.equal(p, q) and p is not q


def test_training_makes_channels_exactly_zero_in_every_layer():
    net, group = streams(), stream_group()
    optimizer = ProxSGD(net, SPR(net, 0.6, ALPHA, SPR.bounds_from(net, group), group), 0.1, 0.9)
    x, y = torch.randn(16, 2, 2, 2, dtype=torch.float64), torch.randint(3, (16,))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    norms = optimizer.spr.entity_values()["stem"].norm
    assert 0 < (norms == 0).sum() < CHANNELS
    for i in (norms == 0).nonzero().flatten().tolist():
        assert not any(
            w.any() for w in entity_weights(dict(net.named_parameters()), group, i).values()
        )


@pytest.mark.parametrize("widths", [(3, 3), (1, 200, 4000), (5, 900)])
def test_rows_of_any_width_go_in_few_calls(widths):
    """What an accelerator does with very different widths is the prox of each batch."""
    torch.manual_seed(1)
    rows = [torch.randn(4, width, dtype=torch.float64) for width in widths]
    steps = torch.rand(4 * len(widths), dtype=torch.float64)
    bounds = [prox_sgd._Bounds(torch.rand(4, dtype=torch.float64) + 0.1) for _ in widths]
    together = prox_sgd._at_once(rows, steps, bounds, ALPHA)
    for found, x, step, limits in zip(together, rows, steps.split(4), bounds, strict=True):
        torch.testing.assert_close(found, projected.prox(x, step, ALPHA, limits.bound))

"""A smaller network in place of a masked one: the same training, and its numbers back in the original."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spr_or.models.toy import digits_resnet
from torch import nn

from models.resnet_cifar import resnet20
from spr_or.pruning.chosen_entities import chosen_entities
from spr_or.pruning.masks import apply_masks_, hold_masks
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.narrowing import (
    CannotShrink,
    _within_groups,
    narrow,
    narrowed_entities,
    numbers_of_left,
    read_optimizer_,
    write_,
    write_optimizer_,
)
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR


class Drawn(nn.Module):
    """A residual network with a dropout, to be trained on drawn data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.b(torch.sigmoid(self.a(x)) - 0.5)
        return self.head(x.mean((2, 3)))


def masked(model, kinds, share=0.5, include_norm=False, size=8, channels=1):
    """The model with random entities silenced; its example, choice, layers and masks."""
    example = torch.zeros(2, channels, size, size).to(next(model.parameters()))
    chosen = chosen_entities(model, example, kinds, include_norm)
    layers = chosen.of(model)
    generator = torch.Generator().manual_seed(1)
    masks = {x.name: torch.rand(x.count, generator=generator) > share for x in layers}
    for keep in masks.values():
        keep[0] = True
    by_module = module_masks(model, layers, masks)
    apply_masks_(model, by_module, example)
    return example, chosen, layers, masks, by_module


def data(steps, dtype=torch.float32, size=8, channels=1):
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        images = torch.randn(32, channels, size, size, generator=generator, dtype=dtype)
        yield images, torch.randint(10, (32,), generator=generator)


def losses(model, optimizer, batches, after=lambda: None):
    model.train()
    found = []
    for images, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        after()
        found.append(loss.item())
    return found


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kinds", ["filters", "channels"])
@pytest.mark.parametrize("make", [digits_resnet, Drawn])
def test_fifty_steps_have_the_losses_of_the_masked_network(make, kinds, dtype):
    torch.manual_seed(0)
    model = make().to(dtype)
    example, _, layers, masks, by_module = masked(model, kinds)
    optimizer = sgd(model)
    losses(model, optimizer, data(5, dtype), hold_masks(model, by_module, example))  # momentum
    found = narrow(model, layers, masks, example)
    smaller = sgd(found.network)
    read_optimizer_(found, smaller, optimizer, model)
    assert sum(p.numel() for p in found.network.parameters()) < 0.7 * sum(
        p.numel() for p in model.parameters()
    )
    expected = losses(model, optimizer, data(50, dtype), hold_masks(model, by_module, example))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(
        losses(found.network, smaller, data(50, dtype), found.hold),
        expected,
        atol=tolerance,
        rtol=0,
    )
    # Back in the original: the same function, the same weights where any are left.
    whole = copy.deepcopy(model)
    for parameter in whole.parameters():
        nn.init.normal_(parameter)
    write_(found, whole)
    images = next(data(1, dtype))[0]
    torch.testing.assert_close(whole.eval()(images), model.eval()(images), atol=1e-4, rtol=1e-4)
    other = sgd(whole)
    write_optimizer_(found, smaller, other, whole)
    for name, parameter in whole.named_parameters():
        left = parameter != 0
        own = other.state[parameter]["momentum_buffer"]
        wanted = optimizer.state[dict(model.named_parameters())[name]]["momentum_buffer"]
        torch.testing.assert_close(own[left], wanted[left], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kinds", ["filters", "channels"])
@pytest.mark.parametrize("include_norm", [False, True])
def test_proximal_steps_are_those_of_the_masked_network(kinds, include_norm):
    """Weights that read what is gone count no more, so they are zero in the original too."""
    torch.manual_seed(0)
    model = digits_resnet().double()
    example, chosen, layers, masks, by_module = masked(model, kinds, include_norm=include_norm)
    found = narrow(model, layers, masks, example)
    write_(found, model)
    spr = SPR(model, 5.0, 0.3, SPR.bounds_from(model, **chosen._asdict()), **chosen._asdict())
    small = narrowed_entities(found, model, spr.layers, chosen)
    part = SPR(
        found.network, 5.0, 0.3, numbers_of_left(spr, spr.bound, masks),
        u=numbers_of_left(spr, spr.importance, masks), **small._asdict(),
    )  # fmt: skip
    assert float(part()) == pytest.approx(float(spr()), rel=1e-12)
    optimizers = [
        ProxSGD(m, s, lr=0.05, momentum=0.9) for m, s in ((model, spr), (found.network, part))
    ]
    alive = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for name, parameter in found.network.named_parameters():
        found.put_(name, alive[name], torch.ones_like(parameter))

    def hold():
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(alive[name])

    one = losses(model, optimizers[0], data(20, torch.float64), hold)
    other = losses(found.network, optimizers[1], data(20, torch.float64), found.hold)
    torch.testing.assert_close(other, one, atol=1e-8, rtol=1e-8)
    values, left = spr.entity_values(), part.entity_values()
    for name, value in left.items():
        torch.testing.assert_close(value.norm, values[name].norm[masks[name]], atol=1e-7, rtol=1e-6)


def test_a_large_network_shrinks_by_what_is_masked():
    model = resnet20()
    example, _, layers, masks, _ = masked(model, "filters", size=32, channels=3)
    found = narrow(model, layers, masks, example)
    conv = found.network.get_submodule("layer2.1.conv1")
    assert conv.weight.shape[0] == int(masks["layer2.1.conv1"].sum())
    assert found.network.training


def test_constants_that_training_would_move_are_refused():
    class Shifted(nn.Module):
        """A bias of its own behind the layer: no mask of the layer silences it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.shift = nn.Parameter(torch.ones(4, 1, 1))
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            return self.head((self.conv(x) + self.shift).mean((2, 3)))

    torch.manual_seed(0)
    model = Shifted()
    example, _, layers, masks, _ = masked(model, "filters")
    with pytest.raises(CannotShrink):
        narrow(model, layers, masks, example)


class Separable(nn.Module):
    """Layers in which each channel has a convolution of its own, or two share one."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.own = nn.Conv2d(8, 8, 3, padding=1, groups=8 // width, bias=False)
        self.m, self.b, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Linear(6, 10)

    def forward(self, x):
        x = F.relu(self.m(self.own(F.relu(self.n(self.a(x))))))
        return self.head(F.relu(self.b(x)).mean((2, 3)))


@pytest.mark.parametrize("kinds", ["filters", "channels"])
def test_a_convolution_of_each_channel_goes_with_it(kinds):
    torch.manual_seed(0)
    model = Separable()
    example, _, layers, masks, by_module = masked(model, kinds)
    found = narrow(model, layers, masks, example)
    if kinds == "channels":
        left = int(next(iter(masks.values())).sum())
        assert found.network.get_submodule("own").weight.shape == (left, 1, 3, 3)
    one = losses(model, sgd(model), data(20), hold_masks(model, by_module, example))
    other = losses(found.network, sgd(found.network), data(20), found.hold)
    assert other == pytest.approx(one, rel=1e-4)
    write_(found, model)
    x = next(data(1))[0]
    with torch.no_grad():
        torch.testing.assert_close(found.network.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)


def test_positions_within_groups_are_counted_in_each():
    model = Separable(width=2)  # four groups of two channels
    names = {"own.weight": [[0, 1, 4, 5], [0, 1, 4, 5], None, None], "a.weight": [[1], None]}
    assert _within_groups(names, model) == names | {"own.weight": [[0, 1, 4, 5], None, None, None]}
    one_each = {"own.weight": [[0, 1, 4, 5], [1, 5], None, None]}
    assert _within_groups(one_each, model)["own.weight"] == [[0, 1, 4, 5], [1], None, None]
    with pytest.raises(CannotShrink, match="groups of 'own'"):
        _within_groups({"own.weight": [[0, 1, 4, 5], [0, 5], None, None]}, model)

"""Networks of a user's own: one that uses every operation, and random programs."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from compaction_networks import (
    difference,
    draw_masks,
    maskable,
    randomise,
)
from slow_cases import slow_unless
from torch import nn

from spr_or.pruning.compaction.api import (
    compact,
)
from spr_or.pruning.counts import count_parameters
from spr_or.pruning.masks import apply_masks_


class Chain(nn.Module):
    """Everything a plain forward pass may use."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 12, 1, stride=2)
        self.act = nn.LeakyReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(12 * 9, 20)
        self.norm1 = nn.BatchNorm1d(20)
        self.out = nn.Linear(20, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        y = self.norm(self.b(x))
        y += x
        x = self.drop(self.act(y)) + 1
        x = x + x
        x = F.pad(torch.sigmoid(self.c(x)), (1, 1, 1, 1))
        x = F.avg_pool2d(x, 3, stride=1, padding=1)[:, :, ::2, 1:]
        x = F.dropout(x, 0.5, self.training)[:, :, :3, :3]
        x = x.contiguous().view(x.size(0), -1)
        x = self.norm1(self.hidden(x)).relu()
        return F.log_softmax(self.out(x), dim=1)


@pytest.mark.parametrize("seed", range(5))
def test_a_users_own_chain(seed):
    torch.manual_seed(seed)
    model = randomise(Chain()).double().eval()
    x = torch.randn(3, 3, 12, 12).double()
    masks = draw_masks(model, "50%")
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)
    small = compact(model, masks, x[:1])
    assert difference(masked(x), small(x)) < 1e-12
    assert count_parameters(small) < count_parameters(model)


class Drawn(nn.Module):
    """A random program of residual operations on maps of one size."""

    def __init__(self, dice):
        super().__init__()
        self.program, widths = [], [3]
        for step in range(dice.randint(4, 14)):
            source = dice.randrange(max(0, len(widths) - 4), len(widths))
            width = widths[source]
            same = [i for i, w in enumerate(widths) if w == width]
            new, module = width, None
            kind = dice.choice(
                ["conv", "conv", "norm", "relu", "act", "pool", "add", "add", "pad", "frame"]
            )
            if kind == "conv":
                new, size = dice.choice([width, 2, 3, 5]), dice.choice([1, 3])
                padding = size // 2
                mode = dice.choice(["zeros", "zeros", "replicate"])
                module = nn.Conv2d(
                    width, new, size, padding=padding, bias=dice.random() < 0.5, padding_mode=mode
                )
            elif kind == "norm":
                module = nn.BatchNorm2d(width)
            elif kind == "act":
                module = dice.choice([nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(), nn.Dropout()])
            elif kind == "pool":
                module = dice.choice([nn.MaxPool2d, nn.AvgPool2d])(3, 1, 1)
            elif kind == "pad":
                new = width + 3
            if module is not None:
                self.add_module(f"m{step}", module)
            self.program.append((kind, f"m{step}", source, dice.choice(same)))
            widths.append(new)
        self.end = nn.Linear(widths[-1], 3)

    def forward(self, x):
        values = [x]
        for kind, name, source, other in self.program:
            value = values[source]
            if kind == "add":
                values.append(value + values[other])
            elif kind == "pad":
                values.append(F.pad(value, (0, 0, 0, 0, 1, 2)))
            elif kind == "frame":
                values.append(F.pad(value[:, :, 1:-1, 1:], (1, 0, 1, 1, 0, 0)))
            elif kind == "relu":
                values.append(F.relu(value))
            else:
                values.append(getattr(self, name)(value))
        return self.end(values[-1].mean((2, 3)))


@pytest.mark.parametrize("seed", slow_unless(lambda seed: seed < 15, range(120)))
def test_random_programs(seed):
    """Also zero filters, zero columns and zero scales that no mask speaks of."""
    torch.manual_seed(seed)
    dice = random.Random(seed)
    model = randomise(Drawn(dice)).double().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and dice.random() < 0.5:
            with torch.no_grad():
                module.weight[torch.rand(len(module.weight)) < dice.random()] = 0
        if isinstance(module, nn.Conv2d) and dice.random() < 0.3:
            with torch.no_grad():
                module.weight[:, torch.rand(module.in_channels) < dice.random()] = 0
    masks = {
        name: torch.rand(size) >= dice.choice([0.2, 0.5, 1.0])
        for name, size in maskable(model).items()
        if dice.random() < 0.5
    }
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)
    x = torch.randn(2, 3, 5, 4).double()
    small = compact(model, masks, x[:1])
    with torch.no_grad():
        assert difference(masked(x), small(x)) < 1e-10
    assert count_parameters(small) <= count_parameters(model) + sum(
        len(p) for name, p in small.named_parameters() if name.endswith(("shift", "bias"))
    )

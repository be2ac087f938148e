"""What compaction does not understand is refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spr_or.pruning.compaction.api import (
    CompactionError,
    compact,
)


class Lambda(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        self.conv = nn.Conv2d(4, 4, 1)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def test_what_is_not_understood_is_refused_by_name():
    cases = [
        (lambda m, x: m.g(x), {"g": nn.Conv2d(4, 4, 1, groups=4)}, "'g'.*4 groups"),
        (lambda m, x: m.n(x), {"n": nn.LayerNorm([4, 5, 5])}, "'n'.*LayerNorm"),
        (lambda m, x: m.n(x), {"n": nn.GroupNorm(2, 4)}, "GroupNorm"),
        (lambda m, x: m.n(x), {"n": nn.ConvTranspose2d(4, 4, 1)}, "ConvTranspose2d"),
        (lambda m, x: m.conv(x) * x, {}, "mul"),
        (lambda m, x: torch.cat([m.conv(x), x], 1), {}, "cat"),
        (lambda m, x: m.conv(m.conv(x)), {}, "'conv'.*called 2 times"),
        (lambda m, x: m.conv(x) + x[:, :, :1, :1], {}, "addition of shapes"),
        (lambda m, x: m.conv(x)[:, :2], {}, "getitem.*not a slice of positions"),
        (lambda m, x: torch.add(m.conv(x), x, alpha=2), {}, "alpha"),
        (lambda m, x: m.conv(x).mean(1), {}, "mean over samples or channels"),
        (lambda m, x: m.conv(x).transpose(1, 2), {}, "transpose"),
        (lambda m, x: m.conv(x).view(x.size(0), 2, -1), {}, "change of shape"),
        (lambda m, x: m.conv(x) + x.size(0), {}, "size"),
        (lambda m, x: F.dropout(m.conv(x)), {}, "dropout that stays on"),
        (lambda m, x: F.pad(m.conv(x), (1, 1), value=3.0), {}, "padding with anything"),
        (lambda m, x: m.b(x), {"b": nn.BatchNorm2d(4, track_running_stats=False)}, "statistics"),
        (lambda m, x: (m.conv(x), x), {}, "output that is not one tensor"),
        (lambda m, x: m.conv(x).max(1), {}, "max"),
        (lambda m, x: m.l(x), {"l": nn.Linear(5, 5)}, "'l'.*linear layer on 4 dimensions"),
        (lambda m, x: m.conv(x) if x.sum() > 0 else x, {}, "Lambda cannot be traced"),
        (lambda m, x: m.r(x) + x, {"r": nn.ReLU(inplace=True)}, "overwrites 'x'.*add"),
    ]
    for forward, modules, message in cases:
        with pytest.raises(CompactionError, match=message):
            compact(Lambda(forward, **modules), {}, torch.zeros(1, 4, 5, 5))


def test_overwriting_a_view_of_what_others_read_is_refused():
    def forward(m, x):
        y = m.conv(x)
        return torch.flatten(m.r(y[:, :, ::2]), 1) + torch.flatten(y[:, :, ::2], 1)

    with pytest.raises(CompactionError, match="overwrites"):
        compact(Lambda(forward, r=nn.ReLU(inplace=True)), {}, torch.zeros(1, 4, 5, 5))


def test_two_inputs_are_refused_by_name():
    class Two(nn.Module):
        def forward(self, image, label):
            return image + label

    with pytest.raises(CompactionError, match="Two takes 2 inputs .image, label."):
        compact(Two(), {}, torch.zeros(1, 2))

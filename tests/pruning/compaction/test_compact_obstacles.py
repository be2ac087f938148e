"""What is in the way of compaction is named: all of it, with the line of the user's code."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spr_or.pruning.compaction.api import CompactionError, compact


class Lambda(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        self.conv = nn.Conv2d(4, 4, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def counting(m, x):
    m.calls += 1
    m.total += x.sum()
    return m.conv(x)


REFUSED = {
    "a branch on values": (lambda m, x: m.conv(x) if x.sum() > 0 else x, "Lambda cannot be traced"),
    "dropout that stays on": (lambda m, x: F.dropout(m.conv(x)), "dropout.*draws random numbers"),
    "noise": (lambda m, x: m.conv(x) + torch.rand_like(x), "rand_like.*test_compact_obstacles.py:"),
    "a sample": (lambda m, x: torch.bernoulli(m.conv(x).sigmoid()), "bernoulli"),
    "an example of another shape": (lambda m, x: m.conv(x.flatten(1)), "does not take the example"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compacted_is_refused_with_the_reason(name):
    forward, message = REFUSED[name]
    with pytest.raises(CompactionError, match=message):
        compact(Lambda(forward), {}, torch.ones(1, 4, 5, 5))


def test_all_buffers_that_are_written_are_named():
    with pytest.raises(CompactionError, match="(?s)buffer 'calls'.*buffer 'total'"):
        compact(Lambda(counting), {}, torch.ones(1, 4, 5, 5))


def test_all_random_operators_are_named():
    def forward(m, x):
        return F.dropout(m.conv(x)) + torch.rand_like(x)

    with pytest.raises(CompactionError, match="(?s)aten.dropout.*; aten.rand_like"):
        compact(Lambda(forward), {}, torch.ones(1, 4, 5, 5))


def test_random_numbers_that_nothing_reads_do_no_harm():
    def forward(m, x):
        torch.rand_like(x)
        return F.scaled_dot_product_attention(m.conv(x), x, x)

    small = compact(Lambda(forward), {}, torch.ones(1, 4, 5, 5))
    assert small(torch.ones(3, 4, 5, 5)).shape == (3, 4, 5, 5)


class Sorting(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.a(x).sort(-1)[0]
        return self.head(x)


def test_an_operator_that_takes_its_input_whole_is_named_with_its_line():
    small = compact(Sorting(), {"a": torch.arange(8) < 5}, torch.zeros(2, 6))
    (obstacle,) = small.meta["obstacles"]
    assert obstacle.startswith("aten.sort.default at ")
    assert "test_compact_obstacles.py:" in obstacle and "self.a(x).sort(-1)[0]" in obstacle
    assert obstacle.endswith("put back: 3 of the 8 positions of dimension 1 of 'linear'")
    assert "it takes its inputs whole" in obstacle


def test_a_constant_at_a_border_is_an_obstacle():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 3, padding=1))
    small = compact(model, {"0": torch.arange(4) < 3}, torch.zeros(1, 3, 5, 5))
    (obstacle,) = small.meta["obstacles"]
    assert "conv2d" in obstacle and "a constant that it reads cannot become a bias" in obstacle
    assert "1 of the 4 positions of dimension 1 of 'sigmoid'" in obstacle


def test_without_obstacles_none_are_named():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    small = compact(model, {"0": torch.arange(8) < 5}, torch.zeros(2, 6))
    assert small.meta["obstacles"] == []

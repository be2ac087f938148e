"""Operators of the user's own: right without a rule, narrow with one."""

import copy

import pytest
import torch
from first_attempt import compact_at_once
from torch import Tensor, nn

from spr_or.pruning.compaction import rules
from spr_or.pruning.compaction.layers import Fill
from spr_or.pruning.compaction.rules import all_but, every_dimension, passing, register
from spr_or.pruning.masks import apply_masks_


@torch.library.custom_op("spr_or_test::swish", mutates_args=())
def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@torch.library.custom_op("spr_or_test::centred", mutates_args=())
def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


swish.register_fake(torch.empty_like)
centred.register_fake(torch.empty_like)
SWISH, CENTRED = torch.ops.spr_or_test.swish.default, torch.ops.spr_or_test.centred.default


@pytest.fixture
def table(monkeypatch):
    """A table of rules that is put away after the test."""
    monkeypatch.setattr(rules, "_TABLE", dict(rules._TABLE))


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.head(self.function(self.b(self.function(self.a(x)))))


def compacted(function):
    torch.manual_seed(0)
    model = Net(lambda x: function(x)).double().eval()  # the operator itself cannot be copied
    masks = {"a": torch.arange(8) < 5, "b": torch.arange(6) > 1}
    small = compact_at_once(model, masks, torch.zeros(2, 3, 4, 5))
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)
    x = torch.randn(3, 3, 4, 5, dtype=torch.float64)
    assert torch.allclose(masked(x), small(x), atol=1e-12)
    return small


def fills(small):
    return sum(isinstance(module, Fill) for module in small.modules())


@pytest.mark.parametrize("function", [swish, centred])
def test_without_a_rule_an_operator_is_right_at_full_width(function):
    small = compacted(function)
    assert fills(small) == 2
    assert small.get_submodule("b").weight.shape[:2] == (4, 8)
    assert all("it takes its inputs whole" in text for text in small.meta["obstacles"])


def test_an_operator_that_is_registered_as_pointwise_is_narrow(table):
    register(SWISH, passing(every_dimension))
    small = compacted(swish)
    assert fills(small) == 0
    assert small.get_submodule("b").weight.shape[:2] == (4, 5)


def test_an_operator_that_mixes_one_dimension_is_narrow_in_the_others(table):
    register([CENTRED], passing(all_but(-1)))
    small = compacted(centred)
    assert fills(small) == 0
    assert small.get_submodule("head").weight.shape[:2] == (3, 4)


def test_channels_that_are_mixed_are_put_back(table):
    register(CENTRED, passing(all_but(1)))  # not what it does, which is no harm
    small = compacted(centred)
    assert fills(small) == 2
    assert all("it mixes dimension 1" in text for text in small.meta["obstacles"])

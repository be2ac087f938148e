"""The compact network computes what the masked network computes, for every network of models/."""

import itertools
from functools import cache

import pytest
import torch
from compaction_networks import NETWORKS, difference, draw_masks, masked_output, network
from slow_cases import slow_unless

from spr_or.pruning.compaction.api import compact
from spr_or.pruning.counts import count_macs, count_parameters

SCENARIOS = ["10%", "50%", "90%", "layers", "blocks", "everything"]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
LARGE = ("resnet18", "resnet18-cifar", "resnet50", "resnet50-cifar", "vgg16")
# Every scenario with the small networks; with a deep one of each kind those that differ most.
QUICK = {
    "resnet56": (),
    "resnet18": (),
    "resnet18-cifar": ("50%",),
    "resnet50": (),
    "resnet50-cifar": (),
    "vgg16": (),
}


@cache
def macs(name):
    return count_macs(network(name), NETWORKS[name][2])


def assert_the_same(name, scenario, dtype):
    model, shape = network(name).to(dtype), NETWORKS[name][2]
    masks = draw_masks(model, scenario)
    small = compact(model, masks, torch.zeros(shape))
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        output = small(x)
    expected = masked_output(model, masks, x)
    assert output.dtype == dtype
    assert difference(expected, output) < TOLERANCES[dtype]
    if scenario in ("10%", "50%"):  # the comparison says something: outputs depend on inputs
        assert (expected[0] - expected[1]).abs().max() > 1e-6
    assert count_parameters(small) < count_parameters(model)
    assert count_macs(small, shape) < macs(name)
    # What is kept of the filters is what the masks keep, or less.
    layers = dict(small.named_modules())
    for layer, keep in masks.items():
        left = layers.get(layer)
        assert left is None or len(left.weight) <= max(int(keep.sum()), 1)


@pytest.mark.parametrize(
    ("name", "scenario"),
    slow_unless(
        lambda name, scenario: scenario in QUICK.get(name, SCENARIOS),
        itertools.product(NETWORKS, SCENARIOS),
    ),
)
def test_compact_computes_what_the_masked_network_computes(name, scenario):
    """The sharper comparison everywhere; single precision too, for large networks once."""
    assert_the_same(name, scenario, torch.float64)
    if name not in LARGE or scenario == "50%":
        assert_the_same(name, scenario, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s != "50%"])
@pytest.mark.parametrize("name", LARGE)
def test_large_networks_in_single_precision(name, scenario):
    assert_the_same(name, scenario, torch.float32)

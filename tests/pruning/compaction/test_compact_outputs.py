"""The compact network computes what the masked network computes, for every network of models/."""

import pytest
import torch
from compaction_networks import NETWORKS, difference, draw_masks, masked_output, network

from spr_or.pruning.compaction.api import (
    compact,
)
from spr_or.pruning.masks import count_macs, count_parameters


@pytest.mark.parametrize("scenario", ["10%", "50%", "90%", "layers", "blocks", "everything"])
@pytest.mark.parametrize("name", NETWORKS)
def test_compact_computes_what_the_masked_network_computes(name, scenario):
    model, shape = network(name), NETWORKS[name][2]
    masks = draw_masks(model, scenario)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        model = model.to(dtype)
        small = compact(model, masks, torch.zeros(shape))
        x = torch.randn(shape, dtype=dtype)
        with torch.no_grad():
            output = small(x)
        expected = masked_output(model, masks, x)
        assert output.dtype == dtype
        assert difference(expected, output) < tolerance
        if scenario in ("10%", "50%"):  # the comparison says something: outputs depend on inputs
            assert (expected[0] - expected[1]).abs().max() > 1e-6
    assert count_parameters(small) < count_parameters(model)
    assert count_macs(small, shape) < count_macs(model, shape)
    # What is kept of the filters is what the masks keep, or less.
    for layer, keep in masks.items():
        left = dict(small.named_modules()).get(layer)
        assert left is None or len(left.weight) <= max(int(keep.sum()), 1)

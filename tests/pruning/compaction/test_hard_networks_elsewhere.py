"""Hard networks where runs put them besides plain float32: under autocast, and in `channels_last`."""

import contextlib
import copy
from typing import Any

import hard_networks
import pytest
import torch
from masked_case import masked_case
from masked_definition import built, call, difference, draw, inputs_of, maskable
from network_cases import Case
from slow_cases import spread
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from spr_or import compact

CASES = spread(hard_networks.CASES, default=40, slow=4)
WAYS = {
    "bfloat16": (torch.bfloat16, torch.contiguous_format),
    "float16": (torch.float16, torch.contiguous_format),
    "channels_last": (None, torch.channels_last),
}


def _run(
    network: nn.Module, inputs: Any, dtype: torch.dtype | None, layout: torch.memory_format
) -> Any:
    """The network's outputs, in autocast's dtype; images and weights in the layout."""
    network = copy.deepcopy(network).to(memory_format=layout)
    laid = tree_map_only(
        Tensor, lambda t: t.to(memory_format=layout) if t.dim() == 4 else t, inputs
    )
    where = contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)
    with torch.no_grad(), where:
        return call(network, laid)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_a_hard_network_elsewhere(case: Case, way: str) -> None:
    model = built(case, torch.float32)
    masks = draw(maskable(model))
    small = compact(model, masks, inputs_of(case, 2, torch.float32))
    masked = masked_case(case, masks, torch.float32)
    inputs = inputs_of(case, 3, torch.float32)
    try:
        expected = _run(masked, inputs, *WAYS[way])
    except RuntimeError as error:
        pytest.skip(f"the masked network does not run there: {error}")
    found = _run(small, inputs, *WAYS[way])
    difference(expected, found)  # the same structure, shapes and dtypes
    exact, expected, found = (
        tree_map_only(Tensor, Tensor.double, outputs)
        for outputs in (call(masked, inputs), expected, found)
    )
    # As near to float32 as the masked network is; rounding differs, since less is added up.
    assert difference(exact, found) <= 4 * difference(exact, expected) + (
        1e-4 if way == "channels_last" else 0.02
    )

"""Networks on which pruning tools fail: the compact network computes what the masked one computes.

Masked is said twice: by `apply_masks_`, and by hooks that know nothing of it.
"""

import copy

import hard_networks
import pytest
import torch
from first_attempt import compact_at_once
from hard_networks import REFUSED
from masked_case import masked_case
from masked_definition import (
    LAYERS,
    Masks,
    built,
    call,
    difference,
    draw,
    hidden,
    inner,
    inputs_of,
    maskable,
    masked_by_hooks,
    outputs_of,
    size,
)
from network_cases import Case
from slow_cases import spread
from torch import nn

from spr_or import compact
from spr_or.pruning.compaction.api import CompactionError

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
# Every case runs once by default or with the slow tests, and in every way with the long ones.
CASES = spread(hard_networks.CASES, default=6, slow=1)
SLOW_CASES = spread(hard_networks.CASES, default=30, slow=6)


def assert_compacts(case: Case, model: nn.Module, masks: Masks, by_hooks: bool = True) -> nn.Module:
    """Compact on one batch size, compare on another; the model itself stays as it was."""
    dtype = next(model.parameters()).dtype
    before = copy.deepcopy(model.state_dict())
    small = compact_at_once(model, masks, inputs_of(case, 2, dtype))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    masked = masked_case(case, masks, dtype)
    inputs = inputs_of(case, 3, dtype)
    with torch.no_grad():
        expected, found = call(masked, inputs), call(small, inputs)
    assert difference(expected, found) <= TOLERANCES[dtype]
    if by_hooks:
        defined = masked_by_hooks(built(case, dtype), masks, inputs)
        assert difference(defined, found) <= TOLERANCES[dtype]
    return small


def at_most(model: nn.Module, masks: Masks) -> int:
    """Parameters that may remain when masked rows leave, and every layer gets a bias if it needs one.

    Rows of convolutions in groups may stay to fill a group.
    """
    left = size(model)
    for name, layer in inner(model).named_modules():
        if not isinstance(layer, LAYERS):
            continue
        left += outputs_of(layer) if getattr(layer, "bias", None) is None else 0
        plain = getattr(layer, "groups", 1) == 1
        if name in masks and plain:
            left -= int((~masks[name]).sum()) * (layer.weight.numel() // len(masks[name]))
    return left


@pytest.mark.parametrize("case", CASES)
def test_random_masks(case: Case) -> None:
    model = built(case)
    masks = draw(hidden(case, model))
    small = assert_compacts(case, model, masks)
    if not case.wide:
        assert size(small) <= at_most(model, masks)


@pytest.mark.parametrize("case", SLOW_CASES)
def test_random_masks_in_single_precision(case: Case) -> None:
    model = built(case, torch.float32)
    assert_compacts(case, model, draw(hidden(case, model)))


@pytest.mark.parametrize("case", SLOW_CASES)
def test_random_masks_of_the_outputs_too(case: Case) -> None:
    model = built(case)
    assert_compacts(case, model, draw(maskable(model)))


@pytest.mark.parametrize("case", SLOW_CASES)
def test_each_layer_emptied(case: Case) -> None:
    model = built(case)
    sizes = hidden(case, model)
    for emptied in sizes:
        others = {name: count for name, count in sizes.items() if torch.rand(()) < 0.5}
        masks = draw(others) | {emptied: torch.zeros(sizes[emptied], dtype=torch.bool)}
        assert_compacts(case, model, masks)


@pytest.mark.parametrize("case", SLOW_CASES)
def test_everything_emptied(case: Case) -> None:
    model = built(case)
    sizes = hidden(case, model)
    assert_compacts(case, model, {n: torch.zeros(s, dtype=torch.bool) for n, s in sizes.items()})


@pytest.mark.parametrize("case", SLOW_CASES)
def test_no_masks(case: Case) -> None:
    model = built(case)
    small = assert_compacts(case, model, {})
    assert difference(call(inner(model), x := inputs_of(case, 4)), call(small, x)) <= 1e-9


def named(name: str) -> Case:
    return next(case for case in hard_networks.CASES if case.name == name)


def test_the_memory_format_survives() -> None:
    model = built(case := named("memory format channels_last"))
    small = compact(model, draw(hidden(case, model)), inputs_of(case, 2))
    weights = [p for p in small.parameters() if p.dim() == 4]
    assert len(weights) == 3
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert call(small, inputs_of(case, 3)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in REFUSED])
def test_what_cannot_be_compacted_is_refused(case: Case) -> None:
    model = built(case)
    with pytest.raises(CompactionError) as caught:
        compact(model, draw(hidden(case, model)), inputs_of(case, 2))
    assert len(str(caught.value)) > 30


def first(count: int, size: int) -> torch.Tensor:
    return torch.arange(size) < count


def without(size: int, *gone: int) -> torch.Tensor:
    keep = torch.ones(size, dtype=torch.bool)
    keep[list(gone)] = False
    return keep


# Masks by name, and the parameters that then remain, counted by hand.
COUNTED = {
    # Filters and bias, columns of the reader.
    "padding as a module": ({"a": first(5, 8)}, (5 * 27 + 5) + (4 * 5 * 9 + 4)),
    # Both copies of a channel leave the reader.
    "concatenation of a tensor with itself": (
        {"a": first(4, 7)},
        (4 * 27 + 4) + 2 * 4 + (4 * 8 * 9 + 4),
    ),
    "concatenation of two linear branches": (
        {"a": first(2, 3), "b": without(5, 0, 3)},
        2 * 7 + 3 * 7 + 2 * (2 + 3) + 2,
    ),
    # What a depthwise filter makes of a zero channel is a constant, which becomes the reader's bias.
    "depthwise separable block": (
        {"wide": first(12, 20)},
        (12 * 3 + 24) + (12 * 9 + 24) + (10 * 12 + 10) + 20 + 44,
    ),
    # Nobody needs the gate of a zero channel.
    "squeeze and excitation": (
        {"a": without(10, 1, 2, 8, 9)},
        (6 * 27 + 6) + 12 + (4 * 6 + 4) + (6 * 4 + 6) + (4 * 6 * 9 + 4),
    ),
    "gate of one channel": ({"body": first(8, 12)}, 4 + 8 * 4 + (5 * 8 * 9 + 5)),
    "uneven split": (
        {"a": without(11, 3, 4, 5, 10)},
        7 * 4 + (7 * 4 * 9 + 7) + (4 * (3 + 7) + 4),
    ),
    # The norm may stay as wide as it was; the layers around it do not.
    "layer norm over removed features": ({"a": first(9, 14)}, 9 * 7 + 28 + (3 * 9 + 3)),
    "group norm": ({"a": without(9, 0, 1, 2, 8)}, (5 * 27 + 5) + 18 + (4 * 5 * 9 + 4)),
    "fused projection, attention block": (
        {"f1": without(14, 0, 4, 5, 6, 13)},
        16 + 24 * 9 + 8 * 9 + 9 * 9 + (8 * 9 + 8) + 27,
    ),
    # A gate of zero takes the value with it.
    "gate from two projections": ({"gate": first(8, 12)}, 8 * 8 + (8 * 8 + 8) + (8 * 8 + 8) + 27),
    # Columns for all that any call reads.
    "one layer called twice": (
        {"a": first(5, 7), "b": first(4, 7)},
        (5 * 27 + 5) + (4 * 5 * 9 + 4) + (4 * 4 + 4),
    ),
    # Four filters are one channel of the shuffled image.
    "pixel shuffle": (
        {"a": without(20, 1, 3, 8, 9, 10, 11)},
        14 * 4 + (4 * 4 + 4),
    ),
    # An emptied branch is a constant, added to the stream.
    "residual blocks around emptied branches": (
        {"a": first(0, 5)},
        (8 * 27 + 8) + 8 + 12 * 9 + (12 * 8 * 9 + 12) + 39,
    ),
    # Nine neurons are one channel of the image they become.
    "linear, view, transposed convolution": (
        {"lin": without(108, *range(18, 27)), "up": first(4, 6)},
        99 * 11 + (11 * 4 * 16 + 4) + (3 * 4 * 9 + 3),
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_that_remain(name: str) -> None:
    case = named(name)
    masks, remaining = COUNTED[name]
    small = assert_compacts(case, built(case), masks)
    assert size(small) <= remaining

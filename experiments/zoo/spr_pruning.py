"""One network through SPR's own steps: attach, mask, compact, compare."""

from __future__ import annotations

import copy
import math
import time
import warnings
from typing import Any

import torch
from counting import sizes
from networks import Network
from preparation import (
    Inputs,
    Masks,
    calibrate_,
    call,
    cast,
    half,
    layer_masks_at_random,
    relative_difference,
    tensors,
)
from torch import nn

from spr_or import SPR, apply_masks_, compact

Record = dict[str, Any]


class StepFailed(Exception):
    """A step of `prune` raised; the record says which, and keeps what the earlier ones gave."""

    def __init__(self, step: str, record: Record) -> None:
        super().__init__(step)
        self.step, self.record = step, record


def prune(
    network: Network, model: nn.Module, ignored: list[str], coupled: bool
) -> tuple[nn.Module, Record]:
    """The compact network of a random half, and what was seen on the way.

    coupled: half of the channels that layers share, everywhere at once, instead of half of each
    layer's filters and neurons. Raises `StepFailed`, from what the step raised.
    """
    record: Record = {}
    step = "inputs"
    try:
        example = network.inputs(2)
        record["attached"] = _attaches(model, example, coupled)
        step = "masks are drawn"
        masks = _coupled_masks(model, example) if coupled else layer_masks_at_random(model, ignored)
        record["layers"] = len(masks)
        step = "apply_masks_"
        masked = copy.deepcopy(model)
        apply_masks_(masked, masks)
        record["applied"] = True
        calibrate_(masked, model, network.inputs(8))
        apply_masks_(masked, masks)  # their statistics have changed
        step = "compact"
        begin = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            small = compact(model, masks, _positional(example))
        record["seconds"] = round(time.perf_counter() - begin, 2)
        record["warnings"] = sorted({str(w.message)[:300] for w in caught})[:5]
        record["compacted"] = True
        step = "comparison in float32"
        record["float32"] = _difference(network, masked, small, torch.float32)
        record["spread"] = _spread(network, masked)
        record |= sizes(small, network.inputs(1) if _any_batch(network, small, record) else example)
        step = "comparison in float64"
        record["float64"] = _in_float64(network, model, masks, example)
    except Exception as error:
        raise StepFailed(step, record) from error
    return small, record


def _attaches(model: nn.Module, example: Inputs, coupled: bool) -> bool | str:
    """True where SPR takes the network and gives a finite penalty, else what it says."""
    words: dict[str, Any] = {"entities": "channels", "example": _positional(example)}
    if not coupled:
        kinds = {"filters": nn.Conv2d, "neurons": nn.Linear}
        modules = list(model.modules())
        words = {
            "entities": [
                k for k, kind in kinds.items() if any(isinstance(m, kind) for m in modules)
            ]
        }
    try:
        penalty = float(SPR(model, lam=1.0, alpha=0.1, M=1.0, **words)().detach())
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return True if math.isfinite(penalty) else f"the penalty is {penalty}"


def _coupled_masks(model: nn.Module, example: Inputs) -> Masks:
    try:
        from spr_or.pruning.groups import layer_masks
        from spr_or.pruning.network_groups import network_groups
    except ImportError as error:
        raise NotImplementedError("not available: network_groups") from error
    groups = network_groups(model, _positional(example), "channels")
    generator = torch.Generator().manual_seed(0)
    masks = {group.name: half(group.count, generator) for group in groups}
    return layer_masks(model, groups, masks)


def _positional(example: Inputs) -> Any:
    """A single tensor stands for itself."""
    return example[0] if isinstance(example, tuple) and len(example) == 1 else example


@torch.no_grad()
def _difference(network: Network, masked: nn.Module, small: nn.Module, dtype: torch.dtype) -> float:
    torch.manual_seed(1)
    inputs = [cast(network.inputs(2), dtype) for _ in range(3)]
    return max(relative_difference(call(small, x), call(masked, x)) for x in inputs)


@torch.no_grad()
def _spread(network: Network, masked: nn.Module) -> float:
    """How far outputs move from one random input to the next: 0 would mean that none was read."""
    first, second = (tensors(call(masked, network.inputs(2))) for _ in range(2))
    pairs = zip(first, second, strict=True)
    return min(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


@torch.no_grad()
def _any_batch(network: Network, small: nn.Module, record: Record) -> bool:
    """Whether the compact network takes one sample, though the example had two."""
    try:
        call(small, network.inputs(1))
    except Exception as error:
        record["other_batch"] = f"{type(error).__name__}: {str(error)[:200]}"
        return False
    record["other_batch"] = True
    return True


def _in_float64(network: Network, model: nn.Module, masks: Masks, example: Inputs) -> float:
    masked = copy.deepcopy(model).double()
    double = copy.deepcopy(model).double()
    apply_masks_(masked, masks)
    small = compact(double, masks, _positional(cast(example, torch.float64)))
    return _difference(network, masked, small, torch.float64)

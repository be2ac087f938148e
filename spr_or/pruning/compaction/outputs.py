"""What networks return for one input, compared."""

import warnings

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spr_or.pruning.compaction.errors import CompactionError
from spr_or.pruning.compaction.inputs import Inputs
from spr_or.utils.full_float32 import full_float32

# Relative difference of outputs that rounding explains: a narrower sum has another order.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a network, or the graph of one, returns; in full precision, without gradients."""
    with torch.no_grad(), full_float32(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(model, fx.GraphModule):
            found = model(*pytree.tree_leaves((inputs.args, inputs.kwargs)))
        else:
            found = model(*inputs.args, **inputs.kwargs)
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def difference_of(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference of any output, relative to that output's largest number."""
    if [t.shape for t in expected] != [t.shape for t in found]:
        raise CompactionError("its outputs have other shapes")
    worst = 0.0
    for want, have in zip(expected, found, strict=True):
        if not want.numel():
            continue
        if not want.is_floating_point():
            worst = max(worst, float((want != have).any()))
            continue
        good = want.isfinite()
        if not bool((good == have.isfinite()).all()):
            return float("inf")
        scale = float(want[good].abs().max()) if bool(good.any()) else 0.0
        gap = float((want - have)[good].abs().max()) if bool(good.any()) else 0.0
        worst = max(worst, gap / scale if scale > 0 else gap)
    return worst


def agree(model: nn.Module, expected: list[Tensor], found: list[Tensor]) -> bool:
    """Whether two networks' outputs differ by rounding in the precision of ``model`` at most.

    Raises CompactionError where they have other shapes.
    """
    return difference_of(expected, found) <= tolerance(model)


def tolerance(model: nn.Module) -> float:
    """The largest `difference_of` that rounding explains in the precision of the network."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return TOLERANCES.get(dtype, TOLERANCES[torch.float32])

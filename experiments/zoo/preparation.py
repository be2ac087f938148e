"""What all methods start from: random norms, which layers give the outputs, and half of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
Masks = Mapping[str, Tensor]
STATISTICS = ("running_mean", "running_var")
LAYERS = (_ConvNd, nn.Linear)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The model's outputs for positional or keyword inputs."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def tensors(outputs: Any) -> list[Tensor]:
    """The floating-point tensors in nested outputs."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The inputs with their floating-point tensors in that dtype."""

    def one(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    if isinstance(inputs, dict):
        return {name: one(x) for name, x in inputs.items()}
    return tuple(one(x) for x in inputs)


@torch.no_grad()
def randomise_(model: nn.Module) -> None:
    """Draw what initialisation leaves constant: scales and shifts of norms, their statistics, …

    Scales become 0.5 … 1.5 and shifts normal with deviation 0.2, so that a shift which is left
    alive, or a scale of zero that hides a branch, shows in the outputs.
    """
    for owner, name, tensor in _constant_tensors(model):
        is_shift = "bias" in name or name in ("beta", "running_mean")
        is_shift |= not _is_norm(owner) and tensor.numel() > 1 and not tensor.any()
        if is_shift:
            tensor.normal_(0, 0.2)
        else:
            tensor.uniform_(0.5, 1.5)


def _is_norm(module: nn.Module) -> bool:
    return any("norm" in kind.__name__.lower() for kind in type(module).__mro__)


def _constant_tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        own = list(module.named_parameters(recurse=False))
        own += [(n, b) for n, b in module.named_buffers(recurse=False) if n in STATISTICS]
        for name, tensor in own:
            if tensor.is_floating_point() and bool((tensor == tensor.flatten()[0]).all()):
                yield module, name, tensor


@torch.no_grad()
def calibrate_(masked: nn.Module, model: nn.Module, inputs: Inputs) -> None:
    """Give BatchNorms of both networks the statistics that ``masked`` has on these inputs.

    Each layer that loses half of its inputs weakens the signal by a third. Statistics of another
    network do not make up for that, and after fifty layers outputs are constants, whose comparison
    would show little.
    """
    norms = {n: m for n, m in masked.named_modules() if isinstance(m, _BatchNorm)}
    momenta = [norm.momentum for norm in norms.values()]
    for norm in norms.values():
        norm.train()
        norm.momentum = 1.0
    call(masked, inputs)
    for (name, norm), momentum in zip(norms.items(), momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        # A constant channel would have its rounding errors divided by almost nothing.
        norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()) + 1e-3)
        other = model.get_submodule(name)
        for buffer in STATISTICS:
            getattr(other, buffer).copy_(getattr(norm, buffer))


def output_layers(model: nn.Module, inputs: Inputs) -> list[str]:
    """Layers whose outputs reach the network's outputs without another layer between.

    Found by walking autograd's graph back from the outputs to the first layer on each way.
    """
    made_by: dict[Any, str] = {}
    handles = [
        module.register_forward_hook(
            lambda _, args, output, name=name: made_by.__setitem__(output.grad_fn, name)
        )
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    try:
        outputs = tensors(call(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    found, seen = set(), set()
    todo = [output.grad_fn for output in outputs]
    while todo:
        step = todo.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if step in made_by:
            found.add(made_by[step])
        else:
            todo += [before for before, _ in step.next_functions]
    return sorted(found)


def half(count: int, generator: torch.Generator) -> Tensor:
    """Which of ``count`` stay: a random half, rounded down, but one at least (bool)."""
    keep = torch.zeros(count, dtype=torch.bool)
    keep[torch.randperm(count, generator=generator)[: max(1, count // 2)]] = True
    return keep


def layer_masks_at_random(model: nn.Module, ignored: list[str]) -> dict[str, Tensor]:
    """Half of the filters or neurons of every layer that is not ignored."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: half(_outputs(module), generator)
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and name not in ignored
    }


def _outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def relative_difference(ours: Any, theirs: Any) -> float:
    """Largest difference over the largest number of ``theirs``; the largest over all outputs."""
    pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        raise ValueError(
            f"shapes differ: {[tuple(a.shape) for a, _ in pairs]}, {[tuple(b.shape) for _, b in pairs]}"
        )
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)

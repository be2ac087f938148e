"""The masked network by its definition, and what is needed to compare it with a compact one.

Nothing here asks the engine: layers are found by type, norms by name (see `network_cases`).
"""

import warnings
from typing import Any

import torch
from network_cases import Case, Example
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_map

from spr_or.pruning.compaction.layers import NarrowNorm

Masks = dict[str, Tensor]
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
LAYERS = (*CONVOLUTIONS, nn.Linear, nn.Embedding)


def inner(model: Any) -> nn.Module:
    """The network inside torch.compile or DataParallel."""
    while True:
        wrapped = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.DataParallel):
            wrapped = model.module
        if wrapped is None:
            return model
        model = wrapped


def built(case: Case, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The case's network in evaluation mode, with numbers that are nowhere zero or one by accident.

    The same network each time: some cannot be copied, for their hooks leave tensors in them that
    are no parameters.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old hooks say that they are old
        torch.manual_seed(3)
        return randomise(case.factory()).to(dtype).eval()


def randomise(model: nn.Module) -> nn.Module:
    """Random biases, scales, shifts and running statistics."""
    with torch.no_grad():
        for module in model.modules():
            scales = "Norm" in type(module).__name__ or "Rms" in type(module).__name__
            for name, tensor in module.named_parameters(recurse=False):
                if tensor.dim() == 1 and name == "weight" and scales:
                    tensor.uniform_(0.7, 1.3)
                elif tensor.dim() == 1:
                    tensor.normal_(0.0, 0.3)
            if isinstance(module, _NormBase) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_(0.0, 0.2)
                module.running_var.uniform_(0.8, 1.6)
    return model


def inputs_of(case: Case, batch: int, dtype: torch.dtype = torch.float64) -> Example:
    """Fresh inputs for the case; floating-point ones of `dtype`."""
    return tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, case.inputs(batch))


def call(model: nn.Module, inputs: Example) -> Any:
    """What the model returns; the inputs stay as they are."""
    inputs = tree_map(Tensor.clone, inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def outputs_of(layer: Any) -> int:
    """Number of filters, neurons or features that a layer writes."""
    for name in ("out_channels", "out_features", "embedding_dim"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    raise AssertionError(layer)


def maskable(model: nn.Module) -> dict[str, int]:
    """Name of each layer to the number of its outputs."""
    return {n: outputs_of(m) for n, m in inner(model).named_modules() if isinstance(m, LAYERS)}


def is_head(name: str) -> bool:
    return name.split(".")[-1].startswith("head")


def hidden(case: Case, model: nn.Module) -> dict[str, int]:
    """What may be masked without touching an output: layers, and the parameters of the case."""
    sizes = {name: size for name, size in maskable(model).items() if not is_head(name)}
    return sizes | {name: len(inner(model).get_parameter(name)) for name in case.parameters}


def draw(sizes: dict[str, int], share: float = 0.4) -> Masks:
    """Random masks that remove the share of everything; a layer loses one output, and keeps one."""
    masks = {name: torch.rand(size) >= share for name, size in sizes.items()}
    for keep in masks.values():
        one, other = torch.randperm(max(len(keep), 2))[:2].clamp(max=len(keep) - 1)
        keep[one] = False
        keep[other] = True
    return masks


def masked_by_hooks(model: nn.Module, masks: Masks, inputs: Example) -> Any:
    """What the model computes when the masked outputs are zero, behind their norm if they have one.

    The model is changed. Gradients are on: PyTorch's fast paths of attention would go around hooks.
    """
    model = inner(model)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for name, keep in masks.items():
        if name in parameters:
            with torch.no_grad():
                parameters[name][~keep] = 0
            continue
        silence_shared_(modules, name, keep)
        for place in (name, f"{name}_norm"):
            if place in modules:
                modules[place].register_forward_hook(_Silence(keep, channel_dim(modules[place])))
    return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, call(model, inputs))


def channel_dim(module: nn.Module) -> int | None:
    """Dimension of a module's channels, counted from behind; None: dimension 1."""
    per_row = isinstance(module, nn.Linear | nn.Embedding | nn.RMSNorm | NarrowNorm)
    last = per_row or type(module) is nn.LayerNorm
    if isinstance(module, CONVOLUTIONS):
        return -1 - len(module.kernel_size)
    return -1 if last else None


class _Silence:
    """A forward hook that multiplies the output's channels with a mask."""

    def __init__(self, keep: Tensor, dim: int | None) -> None:
        self.keep, self.dim = keep, dim

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        dim = 1 if self.dim is None else self.dim % output.dim()
        shape = [-1 if d == dim else 1 for d in range(output.dim())]
        return output * self.keep.view(shape)


def silence_shared_(modules: dict[str, nn.Module], name: str, keep: Tensor) -> None:
    """Zero the masked weights themselves where others read them: hooks would miss that.

    So it is with a weight in two layers, and with the last layer of nn.MultiheadAttention, whose
    forward pass is never called.
    """
    layer: Any = modules[name]
    shared = [m for m in modules.values() if getattr(m, "weight", None) is layer.weight]
    parent = modules[name.rpartition(".")[0]]
    if len(shared) < 2 and not isinstance(parent, nn.MultiheadAttention):
        return
    assert not isinstance(layer, TRANSPOSED)
    with torch.no_grad():
        rows = layer.weight.T if isinstance(layer, nn.Embedding) else layer.weight
        rows[~keep] = 0
        if getattr(layer, "bias", None) is not None:
            layer.bias[~keep] = 0


def difference(expected: Any, found: Any) -> float:
    """Largest difference of all output tensors, relative to the largest value if that is above one.

    The structures, shapes and dtypes must be the same; places that are not finite, too.
    """
    (left, left_spec), (right, right_spec) = tree_flatten(expected), tree_flatten(found)
    assert left_spec == right_spec, f"outputs {right_spec} instead of {left_spec}"
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if not isinstance(a, Tensor):
            assert a == b
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype), (
            f"{b.shape} {b.dtype}, not {a.shape} {a.dtype}"
        )
        scale = a.detach().abs().max().clamp(min=1)
        worst = max(worst, ((a - b).detach().abs().max() / scale).item())
        assert torch.isfinite(a).all() and torch.isfinite(b).all()
    return worst


def size(model: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())

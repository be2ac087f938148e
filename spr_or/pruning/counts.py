"""Sizes of a network and its masked filters: parameters, and operations of a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spr_or.pruning.compaction.inputs import Example
from spr_or.pruning.compaction.trace import attention_in_the_open
from spr_or.pruning.following_norms import CONVOLUTIONS, LAYERS
from spr_or.pruning.masks import Masks, filter_rows, maskable_layer
from spr_or.utils.evaluating import evaluating

aten = torch.ops.aten


def masked_filter_weights(model: nn.Module, masks: Masks) -> int:
    """Weights in zero filters, those that ``masks`` drop: the paper's count, without biases and norms.

    The weights that read a masked filter's channel in the next layer are not counted, though
    they leave with it; `count_parameters` before and after `compact` counts those too. Of masks by
    parameter those of weights and other matrices count, such as a position embedding's.

    >>> layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    >>> keep = torch.tensor([True, False])
    >>> masked_filter_weights(layer, {"0": keep, "1": keep})
    3
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    total = 0
    for name, keep in masks.items():
        if isinstance(modules.get(name), LAYERS):
            width = filter_rows(maskable_layer(model, name)).shape[1]
        else:
            bare = f"{name}.weight" if name in modules else name.partition(":")[0]
            tensor = parameters.get(bare)
            width = tensor.numel() // len(keep) if tensor is not None and tensor.dim() > 1 else 0
        total += int((~keep).sum()) * width
    return total


def count_parameters(model: nn.Module) -> int:
    """Number of parameters.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_shape: Iterable[int]) -> int:
    """Multiply-accumulate operations with weights in one forward pass.

    input_shape: (B, C, …); zeros of that shape run through the model in evaluation mode. Counted are
    convolutions, transposed ones too, and every product with a parameter, whether a layer computes it
    or a function: linear layers, the projections of `nn.MultiheadAttention`, the operators of a
    compact network. Products of two activations, as queries with keys, are not counted (no filter has
    them), nor are bias, norms, activations and pooling.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 10))
    21600
    """
    parameter = next(model.parameters())
    zeros = torch.zeros(*input_shape, device=parameter.device, dtype=parameter.dtype)
    return sum(macs_by_layer(model, zeros).values())


def macs_by_layer(model: nn.Module, example: Example) -> dict[str, int]:
    """The operations of `count_macs` for each weight, over all its uses.

    Names are those of masks: a layer's, or a parameter's that is no layer's "weight".

    >>> macs_by_layer(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), torch.zeros(1, 3))
    {'0': 6, '1': 2}
    """
    counting = _Counting(model)
    with evaluating(model, []), torch.no_grad(), attention_in_the_open(), counting:
        forward(model, example)
    return counting.macs


class _Counting(TorchDispatchMode):
    """Counts products with parameters, and with what is computed from parameters only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}
        self._held: list[
            Any
        ] = []  # memory that is let go would be known under the next tensor's name
        self._names = {
            _memory(parameter): _layer_name(name) for name, parameter in model.named_parameters()
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and note what it multiplied."""
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        names = [self._names.get(_memory(t)) for t in tensors]
        if func in _FACTORS:
            left, right = _FACTORS[func]
            known = self._names.get(_memory(args[right])) or self._names.get(_memory(args[left]))
            if known is not None or func is aten.convolution.default:
                name = known or "(computed kernels)"
                self.macs[name] = self.macs.get(name, 0) + _products(func, args, result)
        if names and None not in names:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and _memory(leaf) not in self._names:
                    self._held.append(leaf)
                    self._names[_memory(leaf)] = str(names[0])
        return result


# Operators that multiply, with the positions of both factors.
_FACTORS: dict[Any, tuple[int, int]] = {
    aten.convolution.default: (0, 1), aten.linear.default: (0, 1), aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1), aten.mv.default: (0, 1), aten.dot.default: (0, 1),
    aten.addmm.default: (1, 2), aten.baddbmm.default: (1, 2), aten.addmv.default: (1, 2),
}  # fmt: skip


def _products(func: Any, args: tuple[Any, ...], result: Tensor) -> int:
    left, right = _FACTORS[func]
    if func is aten.convolution.default:
        positions = args[left] if args[6] else result  # a transposed one spreads each input
        return int(positions.numel() * args[right][0].numel())
    return int(result.numel() * args[left].shape[-1])


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _layer_name(parameter: str) -> str:
    """ "conv" for "conv.weight", and for what its weight is computed from."""
    module, computed, _ = parameter.partition(".parametrizations.")
    if computed:
        return module
    owner, _, last = parameter.rpartition(".")
    return owner if last.startswith("weight") else parameter


class LayerCall(NamedTuple):
    """One call of a convolution or linear layer, with the shapes of its input and output."""

    name: str
    module: Any
    inputs: torch.Size
    outputs: torch.Size


def layer_calls(model: nn.Module, example: Example) -> list[LayerCall]:
    """The calls of convolutions and linear layers in one forward pass, in their order."""
    calls: list[LayerCall] = []
    names: dict[nn.Module, str] = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, (*CONVOLUTIONS, nn.Linear))
    }

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(LayerCall(names[module], module, inputs[0].shape, output.shape))

    hooks = [layer.register_forward_hook(add) for layer in names]
    with evaluating(model, hooks), torch.no_grad():
        forward(model, example)
    return calls


def forward(model: nn.Module, example: Example) -> Any:
    """What the model returns for a tensor, a tuple of positional or a dict of keyword inputs.

    A network from `compact` takes all of them by position.
    """
    if isinstance(model, fx.GraphModule):
        return model(*tree_leaves(example))
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)

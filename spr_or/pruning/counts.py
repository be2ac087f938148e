"""Sizes of a network and its masked filters: parameters, and operations of a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from spr_or.pruning.following_norms import CONVOLUTIONS, LAYERS
from spr_or.pruning.masks import Masks, filter_rows, maskable_layer
from spr_or.utils.evaluating import evaluating

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


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
    """Multiply-accumulate operations of convolutions and linear layers for one forward pass.

    input_shape: (B, C, …); zeros of that shape run through the model in evaluation mode, where
    hooks count the operations. Bias, BatchNorm, activations and pooling are not counted.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 10))
    21600
    """
    parameter = next(model.parameters())
    zeros = torch.zeros(*input_shape, device=parameter.device, dtype=parameter.dtype)
    return sum(macs_by_layer(model, zeros).values())


def macs_by_layer(model: nn.Module, example: Example) -> dict[str, int]:
    """The operations of `count_macs` for each layer, over all its calls.

    >>> macs_by_layer(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), torch.zeros(1, 3))
    {'0': 6, '1': 2}
    """
    macs: dict[str, int] = {}
    for call in layer_calls(model, example):
        macs[call.name] = macs.get(call.name, 0) + (
            call.outputs.numel() * call.module.weight[0].numel()
        )
    return macs


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
    return model(*example) if isinstance(example, tuple) else model(example)

"""Sizes of a network and its masked filters: parameters, and operations of a forward pass."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spr_or.pruning.following_norms import CONVOLUTIONS
from spr_or.pruning.masks import Masks, filter_rows, maskable_layer
from spr_or.utils.evaluating import evaluating


def masked_filter_weights(model: nn.Module, masks: Masks) -> int:
    """Weights in zero filters, those that ``masks`` drop: the paper's count, without biases and norms.

    The weights that read a masked filter's channel in the next layer are not counted, though
    they leave with it; `count_parameters` before and after `compact` counts those too.
    """
    total = 0
    for name, keep in masks.items():
        total += int((~keep).sum()) * filter_rows(maskable_layer(model, name)).shape[1]
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
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, (*CONVOLUTIONS, nn.Linear))
        total += output.numel() * module.weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    parameter = next(model.parameters())
    with evaluating(model, hooks), torch.no_grad():
        model(torch.zeros(*input_shape, device=parameter.device, dtype=parameter.dtype))
    return total

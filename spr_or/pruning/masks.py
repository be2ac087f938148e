"""Masks: which filters are removed, how they are set to zero, and how they stay zero.

A mask is a dict from the name of a convolution or linear layer to a bool vector over its filters
or neurons (dimension 0 of its weight), True = keep. Layers that are not named keep everything.

The channel of a zero filter need not be zero: the BatchNorm behind it adds its shift β. So the
filter's bias and the γ and β of that BatchNorm are removed with it, and its channel is exactly zero.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spr_or.pruning.compaction.graph import CONVOLUTIONS, following_norms
from spr_or.pruning.entity_masks import kept

Masks = Mapping[str, Tensor]


def masks_by_threshold(
    model: nn.Module,
    modules: Iterable[str] | None = None,
    zero_below: float = 1e-4,
    share: float = 0.99,
) -> dict[str, Tensor]:
    """Masks by the paper's rule: a filter goes when more than `share` of it is zero.

    A filter is its weights and its bias, if the layer has one.

    A weight counts as zero when |w| < `zero_below`; with `zero_below=0`, when it is exactly zero
    (what a proximal step leaves). A filter that is zero altogether goes whatever `share` is.
    modules: names of convolutions and linear layers; None means every convolution. Raises
    ValueError for an unknown name or numbers out of range. (arXiv 2206.14056, section 5.)

    >>> layer = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False))
    >>> _ = nn.init.zeros_(layer[0].weight[1])
    >>> masks_by_threshold(layer)
    {'0': tensor([ True, False])}
    """
    if modules is None:
        modules = [name for name, m in model.named_modules() if isinstance(m, CONVOLUTIONS)]
    masks = {}
    for name in modules:
        layer = maskable_layer(model, name)
        rows = layer.weight.detach().flatten(1)
        if layer.bias is not None:
            rows = torch.cat([rows, layer.bias.detach().unsqueeze(1)], dim=1)
        masks[name] = kept(rows, rows.shape[1], zero_below, share)
    return masks


def apply_masks_(model: nn.Module, masks: Masks) -> None:
    """Silence the masked filters in place: their output, after BatchNorm, is exactly zero.

    Filter and bias become zero; so do γ, β and the running mean of the BatchNorm that follows,
    found in the model's torch.fx graph, and its running variance becomes one. Raises ValueError
    for masks that do not fit and CompactionError for a model that cannot be traced.
    """
    norms = _masked_norms(model, masks)
    with torch.no_grad():
        for tensor, dropped in _masked_parameters(model, masks, norms):
            tensor.masked_fill_(dropped, 0)
        for norm, dropped in norms:
            if norm.running_mean is not None:
                norm.running_mean.masked_fill_(dropped, 0)
                norm.running_var.masked_fill_(dropped, 1)


def hold_masks(model: nn.Module, masks: Masks) -> Callable[[], None]:
    """A function that silences the masked filters again; call it after each optimiser step.

    It writes zeros over the masked parameters in place, with no copy between host and device.
    Make it after the model is on its device. Raises as `apply_masks_`.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> hold = hold_masks(model, {"0": torch.tensor([True, False])})
    >>> with torch.no_grad():
    ...     _ = model[0].weight.add_(1.0)
    >>> hold()
    >>> model[0].weight[1].tolist()
    [0.0, 0.0]
    """
    held = _masked_parameters(model, masks, _masked_norms(model, masks))

    @torch.no_grad()
    def hold() -> None:
        for tensor, dropped in held:
            tensor.masked_fill_(dropped, 0)

    return hold


def collapsed_layers(masks: Masks) -> list[str]:
    """Names of the layers that keep nothing.

    >>> collapsed_layers({"a": torch.tensor([True, False]), "b": torch.tensor([False])})
    ['b']
    """
    return [name for name, keep in masks.items() if not keep.any()]


def maskable_layer(model: nn.Module, name: str) -> Any:
    """The convolution or linear layer of that name; ValueError, with the nearest name, if there is none.

    >>> maskable_layer(nn.Sequential(nn.Linear(2, 3)), "0")
    Linear(in_features=2, out_features=3, bias=True)
    """
    maskable = (*CONVOLUTIONS, nn.Linear)
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, maskable):
        names = [n for n, module in model.named_modules() if isinstance(module, maskable)]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name!r} is no convolution or linear layer of the model{hint}")
    return layer


def _dropped(model: nn.Module, name: str, keep: Tensor) -> Tensor:
    weight = maskable_layer(model, name).weight
    if keep.dtype != torch.bool or keep.shape != weight.shape[:1]:
        raise ValueError(
            f"the mask of {name!r} must be a bool vector of length {len(weight)}, "
            f"not {keep.dtype} of shape {tuple(keep.shape)}"
        )
    return ~keep.to(weight.device)


def _masked_norms(model: nn.Module, masks: Masks) -> list[tuple[Any, Tensor]]:
    norms = following_norms(model)
    return [
        (model.get_submodule(norm), _dropped(model, name, keep))
        for name, keep in masks.items()
        for norm in norms.get(name, [])
    ]


def _masked_parameters(
    model: nn.Module, masks: Masks, norms: list[tuple[Any, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Every parameter that holds something of a masked filter, with the rows to be zeroed."""
    pairs = []
    for name, keep in masks.items():
        layer, dropped = maskable_layer(model, name), _dropped(model, name, keep)
        column = dropped.view(-1, *[1] * (layer.weight.dim() - 1))
        pairs += [(layer.weight, column), (layer.bias, dropped)]
    for norm, dropped in norms:
        pairs += [(norm.weight, dropped), (norm.bias, dropped)]
    return [(tensor, rows) for tensor, rows in pairs if tensor is not None]

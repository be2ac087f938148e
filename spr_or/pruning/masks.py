"""Masks: which filters are removed, how they are set to zero, and how they stay zero.

A mask is a dict from a name to a bool vector, True = keep. A name is that of

* a convolution, linear layer or embedding: its output features, with their bias, and the scale and
  shift of the norm that reads them channel by channel;
* a norm: its scales and shifts;
* a parameter, such as "attention.in_proj_weight": its slices along dimension 0, or with a number
  behind a colon, as in "pos_embed:2", along that one.

What is not named is kept whole. The channel of a zero filter need not be zero, for a norm behind it
adds its shift; so that goes with the filter, and the channel is exactly zero (behind a norm over
several channels, too: its other channels see a zero there).
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spr_or.pruning.compaction.prepare import bake_weights_, computed_weights
from spr_or.pruning.entity_masks import kept
from spr_or.pruning.following_norms import CONVOLUTIONS, LAYERS, NORMS, TRANSPOSED, following_norms
from spr_or.pruning.unwrap import unwrap

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
    model = unwrap(model)
    if modules is None:
        kinds = (*CONVOLUTIONS, *TRANSPOSED)
        modules = [name for name, m in model.named_modules() if isinstance(m, kinds)]
    masks = {}
    for name in modules:
        layer = maskable_layer(model, name)
        rows = filter_rows(layer)
        if layer.bias is not None:
            rows = torch.cat([rows, layer.bias.detach().unsqueeze(1)], dim=1)
        masks[name] = kept(rows, rows.shape[1], zero_below, share)
    return masks


def apply_masks_(model: nn.Module, masks: Masks, example: Any = None) -> None:
    """Silence the masked filters in place: their output, after the norm, is exactly zero.

    Filter and bias become zero; so do scale, shift and running mean of the norm that follows
    (`following_norms`), and its running variance becomes one. A masked layer whose weight a hook or a
    parametrisation computes anew at each call (`torch.nn.utils.prune`, weight norm, spectral norm) gets
    it as a plain parameter, for a mask would not last. example: inputs, for a network whose norms only
    a run can find. Raises ValueError for masks that do not fit.
    """
    model = unwrap(model)
    bake_weights_(model, masks)
    silence_(model, masks, _norms_behind(model, masks, example))


def silence_(model: nn.Module, masks: Masks, following: Mapping[str, list[str]]) -> None:
    """`apply_masks_` for a network whose norms are known, ``following`` from `following_norms`.

    All its weights are plain parameters.
    """
    norms = _masked_norms(model, masks, following)
    with torch.no_grad():
        for tensor, dropped in _masked_parameters(model, masks, norms):
            tensor.masked_fill_(dropped, 0)
        for norm, dropped in norms:
            if getattr(norm, "running_mean", None) is not None:
                norm.running_mean.masked_fill_(dropped, 0)
                norm.running_var.masked_fill_(dropped, 1)


def masks_layers(model: nn.Module, masks: Masks) -> bool:
    """Whether a mask is one of a layer: only then must the norms behind it be known."""
    return any(isinstance(_module(model, name), LAYERS) for name in masks)


def hold_masks(model: nn.Module, masks: Masks, example: Any = None) -> Callable[[], None]:
    """A function that silences the masked filters again; call it after each optimiser step.

    It writes zeros over the masked parameters in place, with no copy between host and device.
    Make it after the model is on its device. Arguments and errors as for `apply_masks_`; a layer whose
    weight is computed at each call is refused, for there is no parameter to hold.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> hold = hold_masks(model, {"0": torch.tensor([True, False])})
    >>> with torch.no_grad():
    ...     _ = model[0].weight.add_(1.0)
    >>> hold()
    >>> model[0].weight[1].tolist()
    [0.0, 0.0]
    """
    model = unwrap(model)
    norms = _masked_norms(model, masks, _norms_behind(model, masks, example))
    held = _masked_parameters(model, masks, norms)

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


def filter_rows(layer: Any) -> Tensor:
    """The weights of each filter or neuron as a row, (N, k); without the bias.

    >>> filter_rows(nn.ConvTranspose2d(2, 3, 4)).shape
    torch.Size([3, 32])
    """
    weight = layer.weight.detach()
    if not isinstance(layer, TRANSPOSED):
        return weight.flatten(1)
    # (in, out / groups, …): the filters of each group of inputs stand beside each other.
    parts = weight.chunk(layer.groups)
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts])


def maskable_layer(model: nn.Module, name: str) -> Any:
    """The convolution or linear layer of that name; ValueError, with the nearest name, if there is none.

    >>> maskable_layer(nn.Sequential(nn.Linear(2, 3)), "0")
    Linear(in_features=2, out_features=3, bias=True)
    """
    layer = _module(unwrap(model), name)
    if not isinstance(layer, LAYERS):
        raise _no_such(model, name, LAYERS, "no convolution or linear layer of the model")
    return layer


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _no_such(model: nn.Module, name: str, kinds: Any, what: str) -> ValueError:
    names = [n for n, module in model.named_modules() if isinstance(module, kinds)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{name!r} is {what}{hint}")


def _dropped(name: str, keep: Tensor, count: int, device: torch.device) -> Tensor:
    if keep.dtype != torch.bool or keep.shape != (count,):
        raise ValueError(
            f"the mask of {name!r} must be a bool vector of length {count}, "
            f"not {keep.dtype} of shape {tuple(keep.shape)}"
        )
    return ~keep.to(device)


def _norms_behind(model: nn.Module, masks: Masks, example: Any) -> Mapping[str, list[str]]:
    return following_norms(model, example) if masks_layers(model, masks) else {}


def _masked_norms(
    model: nn.Module, masks: Masks, following: Mapping[str, list[str]]
) -> list[tuple[Any, Tensor]]:
    """Norms with those of their channels that go: named themselves, or behind a layer that is."""
    found: list[tuple[Any, Tensor]] = []
    for name, keep in masks.items():
        module = _module(model, name)
        behind = following.get(name, []) if isinstance(module, LAYERS) else []
        own = [name] if isinstance(module, NORMS) else []
        for norm in (model.get_submodule(n) for n in (*own, *behind)):
            if (
                getattr(norm, "weight", None) is None
                and getattr(norm, "running_mean", None) is None
            ):
                continue
            tensor: Any = norm.weight if norm.weight is not None else norm.running_mean
            found.append((norm, _dropped(name, keep, len(tensor), tensor.device)))
    return found


def _masked_parameters(
    model: nn.Module, masks: Masks, norms: list[tuple[Any, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Every parameter that holds something of a masked filter, with what is to be zeroed."""
    computed = set(computed_weights(model))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    pairs: list[tuple[Any, Tensor]] = []
    for name, keep in masks.items():
        module = _module(model, name)
        if name in computed:
            raise ValueError(
                f"the weight of {name!r} is computed anew at each call (torch.nn.utils.prune, "
                "weight_norm, spectral_norm or a parametrisation): a mask would not last. Make it a "
                "plain parameter first, before the optimiser: "
                "spr_or.pruning.compaction.prepare.bake_weights_(model)"
            )
        if isinstance(module, LAYERS):
            pairs += _of_layer(name, module, keep)
        elif isinstance(module, nn.Embedding):
            dropped = _dropped(name, keep, module.embedding_dim, module.weight.device)
            pairs.append((module.weight, dropped.unsqueeze(0)))
        elif (place := _slices_of(parameters, name)) is not None:
            tensor, dim = place
            dropped = _dropped(name, keep, tensor.shape[dim], tensor.device)
            pairs.append(
                (tensor, dropped.view([-1 if d == dim else 1 for d in range(tensor.dim())]))
            )
        elif not isinstance(module, NORMS):
            kinds = (*LAYERS, nn.Embedding)
            what = "no convolution or linear layer of the model, nor a norm, embedding or parameter"
            raise _no_such(model, name, kinds, what)
    for norm, dropped in norms:
        pairs += [(norm.weight, dropped), (getattr(norm, "bias", None), dropped)]
    return [(tensor, rows) for tensor, rows in pairs if tensor is not None]


def _slices_of(parameters: Mapping[str, Tensor], name: str) -> tuple[Tensor, int] | None:
    """The parameter that "name" or "name:dim" means, and the dimension."""
    bare, _, dim = name.partition(":")
    tensor = parameters.get(bare)
    if tensor is None or not (dim or "0").isdigit() or int(dim or 0) >= tensor.dim():
        return None
    return tensor, int(dim or 0)


def _of_layer(name: str, layer: Any, keep: Tensor) -> list[tuple[Any, Tensor]]:
    transposed = isinstance(layer, TRANSPOSED)
    count = layer.out_channels if transposed else len(layer.weight)
    dropped = _dropped(name, keep, count, layer.weight.device)
    rest = [1] * (layer.weight.dim() - 2)
    if transposed:  # (in, out / groups, …)
        by_group = dropped.view(layer.groups, 1, -1)
        width = len(layer.weight) // layer.groups
        cells = by_group.expand(-1, width, -1).reshape(len(layer.weight), -1, *rest)
    else:
        cells = dropped.view(-1, 1, *rest)
    return [(layer.weight, cells), (layer.bias, dropped)]

"""The layers of a network before and after pruning, one row for each."""

from __future__ import annotations

from typing import Any

from torch import nn

from spr_or.pruning.masks import TRANSPOSED

LayerRow = dict[str, Any]


def layer_label(name: str, module: nn.Module) -> str:
    """The layer's full name; where that ends in a number, as in a Sequential, with its type.

    >>> layer_label("0", nn.Conv2d(1, 8, 3)), layer_label("layer1.0.conv1", nn.Conv2d(8, 8, 3))
    ('0 (Conv2d 1→8)', 'layer1.0.conv1')
    """
    if not name.rpartition(".")[2].isdigit():
        return name
    sides = _sides(module)
    width = "→".join(map(str, sides)) if sides else str(getattr(module, "num_features", ""))
    return f"{name} ({type(module).__name__} {width}".rstrip() + ")"


def layer_rows(dense: nn.Module, smaller: nn.Module) -> list[LayerRow]:
    """Each layer that has parameters itself, in both networks.

    A row holds ``layer`` (name), ``label``, ``kind``, ``filters_before`` and ``filters_after``
    (outputs of a convolution or linear layer, else None), ``params_before``, ``params_after``. The
    parameters of the rows add up to those of the networks: what compaction added (a constant that
    it carries through an addition) has a row with nothing before, and a parameter that two layers
    share counts where it stands first.

    >>> rows = layer_rows(nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 1)))
    >>> rows[0]["label"], rows[0]["filters_after"], rows[0]["params_after"]
    ('0 (Linear 2→3)', 1, 3)
    """
    first = first_names(dense)
    before, after = _own_parameters(dense, first), _own_parameters(smaller, first)
    old, new = dict(dense.named_modules()), dict(smaller.named_modules())
    return [
        {
            "layer": name,
            "label": layer_label(name, old[name]) if name in old else name,
            "kind": _kind(old.get(name, new.get(name))),
            "filters_before": _filters(old.get(name)),
            "filters_after": _filters(new.get(name))
            or _filters_elsewhere(name, old, smaller, first),
            "params_before": before.get(name, 0),
            "params_after": after.get(name, 0),
        }
        for name in {**before, **after}
    ]


def first_names(model: nn.Module) -> dict[str, str]:
    """Each name of a parameter to the first one that the same parameter has.

    Compaction keeps the last name of a parameter that layers share.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    >>> net[1].weight = net[0].weight
    >>> first_names(net)
    {'0.weight': '0.weight', '0.bias': '0.bias', '1.weight': '0.weight'}
    """
    found: dict[int, str] = {}
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[name] = found.setdefault(id(parameter), name)
    return names


def _own_parameters(model: nn.Module, first: dict[str, str]) -> dict[str, int]:
    """Module name to its number of parameters, where there are any; each counts under its first name."""
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counts: dict[str, int] = {}
    for name, count in numbers.items():
        home = first.get(name, name)
        module = (name if home in numbers else home).rpartition(".")[0]
        counts[module] = counts.get(module, 0) + count
    return counts


def _filters_elsewhere(
    name: str, old: dict[str, nn.Module], smaller: nn.Module, first: dict[str, str]
) -> int | None:
    """Outputs left of a layer whose weight compaction keeps under another layer's name; 0 for one that went.

    None for what has no outputs of its own, as a norm.
    """
    layer = old.get(name)
    if _filters(layer) is None:
        return None
    shared = first.get(f"{name}.weight")
    for other, parameter in smaller.named_parameters():
        if shared is not None and first.get(other) == shared:
            if isinstance(layer, TRANSPOSED):
                return parameter.shape[1] * layer.groups
            return parameter.shape[0]
    return 0


def _kind(module: nn.Module | None) -> str:
    kernel = getattr(module, "kernel_size", None)
    size = f" {'×'.join(map(str, kernel))}" if isinstance(kernel, tuple) else ""
    return f"{type(module).__name__}{size}"


def _sides(module: nn.Module | None) -> tuple[int, int] | None:
    """(inputs, outputs) of a convolution or linear layer."""
    for kind in ("channels", "features"):
        sides = getattr(module, f"in_{kind}", None), getattr(module, f"out_{kind}", None)
        if isinstance(sides[0], int) and isinstance(sides[1], int):
            return sides[0], sides[1]
    return None


def _filters(module: nn.Module | None) -> int | None:
    sides = _sides(module)
    return sides[1] if sides else None

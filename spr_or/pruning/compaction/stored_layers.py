"""Layers as JSON, and back: their kind and settings; tensors stand beside them in the file."""

import math
from typing import Any

import torch
from torch import fx, nn

from spr_or.pruning.compaction.layers import DropPath, Fill, IndexedAdd, NarrowNorm

_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    **dict.fromkeys(
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    ),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding",
         "groups", "dilation"),
    ),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
         nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    ),
    nn.LayerNorm: ("normalized_shape", "eps"),
    nn.RMSNorm: ("normalized_shape", "eps"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps"),
    nn.Embedding: ("num_embeddings", "embedding_dim", "padding_idx"),
    nn.Dropout: ("p",),
    nn.Dropout2d: ("p",),
    DropPath: ("p",),
}  # fmt: skip
KINDS = {kind.__name__: kind for kind in (*_SETTINGS, Fill, IndexedAdd, NarrowNorm)}


def stored_layers(model: fx.GraphModule) -> dict[str, dict[str, Any]]:
    """Kind and settings of each layer that the graph calls; ValueError for one that is not torch's."""
    called = {str(n.target) for n in model.graph.nodes if n.op == "call_module"}
    return {
        name: {"kind": type(layer).__name__, "settings": _settings(layer)}
        for name, layer in model.named_modules()
        if name in called
    }


def _settings(layer: Any) -> dict[str, Any]:
    if isinstance(layer, Fill):
        return {"dim": layer.dim, "places": layer.places.tolist(), "size": layer.size}
    if isinstance(layer, IndexedAdd):
        sides = sum(key.startswith("pick") for key in layer._buffers)
        index = [
            [
                None if (b := getattr(layer, f"{key}{s}")) is None else b.tolist()
                for s in range(sides)
            ]
            for key in ("pick", "place")
        ]
        return {"dim": layer.dim, "size": layer.size, "picks": index[0], "places": index[1],
                "shift": layer.shift is not None}  # fmt: skip
    if isinstance(layer, NarrowNorm):
        keys = ("kept", "width", "gone", "total", "squares", "eps", "rms")
        found = {key: getattr(layer, key) for key in keys}
        return found | {"weight": layer.weight is not None, "bias": layer.bias is not None}
    if type(layer) not in _SETTINGS:
        raise ValueError(f"a {type(layer).__name__} has no place in a file")
    found = {key: _plain(getattr(layer, key)) for key in _SETTINGS[type(layer)]}
    for key in ("weight", "bias"):
        if key in layer._parameters:
            found[key] = layer._parameters[key] is not None
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def layer_of(kind: str, settings: dict[str, Any]) -> nn.Module:
    """An empty layer, its tensors on the meta device; ValueError for settings that it cannot have."""
    if kind not in KINDS:
        raise ValueError(f"a {kind!r} is no layer of torch")
    wanted = _keys(kind)
    if not wanted - {"weight", "bias"} <= set(settings) <= wanted:
        raise ValueError(f"a {kind} has the settings {sorted(wanted)}, not {sorted(settings)}")
    for key, value in settings.items():
        _check_setting(kind, key, value)
    given = dict(settings)
    if kind == "Fill":
        _check_places(given["places"], given["size"], "places")
        return Fill(given["dim"], given["places"], torch.empty(given["size"], device="meta"))
    if kind == "IndexedAdd":
        return _indexed_add(given)
    has = {key: given.pop(key, None) for key in ("weight", "bias")}
    if kind == "NarrowNorm":
        return _narrow_norm(given, has)
    made: Any = KINDS[kind](**given, **({} if kind in _PLAIN else {"device": "meta"}))
    for key, there in has.items():
        if there is False:
            made.register_parameter(key, None)
    return made


def inputs_of(kind: str) -> int | None:
    """How many inputs a layer takes; None = any number."""
    return None if kind == "IndexedAdd" else 1


def _indexed_add(given: dict[str, Any]) -> IndexedAdd:
    picks, places = given["picks"], given["places"]
    if len(picks) != len(places):
        raise ValueError("an IndexedAdd has as many picks as places")
    for pick, place in zip(picks, places, strict=True):
        if pick is not None:
            _check_places(pick, None, "picks")
        if place is not None:
            _check_places(place, given["size"], "places")
    shift = torch.empty(given["size"], device="meta") if given.pop("shift") else None
    return IndexedAdd(**given, shift=shift)


def _narrow_norm(given: dict[str, Any], has: dict[str, Any]) -> NarrowNorm:
    if given["kept"] + given["gone"] != given["width"] or given["width"] < 1:
        raise ValueError("a NarrowNorm's kept and gone features are those of its width")
    norm = NarrowNorm(given["kept"], given["width"], torch.zeros(0), given["eps"], given["rms"])
    norm.gone, norm.total, norm.squares = given["gone"], given["total"], given["squares"]
    for key, there in has.items():
        if there:
            setattr(norm, key, nn.Parameter(torch.empty(given["kept"], device="meta")))
    return norm


def _check_places(places: Any, size: int | None, what: str) -> None:
    rising = all(type(p) is int for p in places) and all(
        a < b for a, b in zip(places, places[1:], strict=False)
    )
    if not rising or (places and (places[0] < 0 or (size is not None and places[-1] >= size))):
        raise ValueError(
            f"{what} are no rising positions" + ("" if size is None else f" of {size}")
        )


_PLAIN = ("Dropout", "Dropout2d", "DropPath")
_FLAGS = ("weight", "bias", "affine", "track_running_stats", "rms", "shift")
_REALS = ("eps", "total", "squares", "momentum", "p")
_OWN_SETTINGS = {
    "Fill": {"dim", "places", "size"},
    "IndexedAdd": {"dim", "size", "picks", "places", "shift"},
    "NarrowNorm": {"kept", "width", "gone", "total", "squares", "eps", "rms", "weight", "bias"},
}


def _keys(kind: str) -> set[str]:
    """The settings that a layer of that kind has in a file."""
    if kind in _OWN_SETTINGS:
        return _OWN_SETTINGS[kind]
    return {*_SETTINGS[KINDS[kind]], *(() if kind in _PLAIN else ("weight", "bias"))}


def _check_setting(kind: str, key: str, value: Any) -> None:
    """ValueError where a setting is of another type than it can be."""
    if key in _FLAGS:
        good = type(value) is bool
    elif key in _REALS:
        absent = value is None and key in ("momentum", "eps")
        good = absent or (type(value) in (int, float) and math.isfinite(value))
        good = good and (key != "p" or 0 <= value <= 1)
    elif key in ("picks", "places"):
        good = type(value) is list and all(type(v) in (int, list, type(None)) for v in value)
    elif key == "padding":
        good = value in ("same", "valid") or _is_counts(value)
    elif key == "padding_idx":
        good = value is None or type(value) is int
    else:
        good = _is_counts(value)
    if not good:
        raise ValueError(f"{key} of a {kind} cannot be {value!r:.100}")


def _is_counts(value: Any) -> bool:
    values = value if type(value) is list else [value]
    return all(type(v) is int and 0 <= v < 2**62 for v in values)

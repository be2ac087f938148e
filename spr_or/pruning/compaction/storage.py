"""Compact networks in files: one safetensors file, with the graph as JSON inside.

The file is data: operators by their ATen names, torch's own layers by their settings, tensors. Reading
it imports nothing that it names and runs nothing but those operators.
"""

import json
import math
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from spr_or.pruning.compaction import format_1
from spr_or.pruning.compaction.layers import DropPath, Fill, IndexedAdd, NarrowNorm
from spr_or.utils.files import write_aside
from spr_or.utils.import_path import load_object
from spr_or.utils.untrusted import check_regular, parse_json

FORMAT = "spr-or compact 2"

_CONSTANT = "constant:"  # before the names of tensors that are no part of the state dict


class _Node(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    name: str
    op: Literal["placeholder", "get_attr", "call_module", "call_function", "output"]
    target: str
    args: Any
    kwargs: Any


class _Layer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    kind: str
    settings: dict[str, Any]


class _Description(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    format: str
    original: str
    kwargs: dict[str, Any]
    kept: dict[str, list[list[int] | None]]
    nodes: list[_Node]
    layers: dict[str, _Layer]
    frozen: list[str]


def save_compact(
    path: str | Path,
    compact_model: nn.Module,
    original: str,
    kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write a compacted network to one safetensors file, with its graph as JSON inside.

    compact_model: what `compact` returned, perhaps trained since. original: import path
    "package.module:function" that, called with `kwargs` (JSON values), builds the network that was
    compacted first; it is built once, to make sure that the kept indices are those of its tensors.
    The file appears whole or not at all. Raises ValueError if any of that does not fit.
    """
    kept = getattr(compact_model, "meta", {}).get("kept")
    if kept is None or not isinstance(compact_model, fx.GraphModule):
        raise ValueError(f"a {type(compact_model).__name__} does not come from compact()")
    _check_original(original, dict(kwargs or {}), kept, compact_model)
    description = {
        "format": FORMAT, "original": original, "kwargs": dict(kwargs or {}), "kept": kept,
        "nodes": [_stored_node(node) for node in compact_model.graph.nodes],
        "layers": _stored_layers(compact_model),
        "frozen": [n for n, p in compact_model.named_parameters() if not p.requires_grad],
    }  # fmt: skip
    tensors = {n: t.detach().cpu().contiguous() for n, t in compact_model.state_dict().items()}
    tensors |= {_CONSTANT + n: t.detach().cpu().contiguous() for n, t in _constants(compact_model)}
    tensors = _apart(tensors)
    where = f"the network given to save_compact for {path}"
    _filled(_rebuilt(description, tensors, where), tensors, description, where)
    metadata = {"spr_or": json.dumps(description, allow_nan=False)}
    write_aside(path, lambda aside: save_file(tensors, aside, metadata))


def load_compact(path: str | Path, original: str | None = None) -> nn.Module:
    """Rebuild a saved network, in evaluation mode on the CPU, with the saved dtypes.

    Nothing that the file names is imported. With `original` given, a file that was made from another
    network is refused. Raises ValueError for a damaged or foreign file. (A file of the first format
    names a function that is imported and called: load only those that you trust.)
    """
    description = read_description(path)
    if original is not None and original != description["original"]:
        raise ValueError(f"{path} was made from {description['original']!r}, not {original!r}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    if description["format"] == format_1.FORMAT:
        return format_1.load(description, tensors, str(path))
    model = _filled(_rebuilt(description, tensors, str(path)), tensors, description, str(path))
    return model.eval()


def read_description(path: str | Path) -> dict[str, Any]:
    """The JSON description in a saved file: format, original, kwargs, kept, nodes, layers, frozen.

    Raises ``ValueError`` naming the file where it is damaged, foreign, or states what cannot be.
    """
    path = Path(path)
    if path.exists():
        check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("spr_or", "{}")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    description = parse_json(text, str(path))
    if isinstance(description, dict) and description.get("format") == format_1.FORMAT:
        return format_1.checked(description, str(path))
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path} holds no compacted network of format {FORMAT!r}")
    try:
        checked = _Description.model_validate(description).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path} is damaged: {place}: {first['msg']}") from None
    for name, dims in checked["kept"].items():
        for kept in dims:
            rising = kept is None or all(a < b for a, b in zip(kept, kept[1:], strict=False))
            if not rising or (kept and kept[0] < 0):
                raise ValueError(f"{path} is damaged: the kept indices of {name} are not rising")
    return checked


def _check_original(
    original: str, kwargs: dict[str, Any], kept: Mapping[str, Any], small: nn.Module
) -> None:
    """The original has the tensors that the indices refer to."""
    try:
        build = load_object(original)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{original!r} cannot be imported ({error}); give "package.module:function"'
        ) from error
    from spr_or.pruning.compaction.prepare import prepared

    with torch.random.fork_rng(devices=[]):  # building draws weights; the caller's state stays
        model = prepared(build(**kwargs))
    own = {**dict(model.named_parameters(remove_duplicate=False)),
           **dict(model.named_buffers(remove_duplicate=False))}  # fmt: skip
    left = {**dict(small.named_parameters(remove_duplicate=False)),
            **dict(small.named_buffers(remove_duplicate=False))}  # fmt: skip
    for name, dims in kept.items():
        if name not in own:
            raise ValueError(
                f"{original} with {kwargs} does not fit: it has no {name!r}, so it is not the network "
                "that was compacted"
            )
        there = tuple(own[name].shape)
        sizes = tuple(left[name].shape) if name in left else there
        fits = len(there) == len(dims) and all(
            (n == k if index is None else bool(not index or index[-1] < n) and len(index) == k)
            for n, k, index in zip(there, sizes, dims, strict=False)
        )
        if not fits and not name.endswith(".weight"):
            raise ValueError(f"{original} with {kwargs} does not fit: {name!r} has shape {there}")
        if not fits and not _grouped(there, sizes, dims):
            raise ValueError(f"{original} with {kwargs} does not fit: {name!r} has shape {there}")


def _grouped(there: tuple[int, ...], left: tuple[int, ...], dims: list[list[int] | None]) -> bool:
    """A convolution in groups: its columns are counted over the whole input."""
    index = dims[1] if len(dims) > 1 else None
    rows = dims[0] if dims else None
    return index is not None and len(there) > 2 and there[1] < max(index, default=0) + 1 and (
        rows is None or (len(rows) == left[0] and (not rows or rows[-1] < there[0]))
    )  # fmt: skip


# Tensors


def _constants(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that are no part of the state dict, by name."""
    saved = set(model.state_dict())
    return [(n, b) for n, b in model.named_buffers(remove_duplicate=False) if n not in saved]


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen and tensor.numel() else tensor
        seen.add(place)
    return apart


# The graph

_FUNCTIONS: dict[str, Any] = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "getitem",
                 "eq", "ne", "lt", "le", "gt", "ge")
}  # fmt: skip
_FUNCTIONS |= {f"math.{name}": getattr(math, name) for name in ("floor", "ceil", "trunc")}
_FUNCTIONS |= {
    f"torch.{name}": getattr(torch, name)
    for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_ite")
}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_WRAPPED: dict[str, Any] = {
    "dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format,
}  # fmt: skip


def _stored_node(node: fx.Node) -> dict[str, Any]:
    if node.op == "call_function":
        target = _NAMES.get(node.target)
        if target is None:
            target = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else ""
        if not target or (target not in _FUNCTIONS and not target.startswith("aten.")):
            raise ValueError(
                f"the operator {node.target} of node {node.name!r} is none of torch's own and has no "
                "place in a file; export the network instead"
            )
    else:
        target = str(node.target)
    return {
        "name": node.name, "op": node.op, "target": target,
        "args": _stored(node.args), "kwargs": _stored(node.kwargs),
    }  # fmt: skip


def _stored(value: Any) -> Any:
    """An argument as JSON."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [_stored(item) for item in value]}
    if isinstance(value, list):
        return [_stored(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {str(key): _stored(item) for key, item in value.items()}}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for name, kind in _WRAPPED.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise ValueError(f"an argument of type {type(value).__name__} has no place in a file")


def _restored(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_restored(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"an argument {value!r} cannot be read")
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(_restored(item, nodes) for item in content)
    if kind == "dict":
        return {key: _restored(item, nodes) for key, item in content.items()}
    if kind == "device":
        return torch.device("cpu")
    if kind in _WRAPPED:
        found = getattr(torch, str(content), None)
        if isinstance(found, _WRAPPED[kind]):
            return found
    raise ValueError(f"an argument {value!r} cannot be read")


def _operator(name: str) -> Any:
    """A function of the short list, or an ATen operator that changes nothing but its result."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "aten":
        try:
            found = getattr(getattr(torch.ops.aten, parts[1]), parts[2])
        except AttributeError:
            found = None
        if isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable:
            return found
    raise ValueError(f"the operator {name!r} is not known to torch {torch.__version__}")


# The layers

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
_KINDS = {kind.__name__: kind for kind in (*_SETTINGS, Fill, IndexedAdd, NarrowNorm)}


def _stored_layers(model: fx.GraphModule) -> dict[str, dict[str, Any]]:
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


def _layer(kind: str, settings: dict[str, Any]) -> nn.Module:
    """An empty layer of that kind, its tensors on the meta device."""
    given = dict(settings)
    if kind == "Fill":
        return Fill(given["dim"], given["places"], torch.zeros(int(given["size"])))
    if kind == "IndexedAdd":
        shift = torch.zeros(int(given["size"])) if given.pop("shift") else None
        return IndexedAdd(**given, shift=shift)
    has = {key: given.pop(key, None) for key in ("weight", "bias")}
    if kind == "NarrowNorm":
        empty = torch.zeros(0)
        norm: Any = NarrowNorm(given["kept"], given["width"], empty, given["eps"], given["rms"])
        norm.gone, norm.total, norm.squares = given["gone"], given["total"], given["squares"]
        for key, there in has.items():
            if there:
                setattr(norm, key, nn.Parameter(torch.empty(int(given["kept"]), device="meta")))
        return norm
    made: Any = _KINDS[kind](**given, **({"device": "meta"} if kind not in _PLAIN else {}))
    for key, there in has.items():
        if there is False:
            made.register_parameter(key, None)
    return made


_PLAIN = ("Dropout", "Dropout2d", "DropPath")


def _rebuilt(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> fx.GraphModule:
    """The network of a description, with tensors that mean nothing yet."""
    from spr_or.pruning.compaction.rewrite import put, put_tensor

    root, graph = nn.Module(), fx.Graph()
    nodes: dict[str, fx.Node] = {}
    try:
        for name, layer in description["layers"].items():
            if layer["kind"] not in _KINDS:
                raise ValueError(f"{name} is a {layer['kind']!r}, which is no layer of torch")
            put(root, name, _layer(layer["kind"], layer["settings"]))
        held = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        for name, tensor in tensors.items():
            bare = name.removeprefix(_CONSTANT)
            if bare in held:
                continue
            owner = dict(root.named_modules()).get(bare.rpartition(".")[0])
            if isinstance(owner, IndexedAdd | Fill):
                continue
            empty = torch.empty_like(tensor, device="meta")
            trained = name == bare and tensor.is_floating_point()
            put_tensor(root, bare, nn.Parameter(empty) if trained else empty, name == bare)
        known = {str(n["target"]) for n in description["nodes"] if n["op"] == "get_attr"}
        missing = known - {*dict(root.named_parameters()), *dict(root.named_buffers())}
        if missing:
            raise ValueError(f"it has no tensor {min(missing)!r}")
        for node in description["nodes"]:
            args, kwargs = (_restored(node[key], nodes) for key in ("args", "kwargs"))
            target = _operator(node["target"]) if node["op"] == "call_function" else node["target"]
            if node["op"] == "call_module" and target not in description["layers"]:
                raise ValueError(f"node {node['name']} calls {target!r}, which is not there")
            made = graph.create_node(node["op"], target, args, kwargs, name=node["name"])
            nodes[node["name"]] = made
        graph.lint()
        model = fx.GraphModule(root, graph, class_name="CompactNetwork")
    except (
        ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError,
        SyntaxError,
    ) as error:  # fmt: skip
        raise ValueError(f"{where} does not describe a network: {error}") from error
    model.meta["kept"] = dict(description["kept"])
    return model


def _filled(
    model: fx.GraphModule, tensors: Mapping[str, Tensor], description: Mapping[str, Any], where: str
) -> fx.GraphModule:
    """Give the network its tensors."""
    state = {n: t for n, t in tensors.items() if not n.startswith(_CONSTANT)}
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{where} does not fit the network it describes: {error}") from error
    buffers = dict(model.named_buffers(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, tensor in tensors.items():
        if not name.startswith(_CONSTANT):
            continue
        bare = name.removeprefix(_CONSTANT)
        if bare not in buffers or buffers[bare] is None or buffers[bare].shape != tensor.shape:
            raise ValueError(f"{where} does not fit the network it describes: {bare}")
        path, _, key = bare.rpartition(".")
        modules[path]._buffers[key] = tensor
    stale = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if stale:
        raise ValueError(f"{where} does not fit the network it describes: it lacks {stale[0]}")
    frozen = set(description["frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen and parameter.is_floating_point())
    return model

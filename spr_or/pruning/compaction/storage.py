"""Compact networks in files: one safetensors file, with the graph as JSON inside.

The file is data: operators by their ATen names, torch's own layers by their settings, tensors. Reading
it imports nothing that it names and runs nothing but those operators.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from spr_or.pruning.compaction import format_1
from spr_or.pruning.compaction.layers import Fill, IndexedAdd
from spr_or.pruning.compaction.stored_graph import check_path, rebuilt_graph, stored_node
from spr_or.pruning.compaction.stored_layers import inputs_of, layer_of, stored_layers
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
    buffers: list[str]


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
        "nodes": [stored_node(node) for node in compact_model.graph.nodes],
        "layers": stored_layers(compact_model),
        "frozen": [n for n, p in compact_model.named_parameters() if not p.requires_grad],
        "buffers": _read_buffers(compact_model),
    }  # fmt: skip
    tensors = {n: t.detach().cpu().contiguous() for n, t in compact_model.state_dict().items()}
    tensors |= {_CONSTANT + n: t.detach().cpu().contiguous() for n, t in _constants(compact_model)}
    tensors = apart(tensors)
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
    """The JSON description in a saved file: format, original, kwargs, kept, nodes, layers,
    frozen (parameters that do not learn) and buffers (tensors that nodes read and that never do).

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
        try:
            built = build(**kwargs)
        except Exception as error:  # the user's function raises what it likes
            raise ValueError(f"{original} with {kwargs} cannot be called: {error}") from error
    if not isinstance(built, nn.Module):
        raise ValueError(f"{original} gives a {type(built).__name__}, not a torch.nn.Module")
    model = prepared(built)
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
    return [
        (name, buffer)
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if name not in saved and not _is_setting(model.get_submodule(name.rpartition(".")[0]), name)
    ]


def _is_setting(owner: nn.Module, name: str) -> bool:
    """Whether a buffer stands among its layer's settings in the file."""
    return isinstance(owner, IndexedAdd) or (isinstance(owner, Fill) and name.endswith("places"))


def _read_buffers(model: fx.GraphModule) -> list[str]:
    """Tensors of the state dict that nodes read and that are no parameters."""
    read = {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return sorted(read & set(model.state_dict()) - set(parameters))


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen and tensor.numel() else tensor
        seen.add(place)
    return apart


def _rebuilt(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> fx.GraphModule:
    """The network of a description, with tensors that mean nothing yet."""
    try:
        root = _layers_and_tensors(description, tensors)
        named = {**dict(root.named_parameters()), **dict(root.named_buffers())}
        counts = {n: inputs_of(layer["kind"]) for n, layer in description["layers"].items()}
        graph = rebuilt_graph(description["nodes"], counts, named)
        model = fx.GraphModule(root, graph, class_name="CompactNetwork")
        _check_kept(description["kept"], model)
    except (
        ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ArithmeticError,
        SyntaxError, MemoryError, AssertionError,
    ) as error:  # fmt: skip
        raise ValueError(f"{where} does not describe a network: {error}") from error
    model.meta["kept"] = dict(description["kept"])
    return model


def _layers_and_tensors(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Empty layers and the tensors that nodes read, under their names, on the meta device."""
    from spr_or.pruning.compaction.rewrite import put, put_tensor

    root = nn.Module()
    called = {n["target"] for n in description["nodes"] if n["op"] == "call_module"}
    for name, layer in description["layers"].items():
        check_path(name)
        if name not in called:
            raise ValueError(f"nothing calls the layer {name!r}")
        put(root, name, layer_of(layer["kind"], layer["settings"]))
    held = {**dict(root.named_parameters()), **dict(root.named_buffers())}
    read = {n["target"] for n in description["nodes"] if n["op"] == "get_attr"}
    unread = sorted(set(description["buffers"]) - read)
    if unread:
        raise ValueError(f"buffers: nothing reads {unread[0]!r}")
    for name, tensor in tensors.items():
        bare = name.removeprefix(_CONSTANT)
        if bare in held:
            continue
        check_path(bare)
        if bare not in read:
            raise ValueError(f"nothing reads the tensor {bare!r}")
        empty = torch.empty_like(tensor, device="meta")
        learns = name == bare and bare not in description["buffers"]
        put_tensor(root, bare, nn.Parameter(empty, False) if learns else empty, name == bare)
    return root


def _check_kept(kept: Mapping[str, Any], model: nn.Module) -> None:
    """Indices are as many as there are positions left in the tensor that they are about."""
    named = {**dict(model.named_parameters(remove_duplicate=False)),
             **dict(model.named_buffers(remove_duplicate=False))}  # fmt: skip
    for name, dims in kept.items():
        if name not in named:
            raise ValueError(f"kept: there is no tensor {name!r}")
        shape = tuple(named[name].shape)
        plain = len(shape) == len(dims) and all(
            index is None or len(index) == n for index, n in zip(dims, shape, strict=True)
        )
        if not plain and not _in_groups(dims, shape):
            raise ValueError(f"kept: {name!r} has shape {shape}")


def _in_groups(dims: list[list[int] | None], shape: tuple[int, ...]) -> bool:
    """A convolution in groups: its columns are counted over the whole input."""
    rows, columns = (*dims, None, None)[:2]
    return (
        len(dims) == len(shape) > 2
        and (rows is None or len(rows) == shape[0])
        and columns is not None
        and len(columns) > shape[1]
        and not any(dims[2:])
    )


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
    unknown = sorted(frozen - set(dict(model.named_parameters())))
    if unknown:
        raise ValueError(
            f"{where} does not describe a network: frozen: no parameter {unknown[0]!r}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen and parameter.is_floating_point())
    return model

"""Nodes of a graph as JSON, and back.

torch.fx makes Python source of a graph and runs it, names and all. So every name out of a file is held
against what a name may be, every operator against a list, and every call against the operator's
arguments.
"""

import keyword
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from spr_or.pruning.compaction.rules import has_rule

_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


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
_ARITY = {"neg": (1, 1), **dict.fromkeys(("math.floor", "math.ceil", "math.trunc"), (1, 1)),
          **dict.fromkeys(("torch.sym_int", "torch.sym_float", "torch.sym_not"), (1, 1)),
          "torch.sym_ite": (3, 3)}  # fmt: skip
_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_WRAPPED: dict[str, Any] = {
    "dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format,
}  # fmt: skip


def stored_node(node: fx.Node) -> dict[str, Any]:
    """A node as JSON; ValueError for an operator that is none of torch's own."""
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


def rebuilt_graph(
    nodes: list[dict[str, Any]], layers: Mapping[str, int | None], tensors: Mapping[str, Tensor]
) -> fx.Graph:
    """The graph of stored nodes; ValueError naming the node that cannot be.

    layers: name to the number of inputs, None = any; tensors: those that ``get_attr`` may name.
    """
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    outputs = [node for node in nodes if node["op"] == "output"]
    if len(outputs) != 1 or nodes[-1] is not outputs[0]:
        raise ValueError("a network has one output, its last node")
    for node in nodes:
        name, op, target = node["name"], node["op"], node["target"]
        if name in made or not _is_identifier(name):
            raise ValueError(f"{name!r} is no name of a node, or that of two")
        try:
            args, kwargs = (restored(node[key], made) for key in ("args", "kwargs"))
            known = {"call_module": layers, "get_attr": tensors}.get(op)
            if known is not None and target not in known:
                raise ValueError(f"there is no {target!r}")
            if op == "placeholder" and not _is_identifier(target):
                raise ValueError(f"{target!r} is no name of an input")
            called = operator_of(target) if op == "call_function" else target
            _check_arguments(op, called, args, kwargs, layers)
        except ValueError as error:
            raise ValueError(f"node {name}: {error}") from None
        made[name] = graph.create_node(op, called, args, kwargs, name=name)
    graph.lint()
    return graph


def check_path(name: str) -> None:
    """ValueError where ``name`` is no dotted name of a module or tensor."""
    if not _PATH.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a layer or tensor")


def _is_identifier(name: str) -> bool:
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name)


def _check_arguments(
    op: str, called: Any, args: Any, kwargs: Any, layers: Mapping[str, int | None]
) -> None:
    """ValueError where a call has other arguments than it takes."""
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise ValueError("args must be a tuple and kwargs a dict")
    if not all(isinstance(key, str) and _is_identifier(key) for key in kwargs):
        raise ValueError(f"names of arguments {list(kwargs)} cannot be")
    schema = getattr(called, "_schema", None)
    if schema is not None:
        by_position = [a for a in schema.arguments if not a.kwarg_only]
        given = {a.name for a in by_position[: len(args)]}
        names = {a.name for a in schema.arguments}
        missing = [
            a.name for a in schema.arguments
            if a.name not in given | set(kwargs) and not a.has_default_value()
        ]  # fmt: skip
        good = len(args) <= len(by_position) and not missing and not given & set(kwargs)
        if not good or not set(kwargs) <= names:
            raise ValueError(f"{schema.name} is not called with {len(args)} + {list(kwargs)}")
        return
    if op == "call_module":
        expected = layers[called]
        good = bool(args) and (expected is None or len(args) == expected)
    elif op == "call_function":
        low, high = _ARITY.get(_NAMES[called], (2, 2))
        good = low <= len(args) <= high
    else:
        good = len(args) == (op == "output")
    if not good or kwargs:
        raise ValueError(f"{called!s} is not called with {len(args)} + {list(kwargs)} arguments")


def restored(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """An argument out of JSON; ValueError for a node that is not yet there."""
    if isinstance(value, list):
        return [restored(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError(f"an argument {value!r:.100} cannot be read")
    ((kind, content),) = value.items()
    if kind == "node" and isinstance(content, str):
        if content not in nodes:
            raise ValueError(f"it refers to {content!r}, which does not come before it")
        return nodes[content]
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "tuple" and isinstance(content, list):
        return tuple(restored(item, nodes) for item in content)
    if kind == "dict" and isinstance(content, dict):
        return {key: restored(item, nodes) for key, item in content.items()}
    if kind == "device":
        return torch.device("cpu")
    if kind in _WRAPPED:
        found = getattr(torch, str(content), None)
        if isinstance(found, _WRAPPED[kind]):
            return found
    raise ValueError(f"an argument {value!r:.100} cannot be read")


def operator_of(name: str) -> Any:
    """A function of the short list, or an ATen operator that changes nothing but its result."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "aten":
        try:
            found = getattr(getattr(torch.ops.aten, parts[1]), parts[2])
        except AttributeError:
            found = None
        if isinstance(found, torch._ops.OpOverload) and _is_plain(found):
            return found
    raise ValueError(
        f"the operator {name!r} is not known to torch {torch.__version__}, or none that a file may name"
    )


def _is_plain(found: torch._ops.OpOverload) -> bool:
    """Whether an operator computes from its arguments only, and checks them.

    ``from_file`` opens and even makes files; names that begin with _ are torch's internal ones, of
    which only those are taken that rules are written for.
    """
    name = found._schema.name.removeprefix("aten::")
    internal = name.startswith("_") and not has_rule(found) and name not in _INTERNAL
    return not (found._schema.is_mutable or name == "from_file" or internal)


# What decomposition makes of public operators.
_INTERNAL = (
    "_to_copy", "_softmax", "_log_softmax", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "_unsafe_view", "_unsafe_index", "_native_batch_norm_legit_no_training", "_fft_r2c", "_fft_c2r",
    "_fft_c2c", "_cdist_forward", "_scaled_dot_product_flash_attention_for_cpu",
)  # fmt: skip

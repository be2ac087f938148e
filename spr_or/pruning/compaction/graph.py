"""A network as a torch.fx graph whose every node has a known effect on channels.

A channel is an index along dimension 1: of (B, C), (B, C, L), (B, C, H, W) or (B, C, D, H, W).
"""

import operator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Each channel of the output depends on the same channel of the input, one value at a time.
POINTWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish,
    nn.Hardtanh, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
POINTWISE_FUNCTIONS = (
    F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.hardtanh,
    F.sigmoid, torch.sigmoid, F.hardsigmoid, F.tanh, torch.tanh, F.softplus,
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d,
)  # fmt: skip
POINTWISE_METHODS = ("relu", "relu_", "sigmoid", "tanh", "contiguous", "clone")

# Each channel of the output depends on the same channel of the input, over a window.
POOL_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
POOL_FUNCTIONS = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
)  # fmt: skip

ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
SOFTMAXES = (F.softmax, torch.softmax, F.log_softmax, torch.log_softmax)


class CompactionError(ValueError):
    """The network holds something whose effect on channels is not known."""


def trace(model: nn.Module) -> fx.GraphModule:
    """The graph of `model` in the mode it is in, on the model's own modules (not a copy).

    Raises CompactionError where the forward pass depends on the data or on Python that torch.fx
    cannot follow.
    """
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:  # fx raises whatever the user's forward raises on a proxy
        raise CompactionError(
            f"{type(model).__name__} cannot be traced by torch.fx: {error}. Its forward must "
            "take one tensor and be free of branches and loops that depend on tensor values"
        ) from error
    inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise CompactionError(
            f"{type(model).__name__} takes {len(inputs)} inputs ({', '.join(inputs)}); wrap it in "
            "a module whose forward takes one tensor"
        )
    return graph


def module_of(graph: fx.GraphModule, node: fx.Node) -> Any:
    """The module a node calls, or None. Its type is known from the node's kind."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def following_norms(model: nn.Module) -> dict[str, list[str]]:
    """Name of each convolution or linear layer to the names of the BatchNorms that scale it.

    A BatchNorm follows when it reads the layer directly or through operations that treat channels
    separately (ReLU, pooling, dropout). One behind an addition belongs to several layers, so to none.

    >>> from spr_or.models.resnet_cifar import resnet20
    >>> following_norms(resnet20())["layer1.0.conv2"]
    ['layer1.0.bn2']
    """
    graph = trace(model)
    found: dict[str, list[str]] = {}
    for node in graph.graph.nodes:
        layer = module_of(graph, node)
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            norms = _norms_reading(graph, node, layer.weight.shape[0])
            found.setdefault(str(node.target), []).extend(norms)
    return found


def _norms_reading(graph: fx.GraphModule, node: fx.Node, channels: int) -> list[str]:
    names = []
    for user in node.users:
        reader = module_of(graph, user)
        if isinstance(reader, NORMS):
            names += [str(user.target)] if reader.num_features == channels else []
        elif _listed_kind(graph, user) in ("pointwise", "pool"):
            names += _norms_reading(graph, user, channels)
    return names


@dataclass(frozen=True)
class ChannelSignal:
    """The result of a node for the example: its shape, and one value of each channel, (C,)."""

    shape: tuple[int, ...]
    value: Tensor

    @property
    def channels(self) -> int:
        """Length of dimension 1."""
        return self.shape[1]


def record(graph: fx.GraphModule, example: Tensor) -> dict[fx.Node, ChannelSignal]:
    """Run the example (B, C, …) through the graph and record every tensor with channels.

    Values are those at the first sample and the first position: where a channel is the same
    everywhere and always, that is its value.
    """
    signals: dict[fx.Node, ChannelSignal] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and result.dim() >= 2:
                value = result[0].flatten(1)[:, 0] if result.dim() > 2 else result[0]
                signals[n] = ChannelSignal(tuple(result.shape), value.detach().clone())
            return result

    with torch.no_grad():
        Recorder(graph).run(example)
    return signals


def target_name(node: fx.Node) -> str:
    """What a node calls: a module's or method's name as it is, a function's __name__."""
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", repr(node.target))


def _listed_kind(graph: fx.GraphModule, node: fx.Node) -> str | None:
    """Kind of a node, judged only by what it calls."""
    if node.op == "call_module":
        module = module_of(graph, node)
        tables: tuple[tuple[str, tuple[type, ...]], ...] = (
            ("conv", CONVOLUTIONS),
            ("linear", (nn.Linear,)),
            ("norm", NORMS),
            ("pointwise", POINTWISE_MODULES),
            ("pool", POOL_MODULES),
            ("flatten", (nn.Flatten,)),
            ("mix", (nn.Softmax, nn.LogSoftmax)),
        )
        # The exact type: a subclass may compute something else.
        return next((kind for kind, types in tables if type(module) in types), None)
    if node.op == "call_method":
        methods: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("pointwise", POINTWISE_METHODS),
            ("flatten", ("flatten", "view", "reshape")),
            ("pool", ("mean",)),
            ("mix", ("softmax", "log_softmax")),
            ("add", ADDITIONS),
        )
        return next((kind for kind, names in methods if node.target in names), None)
    if node.op == "call_function":
        functions: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("pointwise", POINTWISE_FUNCTIONS),
            ("pool", (*POOL_FUNCTIONS, torch.mean)),
            ("flatten", (torch.flatten, torch.reshape)),
            ("add", ADDITIONS),
            ("slice", (operator.getitem,)),
            ("pad", (F.pad,)),
            ("mix", SOFTMAXES),
        )
        return next((kind for kind, known in functions if node.target in known), None)
    return {"placeholder": "input", "output": "output"}.get(node.op)


def kind_of(graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]) -> str:
    """What the node does to channels, checked against the shapes that were recorded.

    One of "input", "conv", "linear", "norm", "pointwise", "pool", "flatten", "add", "pad",
    "slice", "mix" (every output channel needs every input channel), "size" (a number, not a
    tensor), "output". Raises CompactionError, naming node and module, for anything else.
    """
    if _is_size(node, signals):
        if not {_listed_kind(graph, user) for user in node.users if user in signals} <= {"flatten"}:
            _refuse(node, "a size used in arithmetic")
        return "size"
    kind = _listed_kind(graph, node)
    if kind == "output" and not isinstance(node.args[0], fx.Node):
        _refuse(node, "an output that is not one tensor")
    if kind is None:
        called = module_of(graph, node)
        _refuse(node, f"a {type(called).__name__}" if called else "an unknown operation")
    if node not in signals and kind != "output":
        _refuse(node, "its result is no tensor with a channel dimension")
    if kind == "add" and len(sides(node)) == 1:
        kind = "pointwise"  # a number added to a tensor
    problem = _PROBLEMS[kind](graph, node, signals) if kind in _PROBLEMS else None
    if problem is None and _in_place(graph, node):
        problem = _overwrites(graph, node, signals)
    if problem is not None:
        _refuse(node, problem)
    return kind


def _is_size(node: fx.Node, signals: dict[fx.Node, ChannelSignal]) -> bool:
    """x.size(0), x.shape, and parts of those."""
    if node.target is operator.getitem:
        return sides(node)[0] not in signals
    return (node.op, node.target) == ("call_method", "size") or node.target is getattr


def sides(node: fx.Node) -> list[fx.Node]:
    """The tensors a node reads: both sides of an addition (x + x has two), else the first."""
    nodes = [argument for argument in node.args if isinstance(argument, fx.Node)]
    return nodes if node.target in ADDITIONS else nodes[:1]


def _refuse(node: fx.Node, problem: str) -> NoReturn:
    raise CompactionError(
        f"cannot compact through node {node.name!r} ({node.op} {target_name(node)}): {problem}. "
        "Known are convolutions, linear layers, BatchNorm, pointwise activations, dropout, "
        "pooling, flattening, padding with zeros, spatial slices and additions"
    )


# Each check returns what is wrong with a node of its kind, or None.


def _once(graph: fx.GraphModule, node: fx.Node) -> str | None:
    calls = [n for n in graph.graph.nodes if n.op == "call_module" and n.target == node.target]
    return f"it is called {len(calls)} times and cannot have two widths" if calls[1:] else None


def _conv(
    graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]
) -> str | None:
    module = module_of(graph, node)
    if module.groups != 1:
        return f"a convolution in {module.groups} groups (only groups=1 is known)"
    if len(signals[node].shape) != module.weight.dim():
        return "its input has no batch dimension"
    return _once(graph, node)


def _linear(
    graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]
) -> str | None:
    if len(signals[node].shape) != 2:
        return f"a linear layer on {len(signals[node].shape)} dimensions (only (B, C) is known)"
    return _once(graph, node)


def _norm(
    graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]
) -> str | None:
    if module_of(graph, node).running_mean is None:
        return "a BatchNorm without running statistics depends on the batch"
    return _once(graph, node)


def _pointwise(
    graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]
) -> str | None:
    if node.target in DROPOUTS and node.kwargs.get("training") is not False:
        return "dropout that stays on in evaluation (pass training=self.training)"
    return None if len(node.all_input_nodes) == 1 else "an activation of several tensors"


def _pool(
    graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]
) -> str | None:
    if node.target in ("mean", torch.mean):
        rank = len(signals[sides(node)[0]].shape)
        dims = argument(node, 1, "dim", None)
        dims = [dims] if isinstance(dims, int) else dims
        if not isinstance(dims, list | tuple) or any(d % rank < 2 for d in dims):
            return "a mean over samples or channels"
    return None


def _flatten(
    graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]
) -> str | None:
    shape = signals[sides(node)[0]].shape
    if signals[node].shape != (shape[0], torch.Size(shape[1:]).numel()):
        return f"a change of shape from {shape} to {signals[node].shape} (only to (B, features))"
    return None


def _add(graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]) -> str | None:
    shapes = [signals[side].shape for side in sides(node)]
    if node.kwargs:
        return f"an addition with {', '.join(node.kwargs)}"
    return None if shapes[0] == shapes[1] else f"an addition of shapes {shapes[0]} and {shapes[1]}"


def _slice(
    graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]
) -> str | None:
    index: Any = node.args[1]
    whole = slice(None)
    spatial = isinstance(index, tuple) and index[:2] == (whole, whole)
    if not spatial or not all(isinstance(part, slice) for part in index):
        return f"an index {index} that is not a slice of positions, x[:, :, a:b, …]"
    return None


def _pad(graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]) -> str | None:
    widths = argument(node, 1, "pad", ())
    mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value", None)
    if mode != "constant" or value not in (None, 0) or min(widths) < 0:
        return "padding with anything but zeros"
    if len(widths) > 2 * (len(signals[node].shape) - 1):
        return "padding of the batch"
    return None


_PROBLEMS = {
    "conv": _conv, "linear": _linear, "norm": _norm, "pointwise": _pointwise, "pool": _pool,
    "flatten": _flatten, "add": _add, "slice": _slice, "pad": _pad,
}  # fmt: skip


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def pad_widths(node: fx.Node, rank: int) -> tuple[list[int], int]:
    """What a "pad" node adds to `rank` dimensions: widths around positions, channels in front."""
    widths = list(argument(node, 1, "pad", ()))
    positions = 2 * (rank - 2)
    return widths[:positions], (widths[positions:] or [0])[0]


def sees_zeros(graph: fx.GraphModule, node: fx.Node, kind: str, rank: int) -> bool:
    """Whether the node mixes its input, of `rank` dimensions, with zeros at the border.

    There a channel that is constant and not zero stops being constant.
    """
    module = module_of(graph, node)
    if kind == "conv":
        padded = module.padding not in ("valid", (0,) * len(module.kernel_size))
        return padded and module.padding_mode == "zeros"
    if kind == "pad":
        return any(pad_widths(node, rank)[0])
    if kind == "pool":
        name = type(module).__name__ if module else getattr(node.target, "__name__", "")
        if not name.lower().startswith("avg"):
            return False
        padding = module.padding if module else argument(node, 3, "padding", 0)
        return padding not in (0, (0,), (0, 0), (0, 0, 0))
    return False


def _in_place(graph: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(graph, node)
    named = isinstance(node.target, str) and node.op == "call_method" and node.target[-1] == "_"
    flag = getattr(module, "inplace", False) or node.kwargs.get("inplace", False)
    return bool(flag) or named or node.target is operator.iadd


def _overwrites(
    graph: fx.GraphModule, node: fx.Node, signals: dict[fx.Node, ChannelSignal]
) -> str | None:
    """The node writes over its input, so no other node may read that memory."""
    source = sides(node)[0]
    while True:
        readers = [user for user in source.users if user in signals or user.op == "output"]
        if len(readers) > 1:
            names = ", ".join(user.name for user in readers if user is not node)
            return f"it overwrites {source.name!r}, which {names} reads too (use inplace=False)"
        if not _shares_memory(graph, source):
            return None
        source = sides(source)[0]


def _shares_memory(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's output may be its input's memory."""
    same = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    return (
        _in_place(graph, node)
        or _listed_kind(graph, node) in ("flatten", "slice")
        or isinstance(module_of(graph, node), same)
        or node.target in DROPOUTS
        or node.target == "contiguous"
    )

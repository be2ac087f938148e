"""Files of the first format, "spr-or compact 1": kept channels of a network that torch.fx traces.

They name the function that builds the original network; it is imported and called, traced, and
narrowed to the channels that the file lists. Nothing writes this format any more.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, fx, nn

from spr_or.pruning.compaction.layers import IndexedAdd
from spr_or.utils.import_path import load_object

FORMAT = "spr-or compact 1"

_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


class _Step(BaseModel):
    """One node of the graph: what it is, its channels before, and those that are kept."""

    model_config = ConfigDict(strict=True, extra="forbid")
    kind: str
    target: str
    channels: int = Field(ge=0)
    kept: list[int]
    offset: int
    around: list[int]
    shift: bool

    @model_validator(mode="after")
    def _kept_are_channels(self) -> "_Step":
        """Kept channels rise and are among those that there were."""
        if any(b <= a for a, b in zip(self.kept, self.kept[1:], strict=False)):
            raise ValueError("the kept channels are not in rising order")
        if self.kept and not 0 <= self.kept[0] <= self.kept[-1] < self.channels:
            raise ValueError(f"kept channels outside 0 to {self.channels - 1}")
        return self


class _Description(BaseModel):
    model_config = ConfigDict(strict=True)
    format: str
    original: str
    kwargs: dict[str, Any]
    steps: dict[str, _Step]


def checked(description: dict[str, Any], where: str) -> dict[str, Any]:
    """The description if it is one; ``ValueError`` naming the file otherwise."""
    try:
        return _Description.model_validate(description).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where} is damaged: {place}: {first['msg']}") from None


def load(description: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> nn.Module:
    """The network of a checked description and its tensors, in evaluation mode."""
    try:
        model = _rebuilt(description)
    except (
        ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError,
        ImportError,
    ) as error:  # fmt: skip
        raise ValueError(f"{where} does not describe a network: {error}") from error
    try:
        model.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        raise ValueError(f"{where} does not fit the original it names: {error}") from error
    return model.eval()


def rows_and_columns(
    description: Mapping[str, Any], model: nn.Module
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The kept filters and input channels of each convolution that is left, by name."""
    steps, rows, columns = description["steps"], {}, {}
    for node in fx.symbolic_trace(model.eval()).graph.nodes:
        step = steps[node.name]
        if step["kind"] == "conv" and step["kept"]:
            rows[step["target"]] = step["kept"]
            columns[step["target"]] = steps[_sides(node)[0].name]["kept"]
    return rows, columns


def _rebuilt(description: Mapping[str, Any]) -> fx.GraphModule:
    original, kwargs = description["original"], description["kwargs"]
    with torch.random.fork_rng(devices=[]):
        model = load_object(original)(**kwargs)
    graph = fx.symbolic_trace(model.eval())
    steps = {name: _Step.model_validate(step) for name, step in description["steps"].items()}
    if {n.name: _target_name(n) for n in graph.graph.nodes} != {
        n: s.target for n, s in steps.items()
    }:
        raise ValueError(
            f"{original} with {dict(kwargs)} does not fit: it is not, or is no longer, the network "
            "that was compacted"
        )
    smaller = fx.Graph()
    built: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        step = steps[node.name]
        if not step.kept:
            continue
        if step.kind in ("conv", "linear", "norm"):
            _narrow(graph.get_submodule(step.target), step, steps[_sides(node)[0].name])
            built[node] = smaller.node_copy(node, built.__getitem__)
        elif step.kind in ("add", "pad"):
            built[node] = _joined(graph, smaller, node, steps, built)
        elif step.kind == "flatten":
            built[node] = smaller.call_function(torch.flatten, (built[_sides(node)[0]], 1))
        else:
            built[node] = smaller.node_copy(node, built.__getitem__)
            _not_in_place(graph, built[node])
    return fx.GraphModule(graph, smaller, class_name="CompactNetwork")


def _target_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _sides(node: fx.Node) -> list[fx.Node]:
    nodes = [argument for argument in node.args if isinstance(argument, fx.Node)]
    return nodes if node.target in _ADDITIONS else nodes[:1]


def _narrow(module: Any, step: _Step, source: _Step) -> None:
    """Keep the listed rows and columns of a module's tensors, in place."""
    rows, columns = torch.tensor(step.kept), torch.tensor(source.kept)
    planned = (step.channels, source.channels)
    shape = (module.num_features,) * 2 if step.kind == "norm" else tuple(module.weight.shape[:2])
    if shape != planned:
        raise ValueError(f"{step.target!r} has {shape} channels (out, in), not {planned}")
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(tensor.detach()[rows].clone()))
        elif tensor is not None:
            setattr(module, name, tensor[rows].clone())
    if step.kind == "norm":
        module.num_features = len(rows)
        return
    module.weight = nn.Parameter(module.weight.detach()[:, columns].clone())
    linear = step.kind == "linear"
    setattr(module, "out_features" if linear else "out_channels", len(rows))
    setattr(module, "in_features" if linear else "in_channels", len(columns))
    if step.shift:
        module.bias = nn.Parameter(torch.zeros(len(rows)))


def _joined(
    graph: fx.GraphModule,
    smaller: fx.Graph,
    node: fx.Node,
    steps: Mapping[str, _Step],
    built: Mapping[fx.Node, fx.Node],
) -> fx.Node:
    """An addition or channel padding as an indexed addition of the channels its inputs still have."""
    step = steps[node.name]
    place_of = {channel: place for place, channel in enumerate(step.kept)}
    tensors, picks, places = [], [], []
    for side in _sides(node):
        held = [channel + step.offset for channel in steps[side.name].kept]
        pick = [i for i, channel in enumerate(held) if channel in place_of]
        if pick:
            place = [place_of[held[i]] for i in pick]
            tensors.append(built[side])
            picks.append(None if len(pick) == len(held) else pick)
            places.append(None if len(place) == len(step.kept) else place)
    if not tensors:
        tensors = [next(built[side] for side in _sides(node) if side in built)]
        picks, places = [[]], [[]]
    if any(step.around):
        tensors = [smaller.call_function(F.pad, (tensor, step.around)) for tensor in tensors]
    if not step.shift and (picks, places) == ([None], [None]):
        return tensors[0]
    if not step.shift and (picks, places) == ([None, None], [None, None]):
        return smaller.call_function(operator.add, tuple(tensors))
    shift = torch.zeros(len(step.kept)) if step.shift else None
    name = f"{node.name}_indexed"
    graph.add_submodule(name, IndexedAdd(1, len(step.kept), picks, places, shift))
    return smaller.create_node("call_module", name, tuple(tensors), name=name)


def _not_in_place(graph: fx.GraphModule, node: fx.Node) -> None:
    if node.op == "call_module":
        module: Any = graph.get_submodule(str(node.target))
        if getattr(module, "inplace", False):
            module.inplace = False
    elif "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_method" and node.target == "relu_":
        node.target = "relu"

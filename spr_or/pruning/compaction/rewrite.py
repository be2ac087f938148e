"""The smaller network: the same graph, on the channels a plan keeps."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from spr_or.pruning.compaction.graph import module_of, sides
from spr_or.pruning.compaction.removal_plan import RemovalPlan, Step


class IndexedAdd(nn.Module):
    """Add tensors that hold different channels of one stream.

    out[:, places[s]] += x_s[:, picks[s]] for every side s, and out += shift. Each x_s is
    (B, C_s, …); the output is (B, channels, …). A side is read through `picks` (None: as it is)
    and lands at `places` (None: everywhere).
    """

    def __init__(
        self,
        channels: int,
        picks: list[list[int] | None],
        places: list[list[int] | None],
        shift: Tensor | None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.shift = None if shift is None else nn.Parameter(shift)
        for s, (pick, place) in enumerate(zip(picks, places, strict=True)):
            for name, index in (("pick", pick), ("place", place)):
                values = None if index is None else torch.tensor(index, dtype=torch.long)
                # Known from the plan, so no part of the state dict.
                self.register_buffer(f"{name}{s}", values, persistent=False)

    def forward(self, *tensors: Tensor) -> Tensor:
        total: Tensor | None = None
        placed = []
        for s, tensor in enumerate(tensors):
            pick, place = getattr(self, f"pick{s}"), getattr(self, f"place{s}")
            if pick is not None:
                tensor = tensor.index_select(1, pick)
            if place is not None:
                placed.append((place, tensor))
            else:
                total = tensor if total is None else total + tensor
        if total is None:
            first = tensors[0]
            total = first.new_zeros((first.shape[0], self.channels, *first.shape[2:]))
            for place, tensor in placed:
                total.index_add_(1, place, tensor)
        else:  # may be the stream itself, which others read
            for place, tensor in placed:
                total = total.index_add(1, place, tensor)
        if self.shift is not None:
            total = total + self.shift.view(-1, *[1] * (total.dim() - 2))
        return total

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


def rewrite(graph: fx.GraphModule, plan: RemovalPlan) -> fx.GraphModule:
    """Build the network that `plan` describes; takes over and narrows the modules of `graph`.

    Nodes without channels are left out. Activations no longer write over their input: what fed
    them may have become a value that others read.
    """
    smaller = fx.Graph()
    built: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        step = plan[node.name]
        if not step.kept:  # not needed, or a size
            continue
        if step.kind in ("conv", "linear", "norm"):
            _narrow(module_of(graph, node), step, plan[sides(node)[0].name])
            built[node] = smaller.node_copy(node, built.__getitem__)
        elif step.kind in ("add", "pad"):
            built[node] = _join(graph, smaller, node, plan, built)
        elif step.kind == "flatten":
            built[node] = smaller.call_function(torch.flatten, (built[sides(node)[0]], 1))
        else:
            built[node] = smaller.node_copy(node, built.__getitem__)
            _not_in_place(graph, built[node])
    return fx.GraphModule(graph, smaller, class_name="CompactNetwork")


def _narrow(module: Any, step: Step, source: Step) -> None:
    """Keep the planned rows and columns of a module's tensors, in place."""
    rows = torch.tensor(step.kept)
    shape, planned = _channel_shape(module, step), (step.channels, source.channels)
    if shape != planned:
        raise ValueError(f"{step.target!r} has {shape} channels (out, in), not {planned}")
    if step.kind == "norm":
        module.num_features = len(rows)
        for name in ("weight", "bias", "running_mean", "running_var"):
            _keep(module, name, rows)
        return
    _keep(module, "weight", rows)
    _keep(module, "bias", rows)
    columns = torch.tensor(source.kept, device=module.weight.device)
    weight = nn.Parameter(module.weight.detach()[:, columns].clone(), module.weight.requires_grad)
    module.weight = weight
    out_name, in_name = (
        ("out_features", "in_features")
        if step.kind == "linear"
        else ("out_channels", "in_channels")
    )
    setattr(module, out_name, len(rows))
    setattr(module, in_name, len(columns))
    if step.shift is not None:
        old = 0 if module.bias is None else module.bias.detach()
        module.bias = nn.Parameter(old + step.shift.to(weight))


def _channel_shape(module: Any, step: Step) -> tuple[int, ...]:
    if step.kind == "norm":
        return module.num_features, module.num_features
    return tuple(module.weight.shape[:2])


def _keep(module: nn.Module, name: str, rows: Tensor) -> None:
    tensor = getattr(module, name)
    if tensor is None:
        return
    kept = tensor.detach()[rows.to(tensor.device)].clone()
    if isinstance(tensor, nn.Parameter):
        kept = nn.Parameter(kept, tensor.requires_grad)
    setattr(module, name, kept)


def _join(
    graph: fx.GraphModule,
    smaller: fx.Graph,
    node: fx.Node,
    plan: RemovalPlan,
    built: dict[fx.Node, fx.Node],
) -> fx.Node:
    """An addition or channel padding as an indexed addition of the channels its inputs still have."""
    step = plan[node.name]
    place_of = {channel: place for place, channel in enumerate(step.kept)}
    tensors, picks, places = [], [], []
    for side in sides(node):
        held = [channel + step.offset for channel in plan[side.name].kept]
        pick = [i for i, channel in enumerate(held) if channel in place_of]
        if pick:
            place = [place_of[held[i]] for i in pick]
            tensors.append(built[side])
            picks.append(None if len(pick) == len(held) else pick)
            places.append(None if len(place) == len(step.kept) else place)
    if not tensors:  # constants only: the first side gives batch size and positions
        tensors = [next(built[side] for side in sides(node) if side in built)]
        picks, places = [[]], [[]]
    if any(step.around):
        tensors = [smaller.call_function(F.pad, (tensor, step.around)) for tensor in tensors]
    if step.shift is None and (picks, places) == ([None], [None]):
        return tensors[0]
    if step.shift is None and (picks, places) == ([None, None], [None, None]):
        return smaller.call_function(operator.add, tuple(tensors))
    like = next(t for t in graph.state_dict().values() if t.is_floating_point())
    shift = None if step.shift is None else step.shift.to(like)
    indexed = IndexedAdd(len(step.kept), picks, places, shift).to(like.device)
    name = f"{node.name}_indexed"
    graph.add_submodule(name, indexed)
    return smaller.create_node("call_module", name, tuple(tensors), name=name)


def _not_in_place(graph: fx.GraphModule, node: fx.Node) -> None:
    if node.op == "call_module":
        module = module_of(graph, node)
        if getattr(module, "inplace", False):
            module.inplace = False
    elif "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_method" and node.target == "relu_":
        node.target = "relu"

"""Which channels a network needs: a forward, a backward and a second forward pass.

1. Forwards, *constant*: a channel is constant when it has one value at every position of every
   sample, whatever the input. A filter whose weights on all varying inputs are zero gives one; so
   does a BatchNorm scale of zero. Its value is taken from a run of the example. A pruned filter
   with its BatchNorm's γ and β gives the constant zero.
2. Backwards, *needed*: each operation requests the channels of its input that it needs. A constant is
   not requested where its effect is a bias (a convolution without zero padding, a linear layer,
   an addition); neither is a channel whose weights are all zero.
3. Forwards, *kept*: an operation that treats channels separately keeps what its input keeps. That may
   be more than was requested of it, when its input has other readers.
"""

import torch
from torch import Tensor, fx

from spr_or.pruning.compaction.graph import (
    ChannelSignal,
    kind_of,
    module_of,
    pad_widths,
    record,
    sees_zeros,
    sides,
    target_name,
)
from spr_or.pruning.compaction.removal_plan import RemovalPlan, Step

Channels = dict[fx.Node, Tensor]
"""Node to a bool vector over its channels."""


ChannelSignals = dict[fx.Node, ChannelSignal]


def make_plan(graph: fx.GraphModule, example: Tensor) -> RemovalPlan:
    """Decide what stays of `graph`, whose pruned weights are zeros, in evaluation mode.

    example: (B, C, …) of the model's dtype and device. Raises CompactionError naming the node
    that is not understood.
    """
    signals = record(graph, example)
    every_kind = {node: kind_of(graph, node, signals) for node in graph.graph.nodes}
    kinds = {node: kind for node, kind in every_kind.items() if kind != "size"}
    constant: Channels = {}
    for node, kind in kinds.items():
        constant[node] = _constant(graph, node, kind, constant, signals)
    needed = _needed(graph, kinds, constant, signals)
    kept: Channels = {}
    for node, kind in kinds.items():
        kept[node] = _kept(node, kind, needed, kept, signals)
    plan: RemovalPlan = {}
    for node, kind in every_kind.items():
        step = plan[node.name] = Step(kind, target_name(node))
        if kind != "size":
            step.channels = len(kept[node])
            step.kept = kept[node].nonzero().flatten().tolist()
            step.shift = _shift(graph, node, kind, constant, kept, signals)
        if kind == "pad":
            step.around, step.offset = pad_widths(node, len(signals[node].shape))
    return plan


def _constant(
    graph: fx.GraphModule, node: fx.Node, kind: str, constant: Channels, signals: ChannelSignals
) -> Tensor:
    """Pass 1 at one node: the channels of its output that are constant."""
    if kind == "input":
        return torch.zeros(signals[node].channels, dtype=torch.bool, device=_device(signals, node))
    source = sides(node)[0]
    varying = _varying(graph, node, kind, constant, signals)
    if kind in ("conv", "linear"):
        return ~_reads(graph, node)[:, varying].any(1)
    if kind == "norm":
        scale = module_of(graph, node).weight
        return ~varying if scale is None else ~varying | (scale.detach() == 0)
    if kind == "flatten":
        return (~varying).repeat_interleave(signals[node].channels // signals[source].channels)
    if kind == "add":
        return torch.stack([constant[side] for side in sides(node)]).all(0)
    if kind == "pad":
        return ~_placed(varying, node, signals)
    if kind == "mix":
        return torch.zeros_like(varying)
    return ~varying


def _needed(
    graph: fx.GraphModule, kinds: dict[fx.Node, str], constant: Channels, signals: ChannelSignals
) -> Channels:
    """Pass 2: the channels of each node that its readers request."""
    needed = {node: torch.zeros_like(constant[node]) for node in kinds}
    # Nodes of which a reader needs only the batch size and the positions: any channel will do.
    anchors: set[fx.Node] = set()
    depth = _depths(kinds)
    for node, kind in reversed(kinds.items()):
        if kind == "output":
            needed[node][:] = True
        if node in anchors and not needed[node].any():
            needed[node][0] = True
        if kind == "input" or not needed[node].any():
            continue
        for side in dict.fromkeys(sides(node)):
            needed[side] |= _asked(graph, node, kind, side, needed[node], constant, signals)
        if kind in ("conv", "linear", "add", "pad"):
            anchors.add(min(sides(node), key=depth.__getitem__))
    return needed


def _depths(kinds: dict[fx.Node, str]) -> dict[fx.Node, int]:
    """Convolutions and linear layers on the longest way from the input to each node."""
    depth: dict[fx.Node, int] = {}
    for node, kind in kinds.items():
        before = max((depth[side] for side in sides(node)), default=0)
        depth[node] = before + (kind in ("conv", "linear"))
    return depth


def _asked(
    graph: fx.GraphModule,
    node: fx.Node,
    kind: str,
    side: fx.Node,
    wanted: Tensor,
    constant: Channels,
    signals: ChannelSignals,
) -> Tensor:
    """The channels of `side` that the node must read to give the `wanted` ones."""
    if kind in ("conv", "linear"):
        varying = _varying(graph, node, kind, constant, signals)
        return varying & _reads(graph, node)[wanted].any(0)
    if kind == "flatten":
        return wanted.view(signals[side].channels, -1).any(1)
    if kind == "add":
        return wanted & ~constant[side]
    if kind == "pad":
        offset = _offset(node, signals)
        window = wanted[offset : offset + signals[side].channels]
        return window & _varying(graph, node, kind, constant, signals)
    if kind == "mix":
        return torch.ones_like(constant[side])
    return wanted


def _kept(
    node: fx.Node, kind: str, needed: Channels, kept: Channels, signals: ChannelSignals
) -> Tensor:
    """Pass 3 at one node: the channels of its output that physically remain."""
    if kind == "input":
        return torch.ones_like(needed[node])
    source = kept[sides(node)[0]]
    if kind in ("conv", "linear", "add") or not needed[node].any():
        return needed[node]
    if kind == "flatten":
        return source.repeat_interleave(len(needed[node]) // len(source))
    if kind == "pad":
        placed = _placed(source, node, signals)
        return placed if not (needed[node] & ~placed).any() else needed[node]
    return source


def _shift(
    graph: fx.GraphModule,
    node: fx.Node,
    kind: str,
    constant: Channels,
    kept: Channels,
    signals: ChannelSignals,
) -> Tensor | None:
    """What the constant channels that left the inputs contribute to each kept output channel."""
    if kind not in ("conv", "linear", "add", "pad") or not kept[node].any():
        return None
    gone = {
        side: torch.where(constant[side] & ~kept[side], signals[side].value, 0).double()
        for side in sides(node)
    }
    if not any(value.any() for value in gone.values()):
        return None
    if kind in ("conv", "linear"):
        weight = module_of(graph, node).weight.detach()[kept[node]].double()
        shift = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        shift = shift @ gone[sides(node)[0]]
    elif kind == "add":
        shift = torch.stack([gone[side] for side in sides(node)]).sum(0)[kept[node]]
    else:
        shift = _placed(gone[sides(node)[0]], node, signals)[kept[node]]
    return shift.cpu() if shift.any() else None


def _varying(
    graph: fx.GraphModule, node: fx.Node, kind: str, constant: Channels, signals: ChannelSignals
) -> Tensor:
    """Channels of the (first) input whose effect is not a constant.

    They vary, or they are constant and not zero and meet zeros at the border.
    """
    source = sides(node)[0]
    if sees_zeros(graph, node, kind, len(signals[source].shape)):
        return ~(constant[source] & (signals[source].value == 0))
    return ~constant[source]


def _reads(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """(out, in) bool: which filter has a nonzero weight on which input channel."""
    weight = module_of(graph, node).weight.detach()
    return (weight.reshape(*weight.shape[:2], -1) != 0).any(2)


def _offset(node: fx.Node, signals: ChannelSignals) -> int:
    return pad_widths(node, len(signals[node].shape))[1]


def _placed(vector: Tensor, node: fx.Node, signals: ChannelSignals) -> Tensor:
    """A vector over a "pad" node's input channels, as one over its output channels."""
    placed = vector.new_zeros(signals[node].channels)
    offset = _offset(node, signals)
    placed[offset : offset + len(vector)] = vector
    return placed


def _device(signals: ChannelSignals, node: fx.Node) -> torch.device:
    return signals[node].value.device

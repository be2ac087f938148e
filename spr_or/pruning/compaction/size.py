"""What compaction would leave, counted without building the smaller network."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from spr_or.pruning.compaction.facts import counted, operands
from spr_or.pruning.compaction.inputs import Example, flat_inputs, like_model
from spr_or.pruning.compaction.plan import Plan
from spr_or.pruning.compaction.prepare import prepared
from spr_or.pruning.compaction.trace import trace
from spr_or.pruning.following_norms import following_norms
from spr_or.pruning.masks import masks_layers, silence_


class Sizes(NamedTuple):
    """Parameters, and multiply-accumulate operations of convolutions and linear layers for one sample."""

    parameters: int
    operations: int


def sizes_left(plan: Plan) -> Sizes:
    """The sizes of ``rewrite(plan)``, which is not built.

    >>> from spr_or.pruning.compaction.inputs import inputs_of
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    >>> _ = nn.init.zeros_(net[0].weight[1])
    >>> example = torch.zeros(2, 4)
    >>> sizes_left(Plan(trace(net, example), [example]))
    Sizes(parameters=16, operations=12)
    """
    total, counted_once = 0, set()
    read: dict[fx.Node, tuple[Tensor | None, ...]] = {}
    for node, decision in plan.decisions.items():
        extra = getattr(decision.emit, "shift_size", 0)
        total += extra
        shape = getattr(decision.emit, "weight_shape", None)
        for x, keep in zip(operands(node, plan.facts), decision.reads, strict=True):
            if x.op != "get_attr" or not _is_parameter(plan.graph, x):
                continue
            if shape is not None and x is node.args[1]:
                if x not in counted_once:
                    total += math.prod(shape(plan.facts))
                    counted_once.add(x)
                continue
            before = read.get(x)
            read[x] = keep if before is None else tuple(
                None if a is None or b is None else a | b for a, b in zip(before, keep, strict=True)
            )  # fmt: skip
    for x, keep in read.items():
        total += math.prod(counted(keep, plan.facts[x].shape))
    return Sizes(total, plan.operations())


def _is_parameter(graph: fx.GraphModule, node: fx.Node) -> bool:
    place = graph
    for part in str(node.target).split("."):
        place = getattr(place, part)
    return isinstance(place, nn.Parameter)


class Skeleton:
    """A network of which only the zeros matter: what masks leave of it, quickly, again and again.

    The network is traced once. Its weights are one over their fan-in: nothing is zero by accident, and
    no signal outgrows a float.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self._model = prepared(model)
        self._example = example
        self._inputs = like_model(self._model, example)
        self._graph = trace(self._model, example)
        self._start = {
            name: torch.full_like(p, 1 / max(1, math.prod(p.shape[1:])))
            for name, p in self._model.named_parameters()
        }
        self._buffers = {name: b.clone() for name, b in self._model.named_buffers()}

    def left(self, masks: Mapping[str, Tensor]) -> Sizes:
        """The sizes with ``masks`` (True = keep)."""
        return sizes_left(self.plan(masks))

    @torch.no_grad()
    def plan(self, masks: Mapping[str, Tensor]) -> Plan:
        """What stays with ``masks``."""
        for name, parameter in self._model.named_parameters():
            parameter.copy_(self._start[name])
        for name, buffer in self._model.named_buffers():
            buffer.copy_(self._buffers[name])
        following = self._following if masks_layers(self._model, masks) else {}
        silence_(self._model, masks, following)
        return Plan(self._graph, flat_inputs(self._inputs))

    @cached_property
    def _following(self) -> dict[str, list[str]]:
        return following_norms(self._model, self._example)

"""The share of a network that leaves with given masks, counted without building the smaller one."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from spr_or.pruning.budget import Masks
from spr_or.pruning.compaction.channels import make_plan
from spr_or.pruning.compaction.graph import sides, trace
from spr_or.pruning.compaction.removal_plan import RemovalPlan
from spr_or.pruning.compaction.size import parameters_left
from spr_or.pruning.counts import Example, LayerCall, count_parameters, layer_calls
from spr_or.pruning.masks import apply_masks_


class Sizes(NamedTuple):
    """What a network has: parameters, and multiply-accumulate operations of a forward pass."""

    parameters: int
    macs: int


class Widths(NamedTuple):
    """The inputs and outputs of a convolution or linear layer."""

    inputs: int
    outputs: int


class Counter:
    """The share of all parameters (or ``of="macs"``), in percent, that leaves with given masks.

    Only the masks decide: a weight that happens to be zero in an entity that is kept counts as
    kept. So the share is that of ``compact(model, masks, example)`` for weights that are not zero,
    and costs one forward pass of ``example``: a tensor (B, C, …), a tuple of positional inputs or a
    dict of keyword inputs. Where a layer keeps nothing at all, what follows is constant, and whether
    the constant is zero depends on shifts that training still moves: there the count can be off by
    the few parameters that carry it. Operations are counted as in `count_macs`.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> count = Counter(model, torch.zeros(2, 4))
    >>> count({"0": torch.tensor([True, False, True])})
    30.434782608695652
    >>> count.widths({"0": torch.tensor([True, False, True])})["2"]
    Widths(inputs=2, outputs=2)
    """

    def __init__(
        self, model: nn.Module, example: Example, of: Literal["params", "macs"] = "params"
    ) -> None:
        self.of = of
        self._example: Any = example
        self._model = copy.deepcopy(model).eval()
        with torch.no_grad():
            for parameter in self._model.parameters():
                # One over the fan-in: nothing is zero, and no signal outgrows a float.
                parameter.fill_(1 / math.prod(parameter.shape[1:]))
        self._whole = {name: t.clone() for name, t in self._model.state_dict().items()}
        self._graph = trace(self._model)  # shares the parameters, and is traced once
        self.calls: list[LayerCall] = layer_calls(self._model, example)
        self._positions: dict[str, int] = {}
        for call in self.calls:
            at_each = call.outputs.numel() // len(call.module.weight)
            self._positions[call.name] = self._positions.get(call.name, 0) + at_each
        self.total = count_parameters(model)
        self.total_macs = self._macs(self.widths({}))

    def __call__(self, masks: Masks) -> float:
        """The percentage removed with ``masks`` (True = keep)."""
        if self.of == "macs":
            return 100 * (self.total_macs - self.sizes(masks).macs) / self.total_macs
        return 100 * (self.total - self.sizes(masks).parameters) / self.total

    def sizes(self, masks: Masks) -> Sizes:
        """Parameters and operations that are left."""
        plan = self._plan(masks)
        return Sizes(parameters_left(self._graph, plan), self._macs(self._widths(plan)))

    def widths(self, masks: Masks) -> dict[str, Widths]:
        """What is left of each convolution and linear layer."""
        return self._widths(self._plan(masks))

    def _plan(self, masks: Masks) -> RemovalPlan:
        self._model.load_state_dict(self._whole)
        apply_masks_(self._model, masks)
        return make_plan(self._graph, self._example)

    def _widths(self, plan: RemovalPlan) -> dict[str, Widths]:
        found: dict[str, Widths] = {}
        for node in self._graph.graph.nodes:
            step = plan[node.name]
            if step.kind in ("conv", "linear"):
                source = plan[sides(node)[0].name]
                found[str(node.target)] = Widths(len(source.kept), len(step.kept))
        return found

    def _macs(self, widths: Mapping[str, Widths]) -> int:
        total = 0
        for name, (inputs, outputs) in widths.items():
            layer: Any = self._graph.get_submodule(name)
            kernel = layer.weight[0, 0].numel()
            total += self._positions[name] * inputs * outputs * kernel
        return total

"""The share of a network that leaves with given masks, counted without building the smaller one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from spr_or.pruning.budget import Masks
from spr_or.pruning.compaction.plan import weight_shape
from spr_or.pruning.compaction.size import Sizes, Skeleton
from spr_or.pruning.compaction.weighted import WEIGHTED
from spr_or.pruning.counts import Example, count_parameters


class Counter:
    """The share of all parameters (or ``of="macs"``), in percent, that leaves with given masks.

    Only the masks decide: a weight that happens to be zero in an entity that is kept counts as
    kept. So the share is that of ``compact(model, masks, example)`` for weights that are not zero,
    and costs one forward pass of ``example``: a tensor (B, C, …), a tuple of positional inputs or a
    dict of keyword inputs. Where a layer keeps nothing at all, what follows is constant, and whether
    the constant is zero depends on shifts that training still moves: there the count can be off by
    the few parameters that carry it. Operations are those of convolutions and linear layers.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> count = Counter(model, torch.zeros(2, 4))
    >>> count({"0": torch.tensor([True, False, True])})
    30.434782608695652
    >>> count.weights({"0": torch.tensor([True, False, True])})["2"]
    (2, 2)
    """

    def __init__(
        self, model: nn.Module, example: Example, of: Literal["params", "macs"] = "params"
    ) -> None:
        self.of = of
        self._skeleton = Skeleton(model, example)
        self.total = count_parameters(model)
        self.total_operations = self.sizes({}).operations

    def __call__(self, masks: Masks) -> float:
        """The percentage removed with ``masks`` (True = keep)."""
        left = self.sizes(masks)
        if self.of == "macs":
            return 100 * (self.total_operations - left.operations) / self.total_operations
        return 100 * (self.total - left.parameters) / self.total

    def sizes(self, masks: Masks) -> Sizes:
        """Parameters and operations (of one sample) that are left."""
        return self._skeleton.left(masks)

    def weights(self, masks: Masks) -> dict[str, tuple[int, ...]]:
        """The shape that is left of the weight of each convolution and linear layer."""
        plan = self._skeleton.plan(masks)
        found = {}
        for node, decision in plan.decisions.items():
            weight = node.args[1] if node.target in WEIGHTED else None
            if isinstance(weight, torch.fx.Node) and weight.op == "get_attr":
                name = str(weight.target).rpartition(".")[0]
                found[name] = weight_shape(plan, node, decision)
        return found

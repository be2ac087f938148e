"""The lambda that empties each layer, for regularisers whose groups become exactly zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spr_or.methods.common.entity_rows import entity_rows
from spr_or.methods.common.entity_writes import entity_norms
from spr_or.methods.common.first_gradients import first_gradients
from spr_or.pruning.largest_lam import ORTHOGONAL
from spr_or.training.method import PruningTask


@dataclass(frozen=True)
class StepLength:
    """What a step of an optimiser moves in the long run: lr (1 - dampening) / (1 - momentum).

    ``lr`` is read from the optimiser, so it may be a tensor there. An optimiser without momentum
    moves lr.

    >>> net = torch.nn.Linear(1, 1)
    >>> round(StepLength(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)).now, 6)
    0.2
    """

    optimizer: torch.optim.Optimizer

    @property
    def scale(self) -> float:
        """(1 - dampening) / (1 - momentum)."""
        defaults = self.optimizer.defaults
        return (1 - defaults.get("dampening", 0.0)) / (1 - defaults.get("momentum", 0.0))

    @property
    def now(self) -> Any:
        """The length at the present rate."""
        return self.optimizer.param_groups[0]["lr"] * self.scale


def emptying_lams(task: PruningTask, prices: Sequence[Tensor], scale: float) -> list[float]:
    r"""The lambda that empties each layer, for a penalty lambda p_i ||w_i|| with prices p (N,) of a layer.

    Zero needs lambda p_i >= ||pull of entity i||, where the pull is that of
    `spr_or.pruning.largest_lam`: w_i / T for steps that add up to T, or, in front of a norm and where
    that is more, w_i (||g_i|| / (t ||w_i||))^{1/2} for steps of length t and the gradient g_i of a
    batch. ``scale`` is that of `StepLength`. The network is left as it was. Raises ``ValueError``
    where all weights are zero, or where the phase has no steps.
    """
    rates = [task.rate(epoch) * scale for epoch in range(task.epochs)]
    total = task.steps * sum(rates)
    if not total:
        raise ValueError("the pruning phase has no steps to shrink anything in: spr.epochs = 0")
    gradients = _gradient_norms(task)
    of_layers = []
    for layer, price, (gradient, unseen) in zip(task.layers, prices, gradients, strict=True):
        norm = entity_norms(layer)
        pull = norm / total
        if unseen:
            pull = torch.maximum(pull, (gradient * norm / max(rates)).sqrt())
        of_layers.append(float((pull / price).max()))
    if not any(of_layers):
        raise ValueError("all entities are zero at the start, so there is nothing to shrink")
    return of_layers


def _gradient_norms(task: PruningTask) -> list[tuple[Tensor, bool]]:
    """Of each layer ||g_i|| over batches, (N,), and whether the loss does not see the weights' scale."""
    weights = [rows.clone() for rows in entity_rows(task.layers).values()]
    squares = [rows.new_zeros(len(rows)) for rows in weights]
    radial, whole = [0.0] * len(squares), [0.0] * len(squares)
    batches = 0
    for gradients in first_gradients(task, task.layers):
        batches += 1
        for i, (gradient, rows) in enumerate(zip(gradients, weights, strict=True)):
            square = gradient.square().sum(1)
            squares[i] += square
            radial[i] += float((gradient * rows).sum(1).square().sum())
            whole[i] += float((square * rows.square().sum(1)).sum())
    means = [(square / max(1, batches)).sqrt() for square in squares]
    pairs = zip(means, radial, whole, strict=True)
    return [(mean, along <= ORTHOGONAL**2 * all_of_it) for mean, along, all_of_it in pairs]

"""Lambda of a regulariser whose groups become exactly zero, moved so that the budget is met."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spr_or.methods.common.entity_rows import entity_rows
from spr_or.methods.common.entity_writes import entity_norms
from spr_or.methods.common.first_gradients import first_gradients
from spr_or.pruning.budget import next_lam, reading_steps
from spr_or.pruning.largest_lam import ORTHOGONAL
from spr_or.pruning.steering import EASE
from spr_or.training.method import PruningTask


@dataclass
class BudgetedLam:
    """Lambda, where it began, and the shares that were zero so far, in percent.

    Attributes
    ----------
    target, epochs : the share that is to become zero, in percent, over so many epochs
    steps : of an epoch; long ones of short phases move lambda several times, see `reading_steps`
    last : lambda of the steps before the last reading
    ceiling : lambda never rises above it again once training has suffered
    lam : the present value; begins as ``start``
    moves : whether the budget moves it; a number that the user gave stays

    >>> lam = BudgetedLam(start=1.0, target=50.0, epochs=10)
    >>> lam.after_epoch(0.0), round(lam.lam, 6)  # nothing is zero yet, so it rises
    ({'lam': 1.0, 'zero_pct': 0.0}, 3.0)
    """

    start: float
    target: float
    epochs: int
    moves: bool = True
    steps: int = 0
    lam: float = field(init=False)
    last: float = field(init=False)
    ceiling: float = field(init=False, default=math.inf)
    shares: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.lam = self.last = self.start
        self.stops = reading_steps(self.epochs, self.steps)

    def is_read_after(self, step: int) -> bool:
        """Whether `read` is due when the epoch has had so many steps."""
        return self.moves and step in self.stops

    def read(self, zero_pct: float) -> None:
        """Take in the share that is zero now, and move."""
        self.shares.append(zero_pct)
        self.last = self.lam
        if self.moves:
            readings = len(self.stops) + 1
            lam = next_lam(self.lam, self.start, self.shares, self.target, self.epochs, readings)
            self.lam = min(lam, self.ceiling)

    def after_epoch(self, zero_pct: float) -> dict[str, float]:
        """The same after an epoch; returns what held in its last steps."""
        record = {"lam": self.lam, "zero_pct": zero_pct}
        self.read(zero_pct)
        return record

    def ease(self) -> None:
        """Go on below the lambda of the last steps, as `spr_or.pruning.steering.Steering` does."""
        if self.moves:
            self.ceiling = min(self.ceiling, EASE * self.last)
            self.lam = min(self.lam, self.ceiling)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "start": self.start,
            "lam": self.lam,
            "last": self.last,
            "ceiling": self.ceiling,
            "shares": list(self.shares),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """What `state` gave."""
        self.start, self.lam = float(state["start"]), float(state["lam"])
        self.last = float(state.get("last", self.lam))
        self.ceiling = float(state.get("ceiling", math.inf))
        self.shares = [float(share) for share in state["shares"]]


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

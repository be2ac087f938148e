"""Lambda of a regulariser whose groups become exactly zero, moved so that the budget is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spr_or.pruning.budget import next_lam
from spr_or.pruning.lam_words import FIRST_LAYER, START


@dataclass
class BudgetedLam:
    """Lambda, where it began, and the shares that were zero after each epoch so far, in percent.

    Attributes
    ----------
    target, epochs : the share that is to become zero, in percent, over so many epochs
    lam : the present value; begins as ``start``
    moves : whether the budget moves it; a number that the user gave stays

    >>> lam = BudgetedLam(start=1.0, target=50.0, epochs=10)
    >>> lam.after_epoch(0.0), lam.lam  # nothing is zero yet, so it rises
    ({'lam': 1.0, 'zero_pct': 0.0}, 3.0)
    """

    start: float
    target: float
    epochs: int
    moves: bool = True
    lam: float = field(init=False)
    shares: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.lam = self.start

    def after_epoch(self, zero_pct: float) -> dict[str, float]:
        """Take in the share that is zero; returns what held in the epoch."""
        record = {"lam": self.lam, "zero_pct": zero_pct}
        self.shares.append(zero_pct)
        if self.moves:
            self.lam = next_lam(self.lam, self.start, self.shares, self.target, self.epochs)
        return record

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"start": self.start, "lam": self.lam, "shares": list(self.shares)}

    def load(self, state: Mapping[str, Any]) -> None:
        """What `state` gave."""
        self.start, self.lam = float(state["start"]), float(state["lam"])
        self.shares = [float(share) for share in state["shares"]]


def starting_lam(norms: Sequence[Tensor], prices: Sequence[Tensor], total: float) -> float:
    r"""Where lambda begins: a share of the smallest lambda at which, without a loss, all is zero at the end.

    Shrinking ||w_i|| by lambda p_i in steps that add up to T makes entity i zero at
    lambda_i = ||w_i|| / (T p_i). The start is 2 % of the largest lambda_i, and at most 5 % of what
    empties some layer. ``norms`` and ``prices`` are (N,) for each layer. Raises ``ValueError``
    where all weights are zero.

    >>> starting_lam([torch.tensor([1.0, 2.0])], [torch.ones(2)], total=4.0)  # 2 % of 2 / 4
    0.01
    """
    if total <= 0:
        return 0.0
    of_layers = [float((n / (p * total)).max()) for n, p in zip(norms, prices, strict=True)]
    if not any(of_layers):
        raise ValueError("all entities are zero at the start, so there is nothing to shrink")
    return min(START * max(of_layers), FIRST_LAYER * min(x for x in of_layers if x > 0))

"""Which gates are zero, in which order they became so, and how many more may follow.

Gates that start at one under one L1 norm fall together, and many may reach zero in the same step. The
budget asks for a certain number: of those that a step would take to zero, only as many as are lacking go,
the smallest first, and the others stay where they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spr_or.methods.common.gates import kept_share
from spr_or.training.method import PruningTask


class ZeroGates:
    """The gates (n,) that are zero, of which there shall be ``wanted``.

    Attributes
    ----------
    idle : (n,), the steps since a gate became zero; 0 for those that are not zero
    last : (n,), what the step that made a gate zero had before the soft threshold

    >>> zero = ZeroGates(2, torch.ones(4))
    >>> before, trial = torch.tensor([0.3, 0.1, 0.2, 0.4]), torch.zeros(4)
    >>> zero.held(before, trial == 0, before).tolist()  # two are lacking
    [True, False, False, True]
    """

    def __init__(self, wanted: int, values: Tensor) -> None:
        self.wanted = wanted
        self.idle = torch.zeros_like(values.detach())
        self.last = torch.zeros_like(values.detach())

    def lacking(self, values: Tensor) -> Tensor:
        """How many more of ``values`` shall become zero, (); not below zero."""
        return (self.wanted - (values == 0).sum()).clamp(min=0)

    def held(self, values: Tensor, goes: Tensor, unshrunk: Tensor) -> Tensor:
        """Those of ``goes`` (n,) that must not become zero in this step, as a mask (n,).

        values : the gates before the step; those that are zero already are never held
        unshrunk : the values before the soft threshold, the smallest of which goes first
        """
        new = goes & (values != 0)
        order = torch.where(new, unshrunk, torch.inf).argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        return new & (rank >= self.lacking(values))

    def count(self, values: Tensor, unshrunk: Tensor) -> None:
        """Take in the gates after a step."""
        zero = values == 0
        self.last.copy_(torch.where(zero & (self.idle == 0), unshrunk, self.last))
        self.idle.add_(1).mul_(zero)

    def scores(self, values: Tensor) -> Tensor:
        """The magnitude of a gate; below zero for gates of zero: those that became so first are lowest.

        Of gates that became zero in the same step the smallest before the threshold is lowest.

        >>> zero = ZeroGates(3, torch.ones(4))
        >>> zero.count(torch.tensor([0.0, 0.0, 1.0, 0.5]), torch.tensor([0.2, 0.1, 1.0, 0.6]))
        >>> zero.count(torch.tensor([0.0, 0.0, 0.0, 0.5]), torch.tensor([0.0, 0.0, 0.1, 0.6]))
        >>> zero.scores(torch.tensor([0.0, 0.0, 0.0, 0.5])).tolist()
        [-2.0, -3.0, -1.0, 0.5]
        """
        order = self.last.argsort(stable=True)
        order = order[
            (-self.idle[order]).argsort(stable=True)
        ]  # zeros first, the longest so at all
        place = torch.empty_like(values)
        place[order] = torch.arange(len(order), device=values.device, dtype=values.dtype)
        zero = values == 0
        return torch.where(zero, place - zero.sum(), values.abs())

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"idle": self.idle.clone(), "last": self.last.clone()}

    def load(self, state: Mapping[str, Any]) -> None:
        """What `state` gave."""
        self.idle.copy_(state["idle"])
        if "last" in state:  # checkpoints of before had no order within a step
            self.last.copy_(state["last"])


def zero_gates(task: PruningTask, values: Tensor) -> ZeroGates:
    """Of the gates (n,) as large a share is to be zero as the budget asks for."""
    share = 1 - kept_share(task)
    return ZeroGates(math.ceil(share * len(values) - 1e-6), values)

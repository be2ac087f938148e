"""Accelerated proximal gradient steps: FISTA with restarts, for many problems at a time.

The method of Beck and Teboulle (SIAM J. Imaging Sci. 2, 2009) with the adaptive restart of O'Donoghue
and Candes (Found. Comput. Math. 15, 2015).  The caller defines the problem: it passes
the proximal gradient step and decides when to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Iterate(NamedTuple):
    """B problems: the points ``at`` (B, ...), the points ``ahead`` (B, ...) where the next step
    starts, and ``t`` (B,), the momentum of each."""

    at: Tensor
    ahead: Tensor
    t: Tensor

    @classmethod
    def from_rest(cls, at: Tensor) -> Iterate:
        """The iterate at ``at`` (B, ...) without momentum."""
        return cls(at, at, at.new_ones(len(at)))

    def of(self, rows: Tensor) -> Iterate:
        """The problems ``rows``, an index or a mask."""
        return Iterate(self.at[rows], self.ahead[rows], self.t[rows])


def advance(
    iterate: Iterate, proximal_step: Callable[[Tensor], Tensor], metric: Tensor | float = 1.0
) -> Iterate:
    """One step: ``proximal_step`` maps ``ahead`` (B, ...) to the new points (B, ...).

    ``metric`` holds the inverse step sizes where coordinates have different ones; it broadcasts
    against (B, ...).  The momentum of a problem is reset when its new point moves back.

    >>> half = lambda x: x / 2  # a step towards the minimum at 0
    >>> iterate = Iterate.from_rest(torch.tensor([[1.0]]))
    >>> for _ in range(20):
    ...     iterate = advance(iterate, half)
    >>> float(iterate.at) < 1e-6
    True
    """
    following = proximal_step(iterate.ahead)
    move = following - iterate.at
    turns = (metric * (iterate.ahead - following) * move).flatten(1).sum(-1) > 0
    t = torch.where(turns, 1.0, iterate.t)
    grown = (0.25 + t.square()).sqrt_() + 0.5
    momentum = ((t - 1) / grown).view(-1, *[1] * (move.dim() - 1))
    return Iterate(following, torch.addcmul(following, momentum, move), grown)

"""Formulation (4): the perspective reformulation of the big-M program."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def penalty(w: Tensor, y: Tensor, alpha: float) -> Tensor:
    """alpha ||w||^2 / y + (1 - alpha) y of each entity: w (..., N, k), y (..., N) -> (..., N); eq. (4).

    The closure of the perspective at y = 0: 0 where w = 0, +inf elsewhere.

    >>> w, y = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([0.5, 0.0])
    >>> penalty(w, y, alpha=0.5).tolist()
    [25.25, 0.0]
    """
    squared = w.square().sum(-1)
    closure = torch.where(squared > 0, math.inf, 0.0).to(squared)
    quadratic = torch.where(y > 0, squared / torch.where(y > 0, y, 1.0), closure)
    return alpha * quadratic + (1 - alpha) * y

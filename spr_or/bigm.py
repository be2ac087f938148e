"""Formulation (1)-(3): the big-M mixed-integer program of sparse training."""

from __future__ import annotations

from torch import Tensor


def penalty(w: Tensor, y: Tensor, alpha: float) -> Tensor:
    """alpha ||w||^2 + (1 - alpha) y of each entity: w (..., N, k), y (..., N) -> (..., N); eq. (1).

    >>> import torch
    >>> penalty(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0]), alpha=0.5).item()
    13.0
    """
    return alpha * w.square().sum(-1) + (1 - alpha) * y

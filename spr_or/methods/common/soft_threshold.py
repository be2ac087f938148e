"""The soft threshold, which makes small numbers exactly zero."""

from __future__ import annotations

from torch import Tensor


def soft_threshold(x: Tensor, threshold: Tensor | float) -> Tensor:
    """sign(x) max(|x| − threshold, 0), the proximal operator of threshold · |x|.

    >>> import torch
    >>> soft_threshold(torch.tensor([-2.0, 0.5, 3.0]), 1.0).tolist()
    [-1.0, 0.0, 2.0]
    """
    return x.sign() * (x.abs() - threshold).clamp(min=0)

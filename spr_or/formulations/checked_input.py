"""Numbers as users give them, checked and in float64; an error names the argument, place and value."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def finite_array(value: Any, name: str) -> Tensor:
    """An array-like as a float64 tensor on the CPU; ``ValueError`` if it is empty or not finite."""
    try:
        plain = value.detach().cpu().double().numpy() if torch.is_tensor(value) else value
        array = np.array(plain, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a rectangular array of numbers: {error}") from None
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} is empty or a single number: shape {array.shape}")
    if not np.isfinite(array).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(
            f"{name} holds {array[place]} at index {place}: every entry must be finite"
        )
    return torch.from_numpy(array)


def finite_number(value: Any, name: str) -> float:
    """A value as a float; ``ValueError`` if it is not a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not np.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def positive_per_entity(value: Any, name: str, count: int) -> Tensor:
    """A positive number, or ``count`` of them, as a tensor (count,); ``ValueError`` otherwise."""
    if np.ndim(value) == 0:
        value = np.full(count, finite_number(value, name))
    array = finite_array(value, name)
    if array.shape != (count,):
        raise ValueError(
            f"{name} must be one number or one per entity, shape ({count},), "
            f"got {tuple(array.shape)}"
        )
    if not bool((array > 0).all()):
        i = int((array <= 0).nonzero()[0])
        raise ValueError(f"{name} must be positive, got {array[i]:g} for entity {i}")
    return array

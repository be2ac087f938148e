"""The problem that the closed form claims to solve, solved numerically, and comparisons with it."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from projected_batches import Array
from torch import Tensor


def golden(f: Callable[[Array], Array], low: Array, high: Array, steps: int = 90) -> Array:
    """The minimisers of a batch of convex functions on [low, high], by golden-section search."""
    shrink = (math.sqrt(5) - 1) / 2
    a, b = low.astype(float), high.astype(float)
    for _ in range(steps):
        left, right = b - shrink * (b - a), a + shrink * (b - a)
        smaller = f(left) <= f(right)
        a, b = np.where(smaller, a, left), np.where(smaller, right, b)
    # The minimum often sits on an end of the interval, which the search approaches but never hits.
    candidates = np.stack([low, (a + b) / 2, high])
    values = np.stack([f(c) for c in candidates])
    return np.take_along_axis(candidates, values.argmin(0)[None], 0)[0]


def perspective(w: Array, y: Array, alpha: float) -> Array:
    """alpha ||w||^2 / y + (1 - alpha) y, +inf where y = 0 and w is not."""
    squares = (w * w).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return alpha * np.where(squares == 0, 0, squares / y) + (1 - alpha) * y


def minimum_over_y(
    w: Array, alpha: float, M: Array, lower: float = 0, upper: float = 1
) -> tuple[Array, Array]:
    """The least perspective value over the indicators that |w_j| <= M y and the node admit."""
    smallest = np.clip(np.maximum(np.abs(w).max(-1) / M, lower), 1e-30, upper)
    # In log y the function stays convex and an optimum many decades below 1 is found too.
    s = golden(
        lambda s: perspective(w, np.exp(s), alpha),
        np.log(smallest),
        np.full(len(w), np.log(upper)),
    )
    y = np.clip(np.exp(s), smallest, upper)
    values = perspective(w, y, alpha)
    if lower == 0:
        zero = (w == 0).all(-1)
        y, values = np.where(zero, 0, y), np.where(zero, 0, values)
    return values, y


def close(
    actual: Tensor | Array, expected: Tensor | Array | list, rtol: float, atol: float = 0
) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol)


def holds(ok: Tensor | NDArray[np.bool_], **shown: object) -> None:
    """Assert a condition on all rows; the message shows the first row that breaks it."""
    broken = (~torch.as_tensor(ok)).nonzero()
    if len(broken):
        row = int(broken[0, 0])
        values = {n: torch.as_tensor(v) for n, v in shown.items()}
        raise AssertionError(
            f"{len(broken)} entries break it, first row {row}: "
            + ", ".join(f"{n} = {(v[row] if v.dim() else v).tolist()}" for n, v in values.items())
        )

"""Batches of entities at which the closed form is tested: weights, slopes and proximal points.

Every hypothesis example is a batch of rows, so a run covers tens of thousands of entities.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
ROWS = 96

alphas = st.sampled_from([0.0, 1e-6, 0.01, 0.5, 0.99, 1 - 1e-6, 1.0]) | st.floats(1e-9, 1 - 1e-9)
inner_alphas = st.sampled_from([1e-4, 0.01, 0.5, 0.9]) | st.floats(1e-6, 1 - 1e-6)
sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Batch:
    """Entities as rows: w (ROWS, k), M (ROWS,), with ||w||_inf <= M unless said otherwise."""

    w: Tensor
    alpha: float
    M: Tensor
    rng: np.random.Generator

    @property
    def k(self) -> int:
        return self.w.shape[1]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints for a failing example; `holds` adds the row."""
        printer.text(f"Batch(alpha={self.alpha!r}, k={self.k})")


@st.composite
def batches(draw: st.DrawFn, alphas: st.SearchStrategy[float] = alphas) -> Batch:
    alpha, k, rng = draw(alphas), draw(sizes), np.random.default_rng(draw(seeds))
    direction = directions(rng, k)
    norm = np.maximum(np.linalg.norm(direction, axis=1), 1)
    ratio = math.sqrt(alpha / (1 - alpha)) if alpha < 1 else math.inf
    # A third of the rows lie around c = 1, where NORM meets FULL, a third around b = c, where NORM
    # meets BOUND, and a third anywhere.
    kind = rng.integers(0, 3, ROWS)
    peak = 10 ** rng.uniform(-4, 4, ROWS)
    at_one = np.clip(10 ** rng.uniform(-2, 0.5, ROWS) / (norm * max(ratio, 1e-9)), 1e-4, 1e4)
    peak = np.where(kind == 0, at_one, peak)
    factor = 10 ** rng.uniform(0, 4, ROWS)
    meeting = 10 ** rng.uniform(-0.3, 0.3, ROWS) / (norm * peak * max(ratio, 1e-9))
    factor = np.where(kind == 1, np.clip(meeting, 1, 1e6), factor)
    return Batch(
        torch.from_numpy(direction * peak[:, None]), alpha, torch.from_numpy(peak * factor), rng
    )


def directions(rng: np.random.Generator, k: int) -> Array:
    """Rows with ||d||_inf = 1: Gaussian, sparse, with ties, and a few that are all zero."""
    d = rng.standard_normal((ROWS, k))
    d[::4] = np.sign(d[::4])
    d[1::4] *= rng.random((len(d[1::4]), k)) < 0.5
    peak = np.abs(d).max(1, keepdims=True)
    d = np.where(peak > 0, d / np.where(peak > 0, peak, 1), 0)
    d[:2] = 0
    return d


def slopes(batch: Batch) -> Tensor:
    """Rows u around the border of the conjugate's flat part, where sum phi(u_j) = 1 - alpha."""
    direction = directions(batch.rng, batch.k)
    natural = 2 * math.sqrt(batch.alpha * (1 - batch.alpha)) + 1 / batch.M.numpy()
    scale = natural * 10 ** batch.rng.uniform(-1.5, 1.5, ROWS)
    return torch.from_numpy(direction * scale[:, None])


def proximal_points(batch: Batch) -> tuple[Tensor, Tensor]:
    """v (ROWS, k) and steps (ROWS,) from where the prox is zero to where it barely moves v."""
    v = slopes(batch)
    step = torch.from_numpy(10 ** batch.rng.uniform(-3, 3, ROWS))
    return v * step.unsqueeze(-1) + batch.w, step

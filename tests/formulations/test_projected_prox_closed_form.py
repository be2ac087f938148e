"""The closed form of the prox and the search for the others, against a bisection written here."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from projected_batches import Array, Batch, batches, proximal_points
from projected_reference import holds
from torch import Tensor

from spr_or.formulations import projected
from spr_or.formulations.projected_prox import BLOCK, LONG


def by_bisection(
    v: Array, step: Array, alpha: float, M: Array, lower: float = 0.0, upper: float = 1.0
) -> Array:
    """The proximal points of v (N, k), M (N, k): y from its derivative, which falls as y grows.

    Written from the definition, in double precision: for a given y each weight is a parabola on an
    interval, and the derivative in y of what is left is t (1 - alpha) - sum_j psi_j.
    """
    v, t, M = v.astype(float), step.astype(float)[:, None], M.astype(float)
    size = np.abs(v)

    def gains(y: Array) -> Array:
        s = y + 2 * t * alpha
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            r = np.where(size > 0, np.minimum(size / s, M), 0)
        psi = t * alpha * r * r + M * np.maximum(size - M * s, 0)
        return psi.sum(1, keepdims=True) > t * (1 - alpha)

    low, high = np.full_like(t, lower), np.full_like(t, upper)
    stays_low, goes_high = ~gains(low), gains(high)
    for _ in range(160):
        middle = (low + high) / 2
        up = gains(middle)
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    y = np.where(stays_low, lower, np.where(goes_high, upper, (low + high) / 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.where(y > 0, v * (y / (y + 2 * t * alpha)), 0)
    return np.clip(w, -M * y, M * y)


def agrees(p: Tensor, v: Tensor, expected: Array, rtol: float) -> None:
    """Within rtol of the largest weight: y is a difference of numbers of that size."""
    size = v.double().abs().amax(-1, keepdim=True)
    error = (p.double() - torch.from_numpy(expected)).abs()
    holds(error <= rtol * size, v=v, p=p, expected=torch.from_numpy(expected))


@pytest.mark.parametrize("lower, upper", [(0.0, 1.0), (1.0, 1.0), (0.2, 0.7)])
@given(batches())
@settings(max_examples=30)
def test_double_precision_is_the_bisection(lower: float, upper: float, batch: Batch) -> None:
    v, step = proximal_points(batch)
    p = projected.prox(v, step, batch.alpha, batch.M, lower=lower, upper=upper)
    M = np.broadcast_to(batch.M.numpy()[:, None], v.shape)
    agrees(p, v, by_bisection(v.numpy(), step.numpy(), batch.alpha, M, lower, upper), 1e-12)


@given(batches())
@settings(max_examples=30)
def test_a_bound_for_each_weight_is_the_bisection(batch: Batch) -> None:
    v, step = proximal_points(batch)
    M = batch.M.numpy()[:, None] * 10 ** batch.rng.uniform(-1.5, 1.5, v.shape)
    p = projected.prox(v, step, batch.alpha, torch.from_numpy(M))
    agrees(p, v, by_bisection(v.numpy(), step.numpy(), batch.alpha, M), 1e-12)


def layer(seed: int, k: int, kind: str, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Rows (24, k) as a layer in training has them, and a bound."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(24, k, generator=generator, dtype=torch.float64) * (2 / k) ** 0.5
    if kind == "capped":  # many weights at the bound of an earlier step, moved a little
        cap = v.abs().amax() * 0.4
        noise = torch.randn(24, k, generator=generator, dtype=torch.float64)
        v = v.clamp(-cap, cap) + 1e-4 * cap * noise
    if kind == "mixed":  # rows of every scale, zeros among rows and weights
        v *= torch.logspace(-6, 0.5, 24, dtype=torch.float64).unsqueeze(1)
        v[::5] = 0
        v[:, 1::3] = 0
    M = float(v.abs().max())
    return v.to(dtype), M


@pytest.mark.parametrize("kind", ["plain", "capped", "mixed"])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 37, LONG, LONG + 1, LONG + 3 * BLOCK])
def test_rows_of_layers_in_both_precisions(k: int, alpha: float, kind: str) -> None:
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        v, M = layer(k, k, kind, dtype)
        for size in (1e-12, 1e-3, 0.1, 30.0):
            step = torch.full((24,), size, dtype=dtype)
            p = projected.prox(v, step, alpha, M)
            bound = np.full(v.shape, np.float64(torch.tensor(M, dtype=dtype)))
            expected = by_bisection(v.numpy(), step.double().numpy(), alpha, bound)
            assert bool((p.abs() <= torch.tensor(M, dtype=dtype)).all())
            if dtype == torch.float64:
                agrees(p, v, expected, rtol)
            else:  # rounding of s moves y by as much as s rounds, whatever is left of it
                shift = 1 + 2 * size * alpha * M / max(float(v.abs().max()), 1e-30)
                agrees(p, v, expected, rtol * shift)


@pytest.mark.parametrize("k", [30, LONG])
def test_every_regime_and_the_zeros_are_met(k: int) -> None:
    """The layers above are not all of one kind: free, at the bound, and zero in either way."""
    v, M = layer(1, k, "mixed", torch.float64)
    met = set()
    for alpha in (0.1, 0.5):
        for step in (1e-3, 0.05, 0.3):
            p = projected.prox(v, step, alpha, 0.3 * M)
            zero = (p == 0).all(1)
            factor = (p / v).nan_to_num(0.0)
            largest = factor.amax(1, keepdim=True)
            clipped = ((factor < largest * (1 - 1e-9)) & (v != 0)).any(1) & ~zero
            met |= {"zero"} if bool(zero[v.any(1)].any()) else set()
            met |= {"clipped"} if bool(clipped.any()) else set()
            met |= {"free"} if bool((~clipped & ~zero).any()) else set()
    assert met == {"zero", "clipped", "free"}


def test_rows_that_the_blocks_mislead_are_solved_again() -> None:
    """Where many weights of a block are clipped, and where all are."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((40, 2 * LONG)) * 0.01
    v[:20, : 4 * BLOCK] += 1.0  # four whole blocks stand out
    v[20:] = 1 + 1e-9 * rng.standard_normal((20, 2 * LONG))
    for alpha in (1e-6, 0.1, 0.9):
        for step in (1e-3, 0.5, 20.0):
            for bound in (1e-2, 0.5, 1.2):
                M = np.full(v.shape, bound)
                expected = by_bisection(v, np.full(40, step), alpha, M)
                p = projected.prox(torch.from_numpy(v), step, alpha, bound)
                agrees(p, torch.from_numpy(v), expected, 1e-11)


def test_bfloat16_is_the_bisection_rounded() -> None:
    v, M = layer(3, 600, "plain", torch.bfloat16)
    p = projected.prox(v, 0.02, 0.1, M)
    expected = by_bisection(v.float().numpy(), np.full(24, 0.02), 0.1, np.full(v.shape, M))
    assert p.dtype == torch.bfloat16
    agrees(p, v, expected, 2**-8)

"""The gradient against difference quotients, the subgradient inequality and autograd."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from projected_batches import (
    Batch,
    batches,
    inner_alphas,
    seeds,
    sizes,
)
from projected_reference import holds
from torch import Tensor

from spr_or.formulations import projected
from spr_or.formulations.projected import Regime


@pytest.mark.parametrize("variant", projected.VARIANTS)
@given(batches())
def test_gradient_is_the_difference_quotient_inside_a_regime(variant: str, batch: Batch) -> None:
    w, alpha, M = batch.w, batch.alpha, batch.M
    magnitude = w.abs()
    peak = magnitude.amax(-1)
    h = 1e-6 * peak
    # Keep rows where the largest weight is one alone and a step changes no regime.
    runner_up = magnitude.sort(-1).values[:, -2] if batch.k > 1 else torch.zeros_like(peak)
    smooth = (peak > 0) & (peak - runner_up > 4 * h)
    regime = projected.regime(w, alpha, M)
    gradient = projected.gradient(w, alpha, M, variant)
    z = projected.value(w, alpha, M, variant)
    for j in range(batch.k):
        step = torch.zeros_like(w)
        step[:, j] = h
        for side in (step, -step):
            smooth &= projected.regime(w + side, alpha, M) == regime
        up, down = (projected.value(w + side, alpha, M, variant) for side in (step, -step))
        slope = (up - down) / (2 * h)
        tolerance = 1e-7 * gradient.abs().amax(-1) + 8e-16 * z / h
        assert ((slope - gradient[:, j]).abs() <= tolerance)[smooth].all()
    assert smooth.any() or batch.k > 1 or not (peak > 0).any()


@given(batches())
def test_gradient_is_a_subgradient_everywhere(batch: Batch) -> None:
    """z(x) >= z(w) + <g, x - w> for all x in the box: ties, corners and zero rows included."""
    z = projected.value(batch.w, batch.alpha, batch.M)
    g = projected.gradient(batch.w, batch.alpha, batch.M)
    M = batch.M.unsqueeze(-1)
    others = torch.from_numpy(batch.rng.uniform(-1, 1, (20, *batch.w.shape))) * M
    others[10:] = (batch.w + 1e-3 * others[10:]).clamp(-M, M)
    plane = z + (g * (others - batch.w)).sum(-1)
    beyond = projected.value(others, batch.alpha, batch.M)
    scale = z.abs() + (g.abs() * (others.abs() + batch.w.abs())).sum(-1)
    assert (beyond >= plane - 1e-13 * scale).all()


def _jump(w: Tensor, direction: Tensor, eps: float, alpha: float, M: Tensor, f: Callable) -> float:
    return (f(w + eps * direction, alpha, M) - f(w - eps * direction, alpha, M)).abs().max().item()


@given(inner_alphas, st.integers(2, 6), seeds)
def test_value_and_gradient_are_continuous_across_b_equal_c(
    alpha: float, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(rng.standard_normal((1, k)))
    w[0, 0] = 1.5 * w.abs().amax()
    ratio = math.sqrt(alpha / (1 - alpha))
    w /= 2 * ratio * w.norm()  # c = 1/2
    M = w.abs().amax(-1) * 2  # b = 1/2
    direction = torch.zeros_like(w)
    direction[0, 0] = w[0, 0]  # a larger first weight raises b faster than c
    _assert_linear_crossing(w, direction, alpha, M, Regime.BOUND, Regime.NORM)


@given(inner_alphas, sizes, seeds)
def test_value_and_gradient_are_continuous_across_c_equal_one(
    alpha: float, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(rng.standard_normal((1, k)))
    w /= math.sqrt(alpha / (1 - alpha)) * w.norm()  # c = 1
    M = w.abs().amax(-1) * rng.uniform(1.1, 100)
    _assert_linear_crossing(w, w, alpha, M, Regime.FULL, Regime.NORM)


def _assert_linear_crossing(
    w: Tensor, direction: Tensor, alpha: float, M: Tensor, after: Regime, before: Regime
) -> None:
    z, g = projected.value(w, alpha, M).max(), projected.gradient(w, alpha, M).abs().max()
    for eps in (1e-3, 1e-5, 1e-7):
        assert projected.regime(w + eps * direction, alpha, M).item() == after
        assert projected.regime(w - eps * direction, alpha, M).item() == before
        assert _jump(w, direction, eps, alpha, M, projected.value) <= 20 * eps * z
        assert _jump(w, direction, eps, alpha, M, projected.gradient) <= 20 * eps * g


def test_ties_share_the_slope_and_zero_rows_have_none() -> None:
    w = torch.tensor([[0.5, -0.5, 0.1], [0.0, 0.0, 0.0]], dtype=torch.float64)
    g = projected.gradient(w, 0.0, 2.0)
    assert g.tolist() == [[0.25, -0.25, 0.0], [0.0, 0.0, 0.0]]
    for variant in projected.VARIANTS:
        for alpha in (0.0, 0.3, 1.0):
            assert projected.value(w, alpha, 2.0, variant)[1] == 0
            assert (projected.gradient(w, alpha, 2.0, variant)[1] == 0).all()


@given(batches())
def test_autograd_of_the_value_agrees_with_the_gradient(batch: Batch) -> None:
    """A user may differentiate `value` instead: same subgradient, also at ties and at zero."""
    w = batch.w.clone().requires_grad_()
    projected.value(w, batch.alpha, batch.M).sum().backward()
    g = projected.gradient(batch.w, batch.alpha, batch.M)
    assert w.grad is not None
    holds(
        (w.grad - g).abs() <= 1e-9 * g.abs().amax(-1, keepdim=True),
        w=batch.w, M=batch.M, autograd=w.grad, gradient=g,
    )  # fmt: skip


@pytest.mark.parametrize("k", [1, 3])
def test_a_weight_at_its_bound_has_the_slope_towards_zero(k: int) -> None:
    """Beyond M nothing is allowed, so the derivative there is that from below; autograd's, too."""
    alpha, M, h = 0.05, 2.0, 1e-6
    w = torch.tensor([[-M, 0.3, 0.1][:k]], dtype=torch.float64)
    inside = w.clone()
    inside[0, 0] += h
    slope = (projected.value(inside, alpha, M) - projected.value(w, alpha, M)).item() / h
    x = w.clone().requires_grad_()
    projected.value(x, alpha, M).sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].item() == pytest.approx(slope, rel=1e-5)
    assert projected.gradient(w, alpha, M)[0, 0].item() == pytest.approx(slope, rel=1e-5)


def test_no_function_needs_autograd() -> None:
    with torch.inference_mode():
        w = torch.randn(4, 3)
        for f in (projected.value, projected.indicator, projected.gradient, projected.conjugate):
            assert not f(w, 0.3, 2.0).requires_grad
        assert not projected.prox(w, 0.1, 0.3, 2.0).requires_grad

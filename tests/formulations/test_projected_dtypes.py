"""Lower precision and extreme numbers: results stay close to those of float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from projected_batches import (
    Batch,
    batches,
    proximal_points,
    slopes,
)
from projected_reference import close, holds

from spr_or.formulations import projected

EPSILON = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(batches())
@settings(max_examples=40)
def test_lower_precision_gives_its_dtype_and_stays_close(dtype: torch.dtype, batch: Batch) -> None:
    v, step = (x.to(dtype) for x in proximal_points(batch))
    w, alpha, M, eps = batch.w.to(dtype), batch.alpha, batch.M, EPSILON[dtype]
    M = torch.maximum(M, w.double().abs().amax(-1) * 1.001)
    for f in (projected.value, projected.indicator):
        result = f(w, alpha, M)
        assert result.dtype == dtype
        close(result.double(), f(w.double(), alpha, M), rtol=eps, atol=1e-37)
    # Gradient and prox are compared relative to the terms they are differences of.
    g, exact = projected.gradient(w, alpha, M), projected.gradient(w.double(), alpha, M)
    assert g.dtype == dtype
    slope = exact.abs().amax(-1, keepdim=True)
    holds((g.double() - exact).abs() <= 10 * eps * slope, w=w, M=M, actual=g, exact=exact)
    p = projected.prox(v, step, alpha, M)
    exact = projected.prox(v.double(), step.double(), alpha, M)
    assert p.dtype == dtype
    size = v.double().abs().amax(-1, keepdim=True)
    holds((p.double() - exact).abs() <= 10 * eps * size, v=v, step=step, M=M, p=p, exact=exact)
    u = slopes(batch).to(dtype)
    c, exact = projected.conjugate(u, alpha, M), projected.conjugate(u.double(), alpha, M)
    assert c.dtype == dtype
    terms = 1 + M * u.double().abs().sum(-1)
    holds((c.double() - exact).abs() <= eps * terms, u=u, M=M, actual=c, exact=exact)


def test_bfloat16_is_float32_rounded_once() -> None:
    w = torch.randn(50, 7).bfloat16()
    for f in (projected.value, projected.indicator, projected.gradient, projected.conjugate):
        assert torch.equal(f(w, 0.2, 5.0), f(w.float(), 0.2, 5.0).bfloat16())
    assert torch.equal(
        projected.prox(w, 0.3, 0.2, 5.0), projected.prox(w.float(), 0.3, 0.2, 5.0).bfloat16()
    )


MIXED = torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def _extremes(scales: list[float]) -> list[tuple[float, float, float]]:
    """Scale of the weights, alpha, M: in step with the weights, one, or so large it never binds.

    Left out: alpha = 0 where z = ||w||_inf / M itself is too small a number for float32.
    """
    return [
        (scale, alpha, M)
        for scale in scales
        for alpha in (0.0, 0.1, 1.0)
        for M in (2 * scale, 1.0, 2e30)
        if alpha > 0 or scale / M > 1e-37
    ]


@pytest.mark.parametrize("scale, alpha, M", _extremes([1e-30, 1e-20, 1.0, 1e20, 1e30]))
def test_extreme_weights_in_float32(scale: float, alpha: float, M: float) -> None:
    """The squares of such weights leave float32: nothing but a true overflow may show it."""
    w = MIXED * scale
    for f in (projected.value, projected.indicator, projected.gradient):
        exact = f(w.double(), alpha, M)
        expected = torch.where(exact > torch.finfo(torch.float32).max, math.inf, exact)
        close(f(w, alpha, M).double(), expected, rtol=2e-6, atol=1e-38)


@pytest.mark.parametrize("scale, alpha, M", _extremes([1e-30, 1e-20, 1.0, 1e15]))
def test_extreme_prox_in_float32(scale: float, alpha: float, M: float) -> None:
    w = MIXED * scale
    for step in (0.1 * scale, 10 * scale, 1.0):
        p = projected.prox(w, step, alpha, M)
        exact = projected.prox(w.double(), step, alpha, M)
        holds((p - exact).abs() <= 1e-5 * scale, step=step, p=p, exact=exact)

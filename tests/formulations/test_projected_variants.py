"""The variants "printed" and "authors2022" against their tables and against the exact form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from projected_batches import (
    Array,
    Batch,
    batches,
)
from projected_reference import close

from spr_or.formulations import projected


def _table(w: Array, alpha: float, M: float, variant: str) -> float:
    """The rows of the table that the paper prints and that the authors' code of 2022 computed."""
    a, largest = float(np.sqrt(w @ w)), float(np.abs(w).max())
    if a == 0:
        return 0.0
    b = largest / M
    c = math.inf if alpha == 1 else math.sqrt(alpha / (1 - alpha)) * a
    if b <= c <= 1:
        over = (1 - alpha) / alpha if variant == "printed" else alpha / (1 - alpha)
        return math.sqrt(over) * (1 + alpha) * a
    if c <= b <= 1:
        return M * a**2 / largest + (1 - alpha) * largest / M
    return a**2 + (1 - alpha)


@pytest.mark.parametrize("variant", ["printed", "authors2022"])
@given(batches())
def test_other_variants_follow_their_table(variant: str, batch: Batch) -> None:
    expected = [
        _table(w, batch.alpha, M, variant)
        for w, M in zip(batch.w.numpy(), batch.M.numpy(), strict=True)
    ]
    close(projected.value(batch.w, batch.alpha, batch.M, variant), expected, 1e-11)


@given(batches())
def test_the_variant_changes_neither_regime_nor_indicator(batch: Batch) -> None:
    for variant in ("printed", "authors2022"):
        for f in (projected.regime, projected.indicator):
            assert torch.equal(
                f(batch.w, batch.alpha, batch.M), f(batch.w, batch.alpha, batch.M, variant)
            )


@given(batches())
def test_the_printed_value_is_never_below_the_exact_one(batch: Batch) -> None:
    """It lost a factor alpha <= 1: too large a penalty, hence no relaxation."""
    exact = projected.value(batch.w, batch.alpha, batch.M)
    assert (projected.value(batch.w, batch.alpha, batch.M, "printed") >= exact * (1 - 1e-12)).all()


def test_the_authors_variant_jumps_where_the_exact_one_is_continuous() -> None:
    w = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    alpha = 0.2
    w /= math.sqrt(alpha / (1 - alpha)) * w.norm()
    values = [
        projected.value(w * s, alpha, 100.0, "authors2022").item() for s in (1 - 1e-9, 1 + 1e-9)
    ]
    assert values[1] - values[0] > 1

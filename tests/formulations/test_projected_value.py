"""Value, indicator and regime of the closed form against a numeric minimum over the indicator y."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from projected_batches import Batch, batches
from projected_reference import close, minimum_over_y, perspective
from scipy import optimize

from spr_or.formulations import projected
from spr_or.formulations.projected import Regime


@given(batches())
def test_value_is_the_minimum_over_the_indicator(batch: Batch) -> None:
    expected, y = minimum_over_y(batch.w.numpy(), batch.alpha, batch.M.numpy())
    close(projected.value(batch.w, batch.alpha, batch.M), expected, rtol=1e-10)
    # A minimiser is known to about the square root of the value's precision.
    close(projected.indicator(batch.w, batch.alpha, batch.M), y, rtol=1e-5)


@given(batches())
def test_indicator_is_feasible_and_attains_the_value(batch: Batch) -> None:
    y = projected.indicator(batch.w, batch.alpha, batch.M).numpy()
    w, M = batch.w.numpy(), batch.M.numpy()
    assert (y <= 1).all() and (y * M * (1 + 1e-14) >= np.abs(w).max(-1)).all()
    z = projected.value(batch.w, batch.alpha, batch.M).numpy()
    close(z, perspective(w, y, batch.alpha), 1e-12)
    for other in np.linspace(0.001, 1, 50):
        feasible = np.maximum(other, np.abs(w).max(-1) / M)
        assert (z <= perspective(w, feasible, batch.alpha) * (1 + 1e-12)).all()


@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.5, 0.97, 1.0])
def test_value_against_scipy(alpha: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        w = rng.standard_normal(3) * 10 ** rng.uniform(-2, 1)
        M = np.abs(w).max() * 10 ** rng.uniform(0, 2)
        floor = np.abs(w).max() / M
        found = optimize.minimize_scalar(
            lambda y, w=w: alpha * w @ w / y + (1 - alpha) * y,
            bounds=(floor, 1),
            method="bounded",
            options={"xatol": 1e-12},
        )
        value = projected.value(torch.from_numpy(w)[None], alpha, M).item()
        ends = min(alpha * w @ w / y + (1 - alpha) * y for y in (floor, 1.0))
        assert value == pytest.approx(min(found.fun, ends), rel=1e-9)


@given(batches())
def test_regime_says_which_bound_holds_the_indicator(batch: Batch) -> None:
    """NORM: y is a free stationary point.  BOUND: y is held by the largest weight.  FULL: by 1."""
    regime = projected.regime(batch.w, batch.alpha, batch.M).numpy()
    y = projected.indicator(batch.w, batch.alpha, batch.M).numpy()
    w, M, alpha = batch.w.numpy(), batch.M.numpy(), batch.alpha
    some = np.abs(w).max(-1) > 0
    slope = (1 - alpha) - alpha * np.where(some, (w * w).sum(-1) / np.where(some, y, 1) ** 2, 0)
    near = 1e-9
    norm, bound, full = (some & (regime == r) for r in Regime)
    assert (np.abs(slope[norm]) <= near).all()
    assert (slope[bound] >= -near).all()
    close(y[bound] * M[bound], np.abs(w[bound]).max(-1), 1e-12)
    assert (slope[full] <= near).all() and (y[full] == 1).all()


def test_the_batches_reach_every_regime() -> None:
    """The properties above would be hollow if the strategy missed a regime."""
    seen = torch.zeros(3, dtype=torch.int64)

    @settings(max_examples=30)
    @given(batches())
    def count(batch: Batch) -> None:
        seen.add_(torch.bincount(projected.regime(batch.w, batch.alpha, batch.M), minlength=3))

    count()
    assert (seen >= 200).all(), seen


def test_alpha_zero_and_one_are_the_limits_named_in_the_docstring() -> None:
    w = torch.tensor([[0.3, -1.5], [0.0, 0.0]], dtype=torch.float64)
    assert projected.value(w, 0.0, 3.0).tolist() == [0.5, 0.0]
    assert projected.indicator(w, 0.0, 3.0).tolist() == [0.5, 0.0]
    close(projected.value(w, 1.0, 3.0), [0.09 + 2.25, 0.0], 1e-15)
    assert projected.indicator(w, 1.0, 3.0).tolist() == [1.0, 0.0]
    for alpha in (0.0, 1.0):
        inside = abs(alpha - 1e-13)
        close(projected.value(w, inside, 3.0), projected.value(w, alpha, 3.0), 1e-5, 1e-12)


@given(batches())
def test_above_the_bound_the_value_is_that_of_a_full_indicator(batch: Batch) -> None:
    w = batch.w * 10
    M = w.abs().amax(-1) / 1.5 + 1e-3 * (w.abs().amax(-1) == 0)
    above = (w != 0).any(-1)
    expected = batch.alpha * w.square().sum(-1) + (1 - batch.alpha)
    close(projected.value(w, batch.alpha, M)[above], expected[above], 1e-12)
    assert (projected.regime(w, batch.alpha, M)[above] == Regime.FULL).all()
    close(projected.gradient(w, batch.alpha, M)[above], (2 * batch.alpha * w)[above], 1e-14)


def test_value_is_continuous_where_the_box_ends() -> None:
    w = torch.tensor([[0.3, 1.0]], dtype=torch.float64)
    for eps in (1e-3, 1e-6, 1e-9):
        inside = projected.value(w, 0.01, 1.0 + eps)
        outside = projected.value(w, 0.01, 1.0 - eps)
        assert projected.regime(w, 0.01, 1.0 + eps).item() == Regime.BOUND
        assert projected.regime(w, 0.01, 1.0 - eps).item() == Regime.FULL
        assert abs(inside - outside).item() <= 2 * eps

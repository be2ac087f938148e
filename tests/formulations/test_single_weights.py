"""The pieces of single weights are the projected penalty of rows of one weight."""

import numpy as np
import pytest
import torch

from spr_or.formulations import projected
from spr_or.formulations.single_weights import single_weights

ALPHAS = [0.0, 0.01, 0.4, 0.9, 1.0]


def entities(alpha: float, M: float, count: int):
    unit = np.full(count, 0.7)
    return single_weights(unit * alpha, unit * (1 - alpha), np.full(count, M))


@pytest.mark.parametrize("M", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_cost_and_indicator_are_those_of_the_projected_penalty(alpha, M):
    w = np.concatenate([np.linspace(-M, M, 41), [0.0, M / 1e6]])
    rows = torch.from_numpy(w).unsqueeze(-1)
    found = entities(alpha, M, len(w))
    value = 0.7 * projected.value(rows, alpha, M).numpy()
    np.testing.assert_allclose(found.cost(w), value, rtol=1e-12, atol=1e-15)
    y = projected.indicator(rows, alpha, M).numpy()
    np.testing.assert_allclose(found.indicator(w), y, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("M", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gain_is_the_slope_of_the_projected_penalty_in_its_indicator(alpha, M):
    pull = np.linspace(0, 50, 101)
    rows = torch.from_numpy(pull / 0.7).unsqueeze(-1)
    slope = 0.7 * projected.slope_of(rows, alpha, M).numpy()
    found = entities(alpha, M, len(pull)).gain(pull)
    np.testing.assert_allclose(found, slope, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("M", [0.2, 30.0])
@pytest.mark.parametrize("alpha", [0.01, 0.4, 0.9])
def test_zero_is_left_where_the_pull_exceeds_the_slope(alpha, M):
    (tau,) = entities(alpha, M, 1).slope
    step = 1e-7
    for pull, stays in ((0.999 * tau, True), (1.001 * tau, False)):
        row = torch.tensor([[step * pull]], dtype=torch.float64)
        assert (projected.prox(row, 0.7 * step, alpha, M).item() == 0) is stays

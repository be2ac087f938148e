"""The least price at which zero is optimal, against a direct search in NumPy."""

import numpy as np
import pytest
import torch

from spr_or.formulations import projected
from spr_or.formulations.least_price import least_price


def zero_is_best(g: np.ndarray, price: float, alpha: float, M: np.ndarray) -> bool:
    """Whether w = 0, y = 0 minimises -<g, w> + price (alpha ||w||^2 / y + (1 - alpha) y).

    For a fixed y each weight is a parabola on [-M y, M y].
    """
    for y in np.logspace(-6, 0, 400):
        free = g * y / (2 * alpha * price) if alpha > 0 else np.sign(g) * M
        w = np.clip(free, -M * y, M * y)
        if -(g * w).sum() + price * (alpha * (w**2).sum() / y + (1 - alpha) * y) < 0:
            return False
    return True


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("bounds", ["tight", "wide", "of weights"])
def test_zero_is_best_from_the_least_price_on(alpha: float, bounds: str) -> None:
    rng = np.random.default_rng(3)
    g = rng.standard_normal((12, 5)) * np.logspace(-3, 3, 12)[:, None]
    g[4, 1:] = 0
    M = {"tight": np.full(12, 0.05), "wide": np.full(12, 50.0), "of weights": rng.random((12, 5))}
    given = M[bounds] + 0.01
    price = least_price(torch.tensor(g), alpha, torch.tensor(given)).numpy()
    for i in range(12):
        limits = given[i] if given.ndim == 2 else np.full(5, given[i])
        assert zero_is_best(g[i], 1.001 * price[i], alpha, limits)
        assert not zero_is_best(g[i], 0.999 * price[i], alpha, limits)


def test_a_proximal_step_reaches_zero_at_the_least_price_of_its_weights() -> None:
    torch.manual_seed(0)
    w = torch.randn(30, 7, dtype=torch.float64)
    t = least_price(w, 0.1, 0.4)
    assert (projected.prox(w, 1.001 * t, 0.1, 0.4) == 0).all()
    assert (projected.prox(w, 0.999 * t, 0.1, 0.4) != 0).any(-1).all()


def test_no_pull_needs_no_price_and_without_a_price_there_is_none() -> None:
    assert least_price(torch.zeros(2, 3), 0.1, 1.0).tolist() == [0.0, 0.0]
    g = torch.tensor([[3.0, 4.0]])
    assert least_price(g, 0.5, float("inf")).tolist() == [5.0]
    with pytest.raises(ValueError, match="alpha = 1 puts no price on entities"):
        least_price(g, 1.0, 1.0)

"""The best weights on given supports, against SciPy, for every loss that has a curvature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from spr_or.certified_solver import incumbents
from spr_or.certified_solver.design import design_of
from spr_or.certified_solver.support_newton import minimise
from spr_or.formulations.problem import SparseTrainingProblem

SUPPORTS = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1]]).bool()


def problem(loss: str, seed: int, **settings: float) -> SparseTrainingProblem:
    """Four groups of two columns of different scales, and a free column of ones."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(50, 8)) * 10 ** rng.uniform(-1, 1, 8)
    f = X[:, 0] / np.abs(X[:, 0]).max() + 0.5 * rng.normal(size=50)
    y = {"squared": f, "logistic": np.sign(f + 0.3), "poisson": rng.poisson(np.exp(f))}[loss]
    size = None if loss == "squared" else rng.uniform(0.2, 2, 50)
    return SparseTrainingProblem.linear(
        np.c_[X, np.ones(50)], y, [[0, 1], [2, 3], [4, 5], [6, 7]], loss, free=[8],
        sample_weight=size, **{"lam": 0.02, "alpha": 0.3, "M": 100.0} | settings,
    )  # fmt: skip


def least(p: SparseTrainingProblem, support: torch.Tensor) -> float:
    """Loss and ridge on a support, by SciPy."""
    used = support[:4].repeat_interleave(2).double().numpy()

    def value(w: np.ndarray) -> float:
        at = torch.from_numpy(w * np.append(used, 1.0))
        return float(p.loss_value(at)) + p.lam * p.alpha * float((at[:8] ** 2).sum())

    found = optimize.minimize(value, np.zeros(9), method="BFGS", options={"gtol": 1e-9})
    return float(found.fun)


@pytest.mark.parametrize("loss", ["squared", "logistic", "poisson"])
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_the_best_on_each_support(loss: str, seed: int) -> None:
    p = problem(loss, seed)
    W, found = minimise(design_of(p), SUPPORTS)
    assert found.all()
    assert (W[~SUPPORTS] == 0).all()
    prices = p.lam * (1 - p.alpha) * SUPPORTS[:, :4].sum(1)
    for w, support, price in zip(W, SUPPORTS, prices, strict=True):
        (one,) = incumbents.polish(design_of(p), [support])
        assert one.objective - float(price) == pytest.approx(least(p, support), rel=1e-8)
        assert torch.allclose(one.W, w, atol=1e-7) or loss == "squared"


def test_what_leaves_the_box_or_a_sign_is_left_to_others() -> None:
    p = problem("logistic", 0, M=0.01)
    _, found = minimise(design_of(p), SUPPORTS)
    assert not found.any()
    (one,) = incumbents.polish(design_of(p), [SUPPORTS[2]])
    assert one.W.abs().max() <= 0.01 and one.objective == pytest.approx(
        incumbents.in_box(design_of(p), SUPPORTS[2]).objective, rel=1e-6
    )


def test_data_without_a_minimum_are_left_to_others() -> None:
    """A free column separates the labels: the weights grow without end."""
    X = np.random.default_rng(0).normal(size=(20, 2))
    p = SparseTrainingProblem.linear(
        X, np.sign(X[:, 0]), [[1]], "logistic", lam=0.1, alpha=0.5, M=5, free=[0]
    )
    design = design_of(p)
    _, found = minimise(design, torch.tensor([[False, True]]))
    assert not found.any()
    (one,) = incumbents.polish(design, [torch.tensor([False, True])])
    assert float(one.W.abs().max()) == pytest.approx(5.0)

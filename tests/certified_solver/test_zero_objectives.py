"""Targets that are explained exactly: the objective is zero but for rounding, or as small as lambda is."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spr_or.certified_solver.derived_m import solve_without_bounds
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.check import prove

Array = np.ndarray
P = 6


def sample(seed: int = 0, n: int = 40) -> tuple[Array, Array]:
    """Columns, and what two of them add up to."""
    X = np.random.default_rng(seed).normal(size=(n, P))
    return X, 1.3 * X[:, 0] - 0.4 * X[:, 1]


def with_ones(X: Array) -> Array:
    return np.column_stack([X, np.ones(len(X))])


def stated(
    X: Array, y: Array, free: list[int], loss: str = "squared", **settings: Any
) -> SparseTrainingProblem:
    """Every column but the free ones is an entity."""
    parts = [[j] for j in range(X.shape[1]) if j not in free]
    return SparseTrainingProblem.linear(
        X, y, parts, loss, free=free, **{"lam": 0.05, "alpha": 0.1, "M": 5.0} | settings
    )


def exact_fits() -> dict[str, Callable[[], SparseTrainingProblem]]:
    X, f = sample()
    Z = with_ones(X)
    long, _ = sample(1, 2000)
    return {
        "two free columns": lambda: stated(X, f, [0, 1]),
        "in other units": lambda: stated(X * 1e-3, f * 1e6, [0, 1], M=1e10, lam=1e8),
        "in groups": lambda: SparseTrainingProblem.linear(
            X, f, [[2, 3], [4, 5]], lam=0.05, alpha=0.1, M=5.0, free=[0, 1]
        ),
        "two targets": lambda: stated(X, np.c_[f, X[:, 0]], [0, 1]),
        "the intercept": lambda: stated(Z, np.full(len(Z), 3.7), [P]),
        "the intercept of many rows": lambda: stated(with_ones(long), np.full(2000, 3.7), [P]),
        "no price for a group": lambda: stated(X, f, [0, 1], lam=1e-4, alpha=1.0, max_entities=2),
        "counts of 1": lambda: stated(Z, np.ones(len(Z)), [P], "poisson"),
        "large counts": lambda: stated(Z, np.full(len(Z), 1e5), [P], "poisson", M_free=30.0),
        "rates": lambda: stated(Z, np.exp(f), [0, 1, P], "poisson"),
        "labels of one kind": lambda: stated(Z, np.ones(len(Z)), [P], "logistic", M_free=40.0),
        "labels told by a sign": lambda: stated(
            Z, np.sign(X[:, 0]), [0, P], "logistic", M_free=1e4
        ),
    }


@pytest.mark.parametrize("name", exact_fits())
def test_what_free_columns_explain_is_proven_to_cost_nothing(name: str) -> None:
    p = exact_fits()[name]()
    found = branch_and_bound(p, time_limit=20)
    assert (found.status, found.gap, found.bound) == ("optimal", 0.0, 0.0)
    assert found.vanishes and found.indicators.sum() == 0
    checked = found.check()
    assert checked.ok and checked.vanishes and checked.gap == 0, checked.problems


def test_a_constant_count_costs_nothing_with_a_derived_bound() -> None:
    X, _ = sample()
    p = stated(with_ones(X), np.full(len(X), 4.0), [P], "poisson")
    found, _ = solve_without_bounds(p)
    assert found.status == "optimal" and found.vanishes and found.check().ok
    assert float(found.weights[-1]) == pytest.approx(np.log(4.0), abs=1e-7)


def enumerated(X: Array, y: Array, lam: float, alpha: float) -> tuple[float, set[int]]:
    """The best objective over all supports of single columns, and its support."""
    best: tuple[float, set[int]] = (np.inf, set())
    n = len(y)
    for count in range(P + 1):
        for support in itertools.combinations(range(P), count):
            rows = np.vstack([X[:, support] / np.sqrt(n), np.sqrt(lam * alpha) * np.eye(count)])
            target = np.concatenate([y / np.sqrt(n), np.zeros(count)])
            w = np.linalg.lstsq(rows, target, rcond=None)[0] if count else np.zeros(0)
            value = float(np.square(rows @ w - target).sum()) + lam * (1 - alpha) * count
            best = min(best, (value, set(support)), key=lambda pair: pair[0])
    return best


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("lam", [1e-4, 1e-6, 1e-8, 1e-10])
def test_a_small_lambda_on_exact_data_is_proven(lam: float, alpha: float) -> None:
    X, y = sample(2)
    p = stated(X, y, [], lam=lam, alpha=alpha)
    found = branch_and_bound(p)
    value, support = enumerated(X, y, lam, alpha)
    assert found.status == "optimal" and not found.vanishes
    assert set(found.indicators.nonzero().flatten().tolist()) == support == {0, 1}
    assert found.objective == pytest.approx(value, rel=1e-7, abs=0)
    assert found.bound <= value * (1 + 1e-9)
    for exact in (False, True):
        checked = found.check(exact)
        assert checked.ok, checked.problems


@pytest.mark.parametrize("seed", range(6))
def test_bounds_hold_in_another_order_of_the_samples(seed: int) -> None:
    """What a bound is spared for other machines is more than the order of adding takes off it."""
    rng = np.random.default_rng(seed)
    X, y = sample(seed, 200)
    X, M = X * 10 ** rng.uniform(-1, 1, P), [10.0, 1000.0][seed % 2]
    p = stated(X, y, [0] if seed % 3 else [], lam=10 ** rng.uniform(-10, -5), M=M)
    found = branch_and_bound(p)
    assert found.bound > 0
    for _ in range(5):
        order = rng.permutation(len(y))
        other = dataclasses.replace(p, X=p.X[order], y=p.y[order])
        assert prove(other, found.proof.records).bound >= found.bound


def test_a_small_objective_that_is_not_zero_is_not_called_zero() -> None:
    """Noise of a millionth of the target, and a price of 1e-12 of it: 0 is no bound to be content with."""
    X, f = sample(3)
    noisy = f + 0.5 * np.random.default_rng(0).normal(size=len(f))
    far = branch_and_bound(stated(with_ones(X), 1e6 + noisy, [P], M_free=2e6))
    cheap = branch_and_bound(stated(X, f, [], lam=1e-12))
    for found in (far, cheap):
        assert not found.vanishes and not found.check().vanishes
        assert found.gap == (found.objective - found.bound) / found.objective
        assert (found.status == "optimal") == (found.gap <= 1e-4)
        assert found.gap < 0.05


@pytest.mark.parametrize("loss", ["squared", "logistic", "poisson"])
def test_nothing_changes_for_an_ordinary_objective(loss: str) -> None:
    X, f = sample(4)
    noisy = f + np.random.default_rng(1).normal(size=len(f))
    y = {"squared": noisy, "logistic": np.sign(noisy), "poisson": np.round(np.exp(f))}[loss]
    found = branch_and_bound(stated(with_ones(X), y, [P], loss))
    assert found.status == "optimal" and not found.vanishes and found.bound > 0
    assert found.gap == (found.objective - found.bound) / found.objective

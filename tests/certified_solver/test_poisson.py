"""The Poisson loss: every support by SciPy, the M that is derived, and the check of its proofs."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import xlogy

from spr_or.certified_solver.derived_m import solve_without_bounds
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.weight_bounds import intercept_bound

Array = np.ndarray


def sample(seed: int, n: int = 40, p: int = 6, rate: float = 1.0) -> tuple[Array, Array]:
    """Counts whose log-rate depends on two columns; a last column of ones."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    y = rng.poisson(rate * np.exp(0.6 * X[:, 0] - 0.4 * X[:, 2]))
    return np.column_stack([X, np.ones(n)]), y.astype(float)


def best_on(
    X: Array, y: Array, ridge: Array, size: Array, limit: Array, low: Array
) -> tuple[float, Array]:
    """The least mean loss plus ridge of weights in a box, by SciPy, and these weights."""
    n = len(y)

    def value(w: Array) -> tuple[float, Array]:
        f = X @ w
        rate = np.exp(f)
        loss = size @ (rate - y * f + xlogy(y, y) - y) / n
        return loss + ridge @ w**2, X.T @ (size * (rate - y)) / n + 2 * ridge * w

    found = optimize.minimize(
        value, np.zeros(X.shape[1]), jac=True, method="L-BFGS-B",
        bounds=list(zip(low, limit, strict=True)), options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-11},
    )  # fmt: skip
    return float(found.fun), found.x


def enumerated(
    X: Array,
    y: Array,
    groups: list[list[int]],
    lam: float,
    alpha: float,
    M: float = 50.0,
    size: Array | None = None,
    nonnegative: bool = False,
    most: int | None = None,
) -> tuple[float, tuple[int, ...]]:
    """The best objective over all supports, with a free last column."""
    size = np.ones(len(y)) if size is None else size
    best: tuple[float, tuple[int, ...]] = (math.inf, ())
    last = X.shape[1] - 1
    for count in range((len(groups) if most is None else most) + 1):
        for support in itertools.combinations(range(len(groups)), count):
            at = [j for i in support for j in groups[i]] + [last]
            ridge = np.array([lam * alpha] * (len(at) - 1) + [0.0])
            limit = np.full(len(at), M)
            low = np.append(np.zeros(len(at) - 1) if nonnegative else -limit[:-1], -M)
            value, _ = best_on(X[:, at], y, ridge, size, limit, low)
            best = min(best, (value + lam * (1 - alpha) * count, support))
    return best


def problem_of(
    X: Array, y: Array, groups: list[list[int]], **settings: Any
) -> SparseTrainingProblem:
    return SparseTrainingProblem.linear(
        X, y, groups, "poisson", free=[X.shape[1] - 1], **settings
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "rate", "lam", "alpha"),
    [
        (0, 1.0, 0.05, 0.2),
        (1, 1.0, 0.01, 0.05),
        (2, 30.0, 0.5, 0.1),
        (3, 0.3, 0.02, 0.5),
        (4, 300.0, 2.0, 0.01),
    ],
)
def test_the_optimum_without_bounds_is_that_of_all_supports(
    seed: int, rate: float, lam: float, alpha: float
) -> None:
    X, y = sample(seed, rate=rate)
    groups = [[0, 1], [2], [3], [4], [5]]
    p = problem_of(X, y, groups, lam=lam, alpha=alpha, M=1.0)
    certificate, bound = solve_without_bounds(p, 1e-6)
    value, support = enumerated(X, y, groups, lam, alpha)
    assert certificate.status == "optimal"
    assert certificate.objective == pytest.approx(value, rel=2e-6)
    assert certificate.bound <= value * (1 + 1e-9)
    assert tuple(certificate.indicators.nonzero().flatten().tolist()) == support
    checked = certificate.check()
    assert checked.ok, checked.problems
    assert not certificate.m_active.any() and abs(float(certificate.weights[-1])) < bound.M_free


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_columns_of_heavy_tails_do_not_hurt(seed: int) -> None:
    """Rates far beyond the largest count, where the curvature is larger than the steps assume."""
    rng = np.random.default_rng(1000 + seed)
    n, p = int(rng.integers(15, 60)), int(rng.integers(3, 6))
    X = rng.standard_t(2, size=(n, p)) * rng.choice([0.3, 1, 3], p)
    f = np.clip(0.7 * X[:, 0] / X[:, 0].std() - 0.5 * X[:, 1] / X[:, 1].std(), -6, 4)
    y = rng.poisson(10 ** rng.uniform(-0.7, 2) * np.exp(f)).astype(float)
    lam, alpha = 10 ** rng.uniform(-3, 0) * max(y.mean(), 0.3), rng.choice([0.01, 0.1, 0.5])
    X, groups = np.column_stack([X, np.ones(n)]), [[j] for j in range(p)]
    found, _ = solve_without_bounds(problem_of(X, y, groups, lam=lam, alpha=alpha, M=1.0), 1e-5)
    value, _ = enumerated(X, y, groups, lam, alpha, M=200.0)
    assert found.status == "optimal" and found.check().ok
    assert found.objective <= value * (1 + 2e-5) and found.bound <= value * (1 + 1e-7)


def test_rules_signs_and_weights_of_samples() -> None:
    for seed in range(4):
        X, y = sample(10 + seed, n=30, p=5, rate=3.0)
        size = np.random.default_rng(seed).uniform(0.2, 3.0, 30)
        size /= size.mean()
        groups = [[j] for j in range(5)]
        value, support = enumerated(X, y, groups, 0.03, 0.1, size=size, nonnegative=True, most=2)
        p = problem_of(X, y, groups, lam=0.03, alpha=0.1, M=50.0, sample_weight=size, max_entities=2,
                       nonnegative=range(5))  # fmt: skip
        found = branch_and_bound(p, 1e-6)
        assert found.objective == pytest.approx(value, rel=2e-6), seed
        assert tuple(found.indicators.nonzero().flatten().tolist()) == support
        assert found.check().ok and found.bound <= value * (1 + 1e-9)


def test_a_bound_that_is_too_high_does_not_hold() -> None:
    from dataclasses import replace

    X, y = sample(0)
    p = problem_of(X, y, [[j] for j in range(6)], lam=0.02, alpha=0.1, M=5.0)
    found = branch_and_bound(p, 1e-6)
    assert found.check().ok
    assert not replace(found, bound=found.objective * (1 + 1e-9)).check().ok
    assert not replace(found, objective=found.objective * (1 - 1e-6)).check().ok


@pytest.mark.parametrize("rate", [0.2, 5.0, 1000.0])
def test_no_better_intercept_lies_beyond_its_bound(rate: float) -> None:
    X, y = sample(3, rate=rate)
    reach = np.abs(X[:, :6]).sum(1) * 0.3
    bound = intercept_bound(reach, y[:, None], loss="poisson")
    rng = np.random.default_rng(0)
    level = (1 + xlogy(y, y) - y).sum()
    for _ in range(20):
        shift = rng.uniform(-1, 1, len(y)) * reach
        best = optimize.minimize_scalar(
            lambda b, shift=shift: (np.exp(b + shift) - y * (b + shift) + xlogy(y, y) - y).sum(),
            bounds=(-50, 50), method="bounded",
        )  # fmt: skip
        assert best.fun > level or abs(best.x) < bound
    assert bound < 60
    assert intercept_bound(reach, np.zeros((40, 1)), loss="poisson") == math.inf


def test_other_solvers_and_targets_are_refused() -> None:
    from spr_or.solvers import enumeration

    X, y = sample(0)
    with pytest.raises(
        ValueError, match="y must be at least 0 for the poisson loss, got -1 at index 1"
    ):
        SparseTrainingProblem.linear(
            [[1.0], [2.0]], [0, -1], [[0]], "poisson", lam=1, alpha=0.5, M=1
        )
    with pytest.raises(ValueError, match="y is 0 everywhere"):
        SparseTrainingProblem.linear(
            [[1.0], [2.0]], [0, 0], [[0]], "poisson", lam=1, alpha=0.5, M=1
        )
    p = SparseTrainingProblem.linear(
        X, y, [[j] for j in range(7)], "poisson", lam=1, alpha=0.5, M=1
    )
    with pytest.raises(ValueError, match="enumeration does not take the poisson loss"):
        enumeration.solve(p)
    with pytest.raises(ValueError, match="alpha > 0 for the poisson loss"):
        solve_without_bounds(
            SparseTrainingProblem.linear(
                X, y, [[j] for j in range(7)], "poisson", lam=1, alpha=0.0, M=1
            )
        )
    assert torch.equal(p.y.flatten(), torch.from_numpy(y))

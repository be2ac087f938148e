"""Optima that other solvers stored: thirty of l0bnb's test, found by Gurobi, and the demo of L0Group.

Their data come from NumPy's older generator with a seed; both sources are named in
``stored_optima.json``.  Their objectives are n / 2 times ours, with lambda alpha = 2 lambda_2 / n and
lambda (1 - alpha) = 2 lambda_0 / n.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from spr_or.certified_solver.derived_m import solve_without_bounds
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.entities import features, groups
from spr_or.formulations.problem import SparseTrainingProblem

STORED = json.loads(Path(__file__).with_name("stored_optima.json").read_text(encoding="utf-8"))
SINGLE, GROUPED = STORED["l0bnb"], STORED["L0Group"]


def noisy(mu: np.ndarray, snr: float, draw: np.random.RandomState) -> np.ndarray:
    """Targets (n,) with this ratio of the variance of mu (n,) to that of the noise."""
    return mu + draw.normal(size=len(mu), scale=np.sqrt(np.std(mu, ddof=1) ** 2 / snr))


def single_columns(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent columns, every fifth of which has the weight 1."""
    draw, p = np.random.RandomState(SINGLE["seed"]), SINGLE["columns"]
    X = draw.normal(size=(n, p))
    draw.normal(size=(n, 1))  # a common factor, which has no weight here
    step = p // SINGLE["nonzero"]
    return X, noisy(X[:, ::step].sum(1), SINGLE["snr"], draw)


def grouped_columns() -> tuple[np.ndarray, np.ndarray]:
    """Ten correlated factors, each seen through ten noisy columns; five groups have weights 1."""
    draw, n, size = np.random.RandomState(GROUPED["seed"]), GROUPED["rows"], GROUPED["groups_of"]
    count = GROUPED["columns"] // size
    at = np.arange(count)
    covariance = GROUPED["correlation"] ** np.abs(at[:, None] - at)
    factors = draw.normal(size=(n, count)) @ np.linalg.cholesky(covariance).T
    draw.normal(size=2 * n)  # two targets of the factors, which nobody uses
    X = np.concatenate(
        [factors[:, [i]] + draw.normal(scale=np.sqrt(0.111111), size=(n, size)) for i in at], axis=1
    )
    used = np.linspace(0, count - 1, GROUPED["groups_nonzero"]).astype(int)
    b = np.repeat(np.isin(at, used).astype(float), size)
    return X, noisy(X @ b, GROUPED["snr"], draw)


def stated(
    X: np.ndarray, y: np.ndarray, lambda_0: float, lambda_2: float, size: int, M: float
) -> SparseTrainingProblem:
    n, p = X.shape
    return SparseTrainingProblem.linear(
        X, y, features(p) if size == 1 else groups(p, size), lam=2 * (lambda_0 + lambda_2) / n,
        alpha=lambda_2 / (lambda_0 + lambda_2), M=M,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n", "lambda_2", "optimum"),
    [
        pytest.param(
            case["n"],
            case["lambda_2"],
            optimum,
            id=f"{case['n']}-{case['lambda_2']}-{i}",
            marks=[pytest.mark.slow]
            if case["lambda_2"] == 0.1
            else [],  # 3 s each, much as those of 0
        )  # fmt: skip
        for case in SINGLE["cases"]
        for i, optimum in enumerate(case["optima"])
    ],
)
def test_the_optima_of_l0bnb_and_gurobi_are_found_and_proven(
    n: int, lambda_2: float, optimum: dict[str, float]
) -> None:
    X, y = single_columns(n)
    problem = stated(X, y, optimum["lambda_0"], lambda_2, 1, 1.0)
    certificate, _ = solve_without_bounds(problem, 1e-5)
    assert certificate.status == "optimal" and certificate.check().ok
    for other in ("gurobi", "l0bnb"):  # their M may cut off better weights, so theirs may be larger
        value = optimum[other] * 2 / n
        assert certificate.objective == pytest.approx(value, rel=1e-4)
        assert certificate.bound <= value * (1 + 1e-6)
    assert int(certificate.indicators.sum()) == optimum["nonzeros"]


def test_the_demo_of_l0group_is_found_and_proven() -> None:
    X, y = grouped_columns()
    lambda_0, lambda_2 = GROUPED["lambda_0"], GROUPED["lambda_2"]
    problem = stated(X, y, lambda_0, lambda_2, GROUPED["groups_of"], GROUPED["M"])
    certificate = branch_and_bound(problem, 1e-6)
    assert certificate.status == "optimal" and certificate.check().ok
    assert certificate.objective * len(y) / 2 == pytest.approx(GROUPED["optimum"], rel=1e-7)

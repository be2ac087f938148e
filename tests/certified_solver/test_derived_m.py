"""M auto against the optimum of the problem without bounds, found support by support."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from spr_or.certified_solver.derived_m import (
    solve_without_bounds,
    value_without_bounds,
    weight_bounds,
)
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof import weight_bounds as proof_bounds


def draw(seed: int, loss: str, hard: bool = True) -> SparseTrainingProblem:
    """A small problem, n < p included; hard: columns nearly parallel or of unlike scales."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, size=rng.integers(2, 6))
    p = int(sizes.sum())
    n = int(rng.integers(3, 25))
    q = int(rng.integers(1, 3)) if loss == "squared" else 1
    alpha = float(rng.choice([0.0, 1e-6, 1e-3, 0.1, 0.9, 1.0]))
    if loss == "logistic":
        alpha = max(alpha, 1e-4 if hard else 1e-2)
    if alpha == 0:
        n = p + int(rng.integers(2, 20))
    common = rng.choice([0.0, 1.0, 30.0]) if hard else 0.5
    X = rng.normal(size=(n, p)) + common * rng.normal(size=(n, 1))
    X *= 10.0 ** rng.integers(-2, 3, size=p) if hard and seed % 3 == 0 else 1.0
    W = rng.normal(size=(p, q)) * (rng.random((p, 1)) < 0.5) / np.linalg.norm(X, axis=0)[:, None]
    y = X @ W + rng.choice([0.0, 0.1, 1.0]) * rng.normal(size=(n, q))
    if loss == "logistic":
        y = np.where(X @ W + 0.1 * rng.normal(size=(n, q)) > 0, 1.0, -1.0)
    stops = np.cumsum(sizes)
    parts: list = [list(range(stop - size, stop)) for size, stop in zip(sizes, stops, strict=True)]
    if q == 2 and seed % 4 == 1:  # entities of single cells
        parts = [[(j, o) for j in part] for part in parts for o in range(q)]
        parts = [*parts[:3], [cell for part in parts[3:] for cell in part]] if parts[3:] else parts
    return SparseTrainingProblem.linear(
        X, y, parts, loss, lam=float(10.0 ** rng.integers(-5 if hard else -2, 1)), alpha=alpha, M=1.0,
        u=rng.uniform(0.5, 2, size=len(parts)),
    )  # fmt: skip


def optimum_without_bounds(problem: SparseTrainingProblem) -> tuple[float, np.ndarray]:
    """Value and weights of the best support, each trained by NumPy or SciPy without any bound."""
    best = (np.inf, np.zeros(problem.entities.n_parameters))
    for size in range(len(problem.entities) + 1):
        for support in itertools.combinations(range(len(problem.entities)), size):
            theta = trained(problem, support)
            value = value_without_bounds(problem, torch.from_numpy(theta))
            if value < best[0]:
                best = (value, theta)
    return best


def trained(problem: SparseTrainingProblem, support: tuple[int, ...]) -> np.ndarray:
    theta = np.zeros(problem.entities.n_parameters)
    at = [j for i in support for j in problem.entities.groups[i]]
    if not at:
        return theta
    sizes = [len(problem.entities.groups[i]) for i in support]
    ridge = np.repeat(problem.lam * problem.alpha * problem.u.numpy()[list(support)], sizes)
    q = problem.n_outputs
    A = np.kron(problem.X.numpy(), np.eye(q))[:, at] / np.sqrt(problem.n)
    b = problem.y.numpy().reshape(-1) / np.sqrt(problem.n)
    if problem.loss == "squared":
        rows = np.vstack([A, np.diag(np.sqrt(ridge))])
        theta[at] = np.linalg.lstsq(rows, np.append(b, np.zeros(len(at))), rcond=None)[0]
        return theta
    margins = np.sqrt(problem.n) * A * (np.sqrt(problem.n) * b)[:, None]

    def value(w):
        slope = -margins.T @ (1 / (1 + np.exp(margins @ w))) / problem.n + 2 * ridge * w
        return np.logaddexp(0, -margins @ w).mean() + ridge @ w**2, slope

    def hessian(w):
        s = 1 / (1 + np.exp(margins @ w))
        return margins.T @ ((s * (1 - s))[:, None] * margins) / problem.n + 2 * np.diag(ridge)

    with np.errstate(over="ignore"):
        theta[at] = minimize(
            value, np.zeros(len(at)), jac=True, hess=hessian, method="trust-exact",
            options={"gtol": 1e-10},
        ).x  # fmt: skip
    return theta


def holds(problem: SparseTrainingProblem, bounds: torch.Tensor, theta: np.ndarray) -> bool:
    peaks = problem.entities.rows(torch.from_numpy(theta)).abs().amax(-1)
    return bool((peaks <= bounds).all())


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("seed", range(20))
def test_the_optimum_without_bounds_lies_within_them(seed, loss, monkeypatch):
    """From the worst incumbent (zero) and the best, from good and bad dual points, on every route."""
    problem = draw(seed, loss)
    value, theta = optimum_without_bounds(problem)
    best, zero = torch.from_numpy(theta), torch.zeros(len(theta), dtype=torch.float64)
    for incumbent in (zero, best):
        for point in (None, zero, best, torch.randn_like(best)):
            assert holds(problem, weight_bounds(problem, incumbent, point), theta)
    if problem.alpha > 0:
        tight = weight_bounds(problem, best)
        monkeypatch.setattr("spr_or.proof.weight_bounds.LARGEST_SYSTEM", 0)
        loose = weight_bounds(problem, best)
        assert holds(problem, loose, theta)
        assert value == 0 or bool((tight <= loose).all())  # y = 0 leaves nothing to bound


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("seed", range(20, 300))
def test_the_optimum_without_bounds_lies_within_them_on_many_more(seed, loss, monkeypatch):
    test_the_optimum_without_bounds_lies_within_them(seed, loss, monkeypatch)


@pytest.mark.parametrize("seed", range(15))
def test_both_factorisations_enclose_the_same_inverse(seed):
    """Against NumPy's inverse in the well-conditioned cases; always from above."""
    rng = np.random.default_rng(seed)
    n, p = int(rng.integers(2, 20)), int(rng.integers(2, 20))
    X, Y = rng.normal(size=(n, p)), rng.normal(size=(n, 2))
    D = 10.0 ** rng.uniform(-3, 1, size=p)
    Q = X.T @ X / n + np.diag(D)
    truth = np.linalg.inv(Q)
    for route in (proof_bounds._by_columns, proof_bounds._by_samples):
        found = route(X, Y, n, D)
        assert (found.diagonal >= np.diag(truth) * (1 - 1e-10)).all()
        assert np.allclose(found.diagonal, np.diag(truth), rtol=1e-6)
        assert np.allclose(found.solution, truth @ X.T @ Y / n, rtol=1e-6)
        assert 0 < found.smallest <= np.linalg.eigvalsh(Q)[0] * (1 + 1e-10)


def test_an_ill_conditioned_inverse_is_still_enclosed():
    """Two columns that differ by 1e-6: the truth in rational arithmetic."""
    from fractions import Fraction

    X = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-6], [2.0, 2.0]])
    a, b, c = (
        sum(
            Fraction(x) * Fraction(y)
            for x, y in zip(X[:, i].tolist(), X[:, j].tolist(), strict=True)
        )
        / 3
        for i, j in ((0, 0), (0, 1), (1, 1))
    )
    truth = [c / (a * c - b * b), a / (a * c - b * b)]
    found = proof_bounds._by_columns(X, np.ones((3, 1)), 3, np.zeros(2))
    assert all(Fraction(float(d)) >= t for d, t in zip(found.diagonal, truth, strict=True))


@pytest.mark.parametrize("seed", [2, 4, 6, 8, 10, 12, 14, 18, 24])
def test_solving_with_m_auto_gives_the_optimum_without_bounds(seed):
    problem = draw(seed, "logistic" if seed % 8 == 0 else "squared", hard=False)
    value, _ = optimum_without_bounds(problem)
    certificate, found = solve_without_bounds(problem, gap=1e-5, time_limit=20)
    assert certificate.check().ok
    scale = max(value, 1e-6)
    assert certificate.status == "optimal" and not certificate.m_active.any()
    assert abs(certificate.objective - value) <= 2e-5 * scale
    wide = branch_and_bound(dataclasses.replace(problem, M=10 * found.M), gap=1e-5, time_limit=20)
    assert abs(certificate.objective - wide.objective) <= 2e-5 * scale
    again = weight_bounds(problem, found.incumbent, found.point)
    assert bool((again <= found.M).all())


def test_the_bounds_are_within_reach_of_the_weights():
    """Not only valid: on well-conditioned data within a small factor of what they bound."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 12))
    w = np.where(np.arange(12) < 4, 2.0, 0.0)
    problem = SparseTrainingProblem.linear(
        X, X @ w + 0.5 * rng.normal(size=200), [[j] for j in range(12)], lam=0.05, alpha=0.01, M=1
    )
    _, theta = optimum_without_bounds(problem)
    bounds = weight_bounds(problem, torch.from_numpy(theta))
    assert float(bounds.max()) < 2 * np.abs(theta).max()


@pytest.mark.parametrize(
    ("X", "alpha", "loss", "says"),
    [
        ([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], 0.0, "squared", "linearly independent"),
        ([[1.0, 2.0, 3.0], [3.0, 2.0, 0.0]], 0.0, "squared", "linearly independent"),
        ([[1.0], [2.0], [-1.0]], 0.0, "logistic", "alpha > 0"),
    ],
)
def test_where_no_bound_exists_it_says_so(X, alpha, loss, says):
    y = [1.0, -1.0, 1.0][: len(X)]
    parts = [[j] for j in range(len(X[0]))]
    problem = SparseTrainingProblem.linear(X, y, parts, loss, lam=0.1, alpha=alpha, M=1)
    with pytest.raises(ValueError, match=says):
        solve_without_bounds(problem)


def test_a_point_on_the_other_side_of_a_bound_that_is_too_small_is_seen(monkeypatch):
    """The tests above can fail: a bound without the square root's term misses optima."""
    monkeypatch.setattr(proof_bounds, "level_of", lambda *arguments: 0.0)
    missed = 0
    for seed in range(20):
        problem = draw(seed, "logistic")
        _, theta = optimum_without_bounds(problem)
        missed += not holds(problem, weight_bounds(problem, torch.from_numpy(theta)), theta)
    assert missed > 0


def test_a_ridge_lost_in_rounding_leaves_the_bound_of_the_ridge():
    """More columns than samples and a ridge of 1e-16 of the columns: the matrix is singular in float64."""
    rng = np.random.default_rng(0)
    X = 1e8 * np.repeat(rng.normal(size=(3, 1)), 6, axis=1)
    problem = SparseTrainingProblem.linear(
        X, rng.normal(size=3), [[j] for j in range(6)], lam=1e-4, alpha=1e-8, M=1
    )
    bounds = weight_bounds(problem, torch.zeros(6, dtype=torch.float64))
    assert bool(torch.isfinite(bounds).all()) and bool((bounds > 0).all())

"""Random small problems with rules, signs, weights and free columns, and their optima by enumeration.

Nothing of the solver is used: supports one by one, and SciPy for the weights of each.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from scipy import optimize

from spr_or.formulations.problem import SparseTrainingProblem


def random_problem(seed: int, M: float = 3.0, M_free: float = 5.0) -> SparseTrainingProblem | None:
    """A problem of up to 6 groups of up to 3 columns; None where the rules drawn contradict each other."""
    rng = np.random.default_rng(seed)
    N, k = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    loss = str(rng.choice(["squared", "logistic"]))
    q = 2 if loss == "squared" and rng.random() < 0.2 else 1
    p, n = N * k, int(rng.integers(8, 40))
    X = rng.normal(size=(n, p))
    if rng.random() < 0.3:
        X = X * 10 ** rng.uniform(-1, 1, size=p)
    W = rng.normal(size=(p, q)) * (rng.random((p, 1)) < 0.5)
    f = X @ W / np.sqrt(p) + 0.5 * rng.normal(size=(n, q))
    y: Any = f
    if loss == "logistic":
        y = np.where(f[:, 0] + rng.normal() > 0, 1.0, -1.0)
        y[:2] = 1.0, -1.0
    asked: dict[str, Any] = {}
    free = []
    if rng.random() < 0.5:
        X, free = np.c_[X, np.ones(n)], [p]
    if loss == "squared" and rng.random() < 0.2:
        X = np.c_[X, rng.normal(size=n)]
        free.append(X.shape[1] - 1)
    if rng.random() < 0.4:
        asked["sample_weight"] = rng.uniform(0.2, 3, n)
    if rng.random() < 0.3:
        asked["required"] = [int(rng.integers(N))]
    if rng.random() < 0.4:
        asked["max_entities"] = int(rng.integers(1, N + 1))
    if rng.random() < 0.3:
        a, b = (int(i) for i in rng.permutation(N)[:2])
        asked["needs"] = {a: [b]}
    if rng.random() < 0.3:
        asked["nonnegative"] = np.flatnonzero(rng.random(X.shape[1]) < 0.4).tolist()
    if rng.random() < 0.3:
        asked["u"] = rng.uniform(0.5, 2, N)
    groups = [list(range(i * k, i * k + k)) for i in range(N)]
    lam, alpha = float(10 ** rng.uniform(-3, 0)), float(rng.choice([0.02, 0.1, 0.5, 0.9, 1.0]))
    try:
        return SparseTrainingProblem.linear(
            X, y, groups, loss, lam=lam, alpha=alpha, M=M, M_free=M_free, free=free, **asked
        )
    except ValueError as error:
        assert "are required" in str(error)
        return None


def optimum(problem: SparseTrainingProblem) -> float:
    """The least objective over all supports that obey the rules."""
    best = np.inf
    for support in itertools.product((False, True), repeat=len(problem.entities)):
        if _allowed(problem, support):
            best = min(best, _value(problem, np.array(support)))
    return best


def _allowed(problem: SparseTrainingProblem, support: tuple[bool, ...]) -> bool:
    rules = problem.rules
    if rules is None:
        return True
    if any(must and not used for must, used in zip(rules.required, support, strict=True)):
        return False
    if rules.most is not None and sum(support) > rules.most:
        return False
    return not any(support[a] and not support[b] for a, b in rules.needs.tolist())


def _value(problem: SparseTrainingProblem, support: np.ndarray) -> float:
    X, Y, n = problem.X.numpy(), problem.y.numpy(), problem.n
    q, u = Y.shape[1], problem.u.numpy()
    groups = [sorted({j // q for j in g}) for g in problem.entities.groups]
    free = sorted({j // q for j in problem.entities.free.tolist()})
    owners = [i for i in np.flatnonzero(support) for _ in groups[i]]
    columns = [j for i in np.flatnonzero(support) for j in groups[i]] + free
    ridge = np.array([problem.lam * problem.alpha * u[i] for i in owners] + [0.0] * len(free))
    limit = np.array([float(problem.M[i]) for i in owners] + [problem.M_free] * len(free))
    signed = np.zeros(X.shape[1], dtype=bool)
    if problem.nonnegative is not None:
        signed = problem.nonnegative.numpy()
    lower = np.where(signed[columns], 0.0, -limit)
    price = problem.lam * (1 - problem.alpha) * float(u[support].sum())
    size = np.ones(n) if problem.sample_weight is None else problem.sample_weight.numpy()
    A = X[:, columns]
    if problem.loss == "squared":
        value = 0.0
        for y in Y.T:
            rows = np.concatenate([A / np.sqrt(n), np.diag(np.sqrt(ridge))])
            right = np.concatenate([y / np.sqrt(n), np.zeros(len(columns))])
            w = np.zeros(0)
            if columns:
                w = optimize.lsq_linear(rows, right, (lower, limit), method="bvls", tol=1e-14).x
            value += float(((A @ w - y) ** 2).sum() / n + (ridge * w * w).sum())
        return value + price

    def cost(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = -Y[:, 0] * (A @ w)
        slope = -size * Y[:, 0] / (1 + np.exp(-margin))
        value = (size * np.logaddexp(0, margin)).sum() / n + (ridge * w * w).sum()
        return float(value), A.T @ slope / n + 2 * ridge * w

    start = np.zeros(len(columns))
    if not columns:
        return cost(start)[0] + price
    settings = {"ftol": 0, "gtol": 1e-11, "maxiter": 5000}
    bounds = optimize.Bounds(lower, limit)
    found = optimize.minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options=settings
    )
    return float(found.fun) + price

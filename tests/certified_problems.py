"""Small problems for the certified solver and its check."""

import numpy as np
import pytest

from spr_or.certified_solver import block_curvature, solver
from spr_or.formulations.entities import groups
from spr_or.formulations.problem import SparseTrainingProblem


def random_problem(seed: int, *, loss: str | None = None) -> SparseTrainingProblem:
    """A small problem; shape, loss, penalty and bound drawn by the seed, n < p included."""
    rng = np.random.default_rng(seed)
    loss = loss or ("logistic" if seed % 4 == 3 else "squared")
    sizes = rng.integers(1, 4, size=rng.integers(3, 8))
    p, n = int(sizes.sum()), int(rng.integers(6, 30))
    q = int(rng.integers(1, 3)) if loss == "squared" else 1
    X = rng.normal(size=(n, p)) @ (np.eye(p) + 0.5 * rng.normal(size=(p, p)) / np.sqrt(p))
    W = rng.normal(size=(p, q)) * (rng.random((p, 1)) < 0.5)
    y = X @ W + rng.normal(size=(n, q))
    if loss == "logistic":
        y = np.where(y > 0, 1.0, -1.0)
    stops = np.cumsum(sizes)
    parts = [list(range(stop - size, stop)) for size, stop in zip(sizes, stops, strict=True)]
    if q == 2 and seed % 8 == 1:  # entities of single cells
        parts = [[(j, o) for j in part] for part in parts for o in range(q)]
    alpha = [0.0, 0.05, 0.3, 0.9, 1.0][rng.integers(0, 5)]
    return SparseTrainingProblem.linear(
        X, y, parts, loss, lam=float(rng.choice([0.02, 0.1, 0.5])), alpha=alpha,
        M=float(rng.choice([0.3, 1.0, 5.0])), u=rng.uniform(0.5, 2, size=len(parts)),
        name=f"random-{seed}",
    )  # fmt: skip


def tree_problem() -> SparseTrainingProblem:
    """Eight groups of three with correlated noise: needs branching, so that the proof has a tree."""
    rng = np.random.default_rng(4)
    X = rng.normal(size=(30, 24)) + rng.normal(size=(30, 1))
    w = np.where(np.arange(24) % 9 < 3, rng.normal(size=24), 0)
    y = X @ w + 2.0 * rng.normal(size=30)
    return SparseTrainingProblem.linear(
        X, y, groups(24, 3), lam=0.25, alpha=0.02, M=2.0, name="tree"
    )


def curvature_at_once(patch: pytest.MonkeyPatch) -> None:
    """Curvature is moved at the root and at every node that allows it, not only where trees are large."""
    patch.setattr(solver, "_TRIAL", 0)
    patch.setattr(block_curvature, "_PATIENCE", 0)

"""When the check calls an objective zero: from the weights and the data, whatever else is stated."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import ProofCertificate, load
from spr_or.proof.check import Stated, check
from spr_or.proof.tree import Record
from spr_or.proof.weight_bounds import weight_bounds

NONE = np.zeros(0, np.int64)
LOSSES = ("squared", "logistic", "poisson")


def exact(loss: str, **settings: float) -> SparseTrainingProblem:
    """The last two columns, which are free, explain the target exactly."""
    X = np.random.default_rng(5).normal(size=(30, 5))
    X[:, 4] = 1.0
    f = 0.7 * X[:, 3] - 0.2
    y = {"squared": f, "logistic": np.sign(X[:, 3]), "poisson": np.exp(f)}[loss]
    return SparseTrainingProblem.linear(
        X, y, [[0], [1], [2]], loss, lam=0.1, alpha=0.5, M=3, free=[3, 4],
        **{"M_free": 1e4} | settings,
    )  # fmt: skip


@pytest.fixture(scope="module", params=LOSSES)
def zero(request: pytest.FixtureRequest) -> ProofCertificate:
    found = branch_and_bound(exact(request.param))
    assert found.status == "optimal" and found.check().vanishes
    return found


def test_a_stored_certificate_is_judged_from_its_weights(
    zero: ProofCertificate, tmp_path: Path
) -> None:
    zero.save(tmp_path / "c.json")
    again = load(tmp_path / "c.json", zero.problem)
    assert again.vanishes and again.gap == 0 and again.check().ok
    content = json.loads((tmp_path / "c.json").read_text())
    content["weights"][3] *= 1e-3 if zero.problem.loss == "logistic" else 1 - 1e-6
    (tmp_path / "c.json").write_text(json.dumps(content))
    moved = load(tmp_path / "c.json", zero.problem)
    assert not moved.vanishes and moved.gap == 1.0
    assert not moved.check().vanishes


def test_to_state_zero_makes_nothing_zero(zero: ProofCertificate) -> None:
    weights = zero.weights.clone()
    weights[3:] = 0.0
    for objective in (0.0, zero.objective):
        found = dataclasses.replace(zero, weights=weights, objective=objective)
        assert not found.vanishes
        checked = found.check()
        assert not checked.ok and not checked.vanishes and checked.gap == 1.0


def test_a_price_that_is_paid_is_not_zero(zero: ProofCertificate) -> None:
    used = zero.indicators.clone()
    used[0] = 1.0
    found = dataclasses.replace(zero, indicators=used)
    assert not found.vanishes and not found.check().vanishes


def test_weights_that_cancel_hide_nothing() -> None:
    """Two equal columns with weights of 1e15: rounding could make their cost anything from 0 on."""
    problem = SparseTrainingProblem.linear(
        np.ones((4, 2)), [1.0, 1.0, 1.0, 1.0], [[0], [1]], lam=1e-40, alpha=0.0, M=1e17
    )
    record = Record(-1, -1, NONE, np.zeros((0, 1, 1)), None, NONE, NONE, -1)
    big = 2.0**53
    value = check(problem, Stated(np.array([big, -big]), np.ones(2), 0.0, 0.0, [record])).objective
    stated = Stated(np.array([big, -big]), np.ones(2), value, 0.0, [record])
    found = check(problem, stated)
    assert found.ok and found.objective > 1.0 and found.bound == 0.0
    assert not found.vanishes and found.gap == 1.0


def test_nothing_to_explain_costs_nothing_in_any_support() -> None:
    problem = SparseTrainingProblem.linear(
        np.eye(3), np.zeros(3), [[0], [1], [2]], lam=0.1, alpha=1.0, M=1.0, forbidden=[[]]
    )
    found = branch_and_bound(problem)
    assert found.status == "optimal" and found.gap == 0 and found.indicators.sum() == 1
    assert found.check().ok


def test_forbidden_supports_of_weights_at_zero_count_with_one_more_entity() -> None:
    problem = SparseTrainingProblem.linear(
        np.eye(3), np.zeros(3), [[0], [1], [2]], lam=0.1, alpha=0.5, M=1.0, u=[3, 1, 2],
        forbidden=[[], [1]],
    )  # fmt: skip
    # The cheapest support that counts is that of entity 2, which costs 0.1: w^2 <= (0.1 - price) / ridge.
    bounds = weight_bounds(problem, np.zeros(3))
    for i, u in enumerate((3, 1, 2)):
        plain = math.sqrt(max(0.0, 0.1 - 0.05 * u) / (0.05 * u))
        assert bounds[i] <= plain * (1 + 1e-9)
    found = branch_and_bound(dataclasses.replace(problem, M=torch.full((3,), 1.0).double()))
    assert found.objective == pytest.approx(0.1) and found.indicators.tolist() == [0, 0, 1]
    nothing = dataclasses.replace(
        problem,
        rules=dataclasses.replace(
            problem.rules,
            forbidden=torch.tensor([[bool(i & b) for b in (1, 2, 4)] for i in range(8)]),
        ),
    )
    with pytest.raises(ValueError, match="one of those that do not count"):
        weight_bounds(nothing, np.zeros(3))

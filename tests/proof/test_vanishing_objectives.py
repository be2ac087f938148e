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


def test_an_objective_within_a_wide_allowance_is_still_not_as_stated() -> None:
    # The loss at zero is 1e12 and an allowance of 1e-10 of it 100: more than the objective.
    rng = np.random.default_rng(1)
    X = np.c_[rng.normal(size=(30, 4)), np.ones(30)]
    y = 1e6 + X[:, :2] @ [2.0, 1.0] + 0.5 * rng.normal(size=30)
    problem = SparseTrainingProblem.linear(
        X, y, [[0], [1], [2], [3]], lam=0.3, alpha=0.1, M=10, free=[4], M_free=2e6
    )
    found = branch_and_bound(problem, time_limit=5)
    assert found.check().ok and 0.1 < found.objective < 10
    everything = torch.ones_like(found.indicators)
    for claim in (
        {"objective": 0.0, "bound": 0.0, "indicators": everything},
        {"indicators": torch.zeros_like(found.indicators)},
        {"objective": found.bound - 1e-3, "bound": found.bound - 1e-3},
    ):
        told = dataclasses.replace(found, status="optimal", **claim).check()
        assert not told.ok and not told.vanishes, claim


def test_counts_too_large_for_the_arithmetic_are_not_called_zero() -> None:
    # The rounding of the deviance, about 10, hides it and the price alike.
    rng = np.random.default_rng(3)
    X = np.c_[rng.normal(size=(30, 3)), np.ones(30)]
    mean = 1e13 * np.exp(0.2 * X[:, 0])
    y = np.round(mean + np.sqrt(mean) * rng.normal(size=30))
    for lam in (0.3, 3.0):
        problem = SparseTrainingProblem.linear(
            X, y, [[0], [1], [2]], "poisson", lam=lam, alpha=0.01, M=1, free=[3], M_free=100
        )
        found = branch_and_bound(problem, time_limit=5)
        assert found.status != "optimal" and found.gap > 0.1 and not found.vanishes


def test_nothing_is_zero_that_a_cheap_entity_could_better() -> None:
    # Two free columns explain the target up to rounding. An entity costs less than that rounding.
    rng = np.random.default_rng(2)
    X = rng.normal(size=(20, 3))
    y = X[:, 1:] @ [0.3, 0.7]
    for lam, zero in ((1e-3, True), (1e-40, False)):
        problem = SparseTrainingProblem.linear(
            X, y, [[0]], lam=lam, alpha=0.5, M=1, free=[1, 2], M_free=1
        )
        record = Record(-1, -1, NONE, np.zeros((0, 1, 1)), None, NONE, NONE, -1)
        stated = Stated(np.array([0.0, 0.3, 0.7]), np.zeros(1), 0.0, 0.0, [record])
        found = check(problem, stated)
        assert 0 < found.objective < 1e-25 and found.vanishes == zero


def test_weights_at_zero_pay_for_what_others_need() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2))
    y = X[:, 1] - X[:, 0] + 0.2 * rng.normal(size=40)  # the first would want to be negative
    problem = SparseTrainingProblem.linear(
        X, y, [[0], [1]], lam=0.02, alpha=0.1, M=10, max_entities=2, needs={1: [0]},
        nonnegative=[0, 1],
    )  # fmt: skip
    found = branch_and_bound(problem)
    assert found.indicators.tolist() == [1.0, 1.0] and found.weights[0] == 0
    bounds = weight_bounds(problem, found.weights.numpy(), found.weights.numpy())
    assert np.isfinite(bounds).all() and (bounds[1] >= float(found.weights[1])).all()

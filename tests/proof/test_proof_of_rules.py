"""Certificates that break a rule, a sign, or claim another problem's rules are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import load


def problem(**asked: Any) -> SparseTrainingProblem:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 4))
    y = X @ [1.0, -1.0, 0.8, 0.0] + 0.1 * rng.normal(size=30)
    return SparseTrainingProblem.linear(
        X, y, [[0], [1], [2], [3]], lam=0.02, alpha=0.1, M=3.0, **asked
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_entities": 2}, "2 are the most"),
        ({"required": [3]}, "entity 3 is required"),
        ({"needs": {0: [3]}}, "without entity 3"),
        ({"nonnegative": [1]}, "negative weight"),
    ],
)
def test_a_solution_that_breaks_a_rule_is_refused(asked: dict[str, Any], said: str) -> None:
    free = branch_and_bound(problem())
    assert free.indicators.tolist() == [1, 1, 1, 0]
    posing = dataclasses.replace(free, problem=problem(**asked))
    found = posing.check()
    assert not found.ok and any(said in fault for fault in found.problems)


def test_a_bound_under_rules_is_not_one_without_them() -> None:
    limited = branch_and_bound(problem(max_entities=1))
    assert limited.check().ok
    plain = branch_and_bound(problem())
    assert limited.bound > plain.objective  # the rule costs something
    posing = dataclasses.replace(limited, problem=problem())
    assert not posing.check().ok


def test_a_certificate_belongs_to_its_rules(tmp_path: Any) -> None:
    made = branch_and_bound(problem(max_entities=2, nonnegative=[0]))
    made.save(tmp_path / "certificate.json")
    load(tmp_path / "certificate.json", problem(max_entities=2, nonnegative=[0]))
    for other in ({"max_entities": 3, "nonnegative": [0]}, {"max_entities": 2}, {}):
        with pytest.raises(ValueError, match="another problem"):
            load(tmp_path / "certificate.json", problem(**other))


def test_a_free_weight_outside_its_bound_is_refused() -> None:
    rng = np.random.default_rng(1)
    X = np.c_[rng.normal(size=(30, 2)), np.ones(30)]
    y = np.where(X[:, 0] + 0.3 > 0, 1.0, -1.0)
    p = SparseTrainingProblem.linear(
        X, y, [[0], [1]], "logistic", lam=0.05, alpha=0.2, M=9.0, M_free=9.0, free=[2]
    )
    made = branch_and_bound(p)
    assert made.check().ok
    tight = dataclasses.replace(p, M_free=float(made.weights[2].abs()) / 2)
    assert not dataclasses.replace(made, problem=tight).check().ok


def test_the_exact_check_says_what_it_does_not_take() -> None:
    made = branch_and_bound(problem(max_entities=1))
    with pytest.raises(ValueError, match="no rules"):
        made.check(exact=True)


def test_limited_entities_bound_as_well_as_every_subset_does() -> None:
    # The bound of a record under the rule is at most that of each allowed support by itself.
    p = problem(max_entities=2)
    made = branch_and_bound(p, 1e-7)
    values = []
    for mask in range(16):
        support = torch.tensor([bool(mask >> i & 1) for i in range(4)])
        if int(support.sum()) <= 2:
            fixed = problem(required=support.nonzero().flatten().tolist(), max_entities=2)
            values.append(branch_and_bound(fixed, 1e-7).objective)
    assert min(values) == pytest.approx(made.objective, rel=1e-6)
    assert made.bound <= min(values) * (1 + 1e-9)

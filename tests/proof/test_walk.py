"""What the walk leaves out: bounds that do not matter, columns that nothing needs, and who hears of it."""

import numpy as np
import pytest
from certified_problems import curvature_at_once, random_problem, tree_problem

from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof import gradients, tree
from spr_or.proof.check import prove
from spr_or.proof.tree import CONTINUES, Proof


def test_leaves_that_prove_nothing_inherit_what_stands_above_them():
    problem = tree_problem()
    good = branch_and_bound(problem).proof.records[0]
    proof = Proof()
    proof.add(-1, CONTINUES, good.entities, good.W, None)
    alone = prove(problem, proof.records).bound
    nothing = np.zeros((0, *good.W.shape[1:]))
    proof.branch(0, 0)
    for value in (0, 1):
        proof.add(0, value, [], nothing, None)
    weak = Proof()
    weak.add(-1, CONTINUES, [], nothing, None)
    assert prove(problem, weak.records).bound < alone
    assert prove(problem, proof.records).bound == alone


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("seed", [2, 3, 7, 13])
def test_the_bound_is_that_of_a_walk_that_leaves_nothing_out(seed, at_once, monkeypatch):
    if at_once:
        curvature_at_once(monkeypatch)
    problem = random_problem(seed)
    records = branch_and_bound(problem, gap=1e-6).proof.records
    bound = prove(problem, records).bound
    monkeypatch.setattr(tree, "settling", lambda records: range(len(records)))
    monkeypatch.setattr(gradients, "_trunk", lambda records: (set(), np.zeros(0, dtype=np.int64)))
    assert prove(problem, records).bound == pytest.approx(bound, rel=1e-12, abs=0)


def test_records_below_a_root_that_fixes_entities_go_without_their_columns():
    """Single columns, of which the root leaves a few."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 40))
    y = X[:, 0] - X[:, 1] + 0.5 * rng.normal(size=60)
    problem = SparseTrainingProblem.linear(
        X, y, [[j] for j in range(40)], lam=0.03, alpha=0.1, M=2.0
    )
    certificate = branch_and_bound(problem)
    records = certificate.proof.records
    trunk, gone = gradients._trunk(records)
    assert 0 in trunk and len(gone) and len(records) > len(trunk)
    assert certificate.check().ok


def test_a_check_tells_how_far_it_is():
    certificate = branch_and_bound(tree_problem())
    heard: list[tuple[int, int]] = []
    assert certificate.check(tell=lambda done, of: heard.append((done, of))).ok
    count = len(certificate.proof.records)
    assert heard == [(number, count) for number in range(1, count + 1)]

"""Certificates crafted to state what is false: each was accepted once, or made the check hang."""

import json
import math
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from certified_problems import tree_problem

from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import load
from spr_or.proof.check import Stated, check, prove
from spr_or.proof.rounding import lengths
from spr_or.proof.tree import Record

NONE = np.zeros(0, np.int64)


def linear(X, y, parts, **settings):
    return SparseTrainingProblem.linear(X, y, parts, **settings)


def record(n=0, k=1, d=None, clusters=None, W=None):
    W = np.zeros((n, k, 1)) if W is None else W
    return Record(-1, -1, np.arange(n), W, d, NONE, NONE, -1, clusters)


@pytest.mark.parametrize("exact", [False, True])
def test_curvature_that_is_not_symmetric_is_refused(exact):
    problem = linear([[1.0, 0], [0, 1.0]], [2.0, 1.0], [[0, 1]], lam=0.01, alpha=0.5, M=10)
    d = np.array([[[0.4, -1e6], [1e6, 0.4]]])
    stated = Stated(np.zeros(2), np.zeros(1), 2.5, 2.49, [record(1, 2, d)])
    found = check(problem, stated, exact)
    assert not found.ok and any("symmetric" in text for text in found.problems)


@pytest.mark.parametrize(
    "settings", [{"lam": 1e-200, "M": 1e160}, {"lam": 0.1, "M": 1e160}, {"lam": 1e-200, "M": 1.0}]
)
def test_numbers_whose_squares_leave_the_range_are_refused(settings):
    problem = linear([[1.0]], [1.0], [[0]], alpha=0.5, **settings)
    with pytest.raises(ValueError, match="choose other units"):
        prove(problem, [record()])
    with pytest.raises(ValueError, match="choose other units"):
        branch_and_bound(problem)


@pytest.mark.parametrize(
    ("xs", "ys"), [(1e-60, 1e-45), (1e-75, 1e-20), (1e-90, 1e-5), (1e80, 1e40)]
)
def test_small_and_large_units_prove_nothing_false(xs, ys):
    lam = 0.01 * ys * ys
    problem = linear([[xs]], [ys], [[0]], lam=lam, alpha=0.5, M=10 * ys / xs)
    for share in (0.5, 0.99):
        moved = record(1, 1, np.array([[share * xs * xs]]))
        for records in ([moved], [record()]):
            below = prove(problem, records).bound
            assert Fraction(below) <= prove(problem, records, exact=True).bound
            assert below <= ys * ys  # no weight costs this


def test_lengths_of_tiny_columns_do_not_underflow():
    found = lengths(np.array([[3e-200, 0.0, 3e150], [4e-200, 0.0, 4e150]]))
    assert found[0] >= 5e-200 and found[2] >= 5e150 and found[2] < 6e150 and found[1] < 1e-280


@pytest.mark.parametrize("stated", [0.0, 1.0, 1.1999, 123456.0])
def test_weights_that_cancel_cannot_hide_what_they_cost(stated):
    problem = linear([[1e17, 1e17]], [1.0], [[0], [1]], lam=0.1, alpha=0.5, M=4)
    claim = Stated(np.array([1.0, -1.0]), np.ones(2), stated, 0.0, [record()])
    assert not check(problem, claim).ok


def test_one_cluster_of_many_entities_is_refused_at_once():
    problem = linear(np.eye(30), np.ones(30), [[j] for j in range(30)], lam=0.1, alpha=0.5, M=10)
    d = 0.01 * np.eye(30)[None]
    crafted = record(30, 1, d, np.arange(30)[None])
    for exact in (False, True):
        assert "more than 8 entities" in prove(problem, [crafted], exact).faults[0]


def test_more_clusters_than_entities_are_refused():
    problem = linear(np.eye(2), np.ones(2), [[0], [1]], lam=0.1, alpha=0.5, M=10)
    clusters = np.full((1000, 2), -1)
    clusters[0] = [0, 1]
    crafted = record(2, 1, np.tile(0.01 * np.eye(2), (1000, 1, 1)), clusters)
    assert "more clusters than entities" in prove(problem, [crafted]).faults[0]


@pytest.fixture
def stored(tmp_path):
    branch_and_bound(tree_problem()).save(tmp_path / "c.json")
    return tmp_path / "c.json"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("objective", 10**400), ("bound", "1"), ("bound", True), ("nodes", None),
        ("solver", "CPLEX"), ("integrality", "relaxed"),
    ],
)  # fmt: skip
def test_a_file_that_states_no_numbers_of_the_solver_is_refused(stored, key, value):
    content = json.loads(stored.read_text())
    content["result"][key] = value
    stored.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="c.json"):
        load(stored, tree_problem())


def test_an_archive_in_the_place_of_the_proof_is_refused(stored):
    content = json.loads(stored.read_text())
    del content["proof"]
    content["proof_file"] = "../../c.npz"  # the name counts, not the way
    stored.write_text(json.dumps(content))
    with zipfile.ZipFile(stored.with_suffix(".npz"), "w") as archive:
        archive.writestr("W.npy", b"no array")
    with pytest.raises(ValueError, match="c.json"):
        load(stored, tree_problem())


def test_points_of_an_entity_named_many_times_are_refused(tmp_path):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(30, 4))
    Y = X @ rng.normal(size=(4, 2)) + rng.normal(size=(30, 2))
    problem = linear(X, Y, [[j] for j in range(4)], lam=0.3, alpha=0.1, M=10)
    certificate = branch_and_bound(problem)
    certificate.save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text())
    proof = content["proof"]
    proof["split"][0] = True
    proof["entities"] = [0] * 50 + proof["entities"][proof["entities_length"][0] :]
    proof["d"] = [0.1] * 50 + proof["d"]
    proof["y"] = [0.5] * 50
    proof["W"] = proof["W"][2 * proof["entities_length"][0] :]
    proof["entities_length"][0] = 50
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="names an entity twice|other lengths"):
        load(tmp_path / "c.json", problem)


def test_a_proven_bound_is_never_above_what_a_solution_costs():
    certificate = branch_and_bound(tree_problem())
    found = certificate.check()
    assert found.ok and math.isfinite(found.objective) and found.bound <= found.objective

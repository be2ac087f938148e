"""Nodes of single columns: the pieces' Newton method against first-order nodes, and trees that use it."""

import dataclasses

import numpy as np
import pytest
import torch
from certified_problems import curvature_at_once

from spr_or.certified_solver import column_nodes, incumbents
from spr_or.certified_solver.block_curvature import spare_curvature
from spr_or.certified_solver.bounds import Terms, dual_bound, penalty_of
from spr_or.certified_solver.column_batches import batch_of, evaluate, smooth_of
from spr_or.certified_solver.column_nodes import ColumnEngine
from spr_or.certified_solver.column_steps import by_active_set
from spr_or.certified_solver.design import Design, design_of
from spr_or.certified_solver.nodes import FirstOrderEngine, Node
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.entities import features
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import load
from spr_or.solvers import enumeration

SETTINGS = {
    "plain": {},
    "a tight box": {"M": 0.3},
    "no ridge": {"alpha": 0.0},
    "no price": {"alpha": 1.0},
    "signs": {"nonnegative": [0, 2, 5, 7]},
    "at most three": {"max_entities": 3},
}


def problem_of(n: int = 40, p: int = 12, **more) -> SparseTrainingProblem:
    """Correlated columns of different scales."""
    rng = np.random.default_rng(5)
    X = (rng.normal(size=(n, p)) + rng.normal(size=(n, 1))) * 10.0 ** rng.uniform(-1, 1, size=p)
    y = X @ np.where(np.arange(p) % 3 == 0, 1.0, 0.0) / np.abs(X).max(0).mean() + rng.normal(size=n)
    return SparseTrainingProblem.linear(
        X, y, features(p), **{"lam": 0.1, "alpha": 0.05, "M": 5.0, **more}
    )


def design_for(problem: SparseTrainingProblem) -> Design:
    design = design_of(problem).with_moments()
    return design.with_shadow(0.02) if problem.rules is not None else design


def some_nodes(design: Design) -> list[Node]:
    """Without fixings, with some of both kinds, and without a choice."""
    every = set(range(design.shape[0]))
    fixings = [([], []), ([1, 4], [0, 6]), ([3], []), ([], [2]), ([1, 3, 4], [0])]
    left = [(sorted(every - set(zeros)), ones) for zeros, ones in fixings] + [([0, 2, 7],) * 2]
    found = []
    for alive, ones in left:
        one = torch.tensor([i in ones for i in alive])
        zero = torch.zeros(len(alive), 1, 1, dtype=torch.float64)
        found.append(Node(torch.tensor(alive), one, zero, None))
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_nodes_have_the_bounds_and_weights_of_first_order_nodes(name):
    design = design_for(problem_of(**SETTINGS[name]))
    assert column_nodes.applies(design)
    ours, others = some_nodes(design), some_nodes(design)
    ColumnEngine(design, 1e-9)(ours, float("inf"))
    FirstOrderEngine(design, 1e-9)(others, float("inf"))
    for own, other in zip(ours, others, strict=True):
        assert own.own == pytest.approx(other.own, abs=2e-9)
        # Flat directions aside, the weights agree as well as the accuracy asked for allows.
        apart = design.restrict(own.position).block() @ (own.W - other.W).flatten()
        assert float(apart.abs().max()) < 1e-3
        decided = other.score.abs() > 1e-3
        assert torch.equal((own.score > 0)[decided], (other.score > 0)[decided])


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "signs"])
def test_bounds_with_moved_curvature_are_those_of_bounds_at_the_same_weights(name):
    design = design_for(problem_of(**SETTINGS[name]))
    nodes = some_nodes(design)
    for node in nodes:
        node.d = spare_curvature(design, node.position)
        assert node.d is not None
    ColumnEngine(design, 1e-9)(nodes, float("inf"))
    G, C, c0 = design.moments
    for node in nodes:
        at, w, d = node.position, node.W.flatten(), node.d.flatten()
        R = G[at][:, at] + torch.diag(design.ridge[at] - d)
        terms = Terms(d.view(1, -1, 1), node.free.unsqueeze(0), node.one.unsqueeze(0))
        gradient = (2 * (R @ w - C[at, 0])).view(1, -1, 1, 1)
        value = (w @ R @ w - 2 * C[at, 0] @ w + c0).unsqueeze(0)
        bound, score = dual_bound(
            penalty_of(design, at), value, gradient, node.W.unsqueeze(0), terms
        )
        assert node.own == pytest.approx(float(bound), rel=1e-10, abs=1e-12)
        torch.testing.assert_close(node.score, score[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SETTINGS)
def test_weights_on_supports_are_the_best_in_the_box(name):
    design = design_for(problem_of(**SETTINGS[name]))
    generator = torch.Generator().manual_seed(1)
    supports = torch.rand(9, 12, generator=generator) < 0.5
    supports[0] = False
    W, objectives = column_nodes.best_weights(design, supports)
    for support, found, objective in zip(supports, W, objectives, strict=True):
        exact = incumbents.in_box(design, support)
        assert objective == pytest.approx(exact.objective, rel=1e-8)
        assert objective <= exact.objective * (1 + 1e-11)
        torch.testing.assert_close(found, exact.W, rtol=1e-6, atol=1e-8)


def wide_problem(**more) -> SparseTrainingProblem:
    """More columns than samples, of scales from 0.1 to 10, and no relation to the target."""
    rng = np.random.default_rng(2)
    X = rng.normal(size=(8, 30)) * 10.0 ** rng.uniform(-1, 1, size=30)
    settings = {"lam": 0.03, "alpha": 0.05, "M": 4.0, **more}
    return SparseTrainingProblem.linear(X, rng.normal(size=8), features(30), **settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_active_set_solves_nodes_with_more_columns_than_samples(name, monkeypatch):
    """Every node to 1e-9, from its parent's weights and from far away, and without first-order steps."""
    design = design_for(wide_problem(**SETTINGS[name]))
    nodes, others, far = some_nodes(design), some_nodes(design), some_nodes(design)
    FirstOrderEngine(design, 1e-10)(others, float("inf"))
    generator = torch.Generator().manual_seed(0)
    for node in far:
        node.W = torch.rand(node.W.shape, generator=generator, dtype=torch.float64)
        node.W *= design.M[node.position].view(-1, 1, 1)
    monkeypatch.setattr(FirstOrderEngine, "__call__", lambda *_: pytest.fail("first-order steps"))
    engine = ColumnEngine(design, 1e-9)
    engine(nodes, float("inf"))
    engine(far, float("inf"))
    for own, from_far, other in zip(nodes, far, others, strict=True):
        assert own.own == pytest.approx(from_far.own, abs=2e-9)
        assert own.own >= other.own - 1e-9


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_of_the_active_set_never_raise_the_value_and_stay_in_the_box(name):
    smooth = smooth_of(design_for(wide_problem(**SETTINGS[name])))
    rng = np.random.default_rng(1)
    batch = batch_of(smooth, np.ones((20, 30), bool), rng.random((20, 30)) < 0.1, None)
    low = np.zeros(30) if name == "signs" else -smooth.M
    now = evaluate(batch, rng.uniform(low, smooth.M) * (rng.random((20, 30)) < 0.3))
    for step in range(60):
        w, _ = by_active_set(batch, now, np.full(20, step % 2 == 0))
        new = evaluate(batch, w)
        assert (new.value <= now.value + 1e-12 * np.abs(now.value)).all()
        assert (w <= smooth.M).all() and (w >= -smooth.M).all()
        assert smooth.signed is None or (w[:, smooth.signed] >= 0).all()
        now = new


def test_more_columns_than_samples_and_two_columns_that_are_equal():
    """Newton's equations are singular there."""
    problem = problem_of(n=6, p=11, alpha=0.001, lam=0.05)
    X = problem.X.clone()
    X[:, 3] = X[:, 0]
    problem = dataclasses.replace(problem, X=X)
    certificate = branch_and_bound(problem, gap=1e-5)
    best = enumeration.solve(problem).objective
    assert certificate.status == "optimal" and certificate.check().ok
    assert certificate.objective == pytest.approx(best, rel=1e-5)
    assert certificate.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("name", SETTINGS)
def test_trees_end_at_what_enumeration_finds(name):
    problem = problem_of(p=10, lam=0.03, **SETTINGS[name])
    certificate = branch_and_bound(problem, gap=1e-7)
    assert certificate.status == "optimal" and certificate.check().ok
    if problem.rules is None and problem.nonnegative is None:
        best = enumeration.solve(problem).objective
        assert certificate.objective == pytest.approx(best, rel=1e-7)
        assert certificate.bound <= best * (1 + 1e-9)
        assert certificate.check(exact=True).ok


def test_children_keep_the_curvature_that_the_root_moves(monkeypatch, tmp_path):
    curvature_at_once(monkeypatch)
    problem = problem_of(n=60, p=12, lam=0.02, alpha=0.001)
    certificate = branch_and_bound(problem, gap=1e-7)
    moved = [record for record in certificate.proof.records if record.d is not None]
    assert len(moved) > 2
    assert all(record.d.ndim == 2 for record in moved)
    assert certificate.status == "optimal"
    assert certificate.check().ok and certificate.check(exact=True).ok
    assert certificate.objective == pytest.approx(enumeration.solve(problem).objective, rel=1e-7)
    certificate.save(tmp_path / "c.json")
    loaded = load(tmp_path / "c.json", problem)
    assert loaded.check().ok and loaded.check().bound == certificate.check().bound


def test_it_is_for_single_columns_with_moments_only():
    single, grouped = problem_of(), problem_of()
    grouped = SparseTrainingProblem.linear(
        grouped.X, grouped.y, [[0, 1], *([j] for j in range(2, 12))], lam=0.1, alpha=0.05, M=5.0
    )
    assert column_nodes.applies(design_for(single))
    assert not column_nodes.applies(design_for(grouped))
    assert not column_nodes.applies(design_of(single))  # without moments

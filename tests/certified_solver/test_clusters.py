"""Curvature in clusters of entities: against a semidefinite solver, enumeration, and tampering."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
import torch
from slow_cases import slow_unless

from spr_or.certified_solver import block_curvature, clusters, incumbents, solver
from spr_or.certified_solver.bounds import forced_bounds
from spr_or.certified_solver.clusters import ClusterEngine, partition
from spr_or.certified_solver.design import Design, design_of
from spr_or.certified_solver.nodes import FirstOrderEngine, Node
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import load
from spr_or.solvers import enumeration


def random_problem(
    seed: int, sizes: tuple[int, ...], M: float = 10.0, outputs: int = 1
) -> SparseTrainingProblem:
    """Correlated columns, undecided entities, a ridge that leaves curvature to move."""
    rng = np.random.default_rng(seed)
    p, n = sum(sizes), 3 * sum(sizes)
    X = rng.normal(size=(n, p)) + rng.normal(size=(n, 1))
    y = X @ rng.normal(size=(p, outputs)) + 2 * rng.normal(size=(n, outputs))
    ends = np.cumsum(sizes)
    groups = [list(range(e - s, e)) for s, e in zip(sizes, ends, strict=True)]
    u = rng.uniform(0.7, 1.4, size=len(sizes))
    return SparseTrainingProblem.linear(X, y, groups, lam=0.5, alpha=0.2, M=M, u=u)


def root_of(problem: SparseTrainingProblem, members: list[list[int]], mu: float = 1e-6):
    """The root with the best curvature for these clusters, down to a barrier of ``mu``."""
    design = design_of(problem).with_moments()
    N, k, q = design.shape
    node = Node(
        torch.arange(N), torch.zeros(N, dtype=torch.bool), torch.zeros(N, k, q, dtype=torch.float64),
        block_curvature.spare_curvature(design, torch.arange(N)),
    )  # fmt: skip
    engine_of(design, members, mu).begin(node)
    at = float(design.moments.c0) / (N * k)
    while at > mu:
        at = max(at / 2, mu)
        engine_of(design, members, at)([node], torch.inf)
    return design, node


def engine_of(design: Design, members: list[list[int]], mu: float, steps: int = 40):
    return ClusterEngine(
        design, torch.tensor(members), FirstOrderEngine(design, 1e-6), mu, steps, 1, lambda: False
    )


def semidefinite_bound(problem: SparseTrainingProblem, members: list[list[int]]) -> float:
    """The same relaxation from its other side: moments of w, hulls of the supports of each cluster."""
    design = design_of(problem).with_moments()
    k = design.shape[1]
    Q, c = design.quadratic().numpy(), design.moments.C[:, 0].numpy()
    price, P = design.price.numpy(), len(c)
    moments = cp.Variable((P + 1, P + 1), PSD=True)
    w, second = moments[0, 1:], moments[1:, 1:]
    constraints = [moments[0, 0] == 1]
    cost = cp.trace(Q @ second) - 2 * c @ w + float(design.moments.c0)
    for cluster in members:
        inside = [i for i in cluster if i >= 0]
        at = [i * k + j for i in inside for j in range(k)]
        parts = []
        for bits in itertools.product((0, 1), repeat=len(inside)):
            used = np.repeat(np.array(bits, dtype=bool), k)
            part = cp.Variable((len(at) + 1, len(at) + 1), PSD=True)
            off = np.flatnonzero(~used) + 1
            if len(off):
                constraints.append(part[off, :] == 0)
            cost = cost + part[0, 0] * sum(price[i] for i, b in zip(inside, bits, strict=True) if b)
            parts.append(part)
        total = sum(parts)
        constraints += [total[0, 0] == 1, total[0, 1:] == w[at]]
        constraints.append(total[1:, 1:] == second[np.ix_(at, at)])
    problem_ = cp.Problem(cp.Minimize(cost), constraints)
    problem_.solve(solver=cp.CLARABEL)
    return float(problem_.value)


@pytest.mark.parametrize(
    ("seed", "sizes", "members"),
    [
        (0, (2, 2, 2, 2), [[0, 2], [3, 1]]),
        (1, (1, 1, 1, 1, 1), [[0, 1, 4], [3, 2, -1]]),
        (2, (2, 1, 2), [[0, 1, 2]]),
        (3, (2, 2, 2), [[0, -1], [1, 2]]),
    ],
)
def test_the_best_curvature_is_that_of_a_semidefinite_solver(seed, sizes, members):
    problem = random_problem(seed, sizes)
    _, node = root_of(problem, members)
    truth = semidefinite_bound(problem, members)
    assert node.own <= truth + 1e-5 * abs(truth)
    assert node.own == pytest.approx(truth, rel=2e-4)


@pytest.mark.parametrize("outputs", [1, 3])
def test_one_cluster_of_all_entities_is_the_integer_problem(outputs):
    problem = random_problem(5, (1, 2, 1, 2), outputs=outputs)
    _, node = root_of(problem, [[0, 1, 2, 3]], mu=1e-8)
    assert node.own == pytest.approx(enumeration.solve(problem).objective, rel=1e-4)


def costs(problem: SparseTrainingProblem) -> dict[tuple[bool, ...], float]:
    """The objective of every support, by scipy's bounded least squares."""
    design = design_of(problem).with_moments()
    every = itertools.product((False, True), repeat=design.shape[0])
    return {bits: incumbents.in_box(design, torch.tensor(bits)).objective for bits in every}


@pytest.mark.parametrize("M", [10.0, 0.4])
@pytest.mark.parametrize("seed", slow_unless(lambda seed: seed < 3, range(6)))
def test_bounds_of_nodes_and_of_what_they_force_hold(seed, M):
    sizes = (2, 1, 3, 2, 1)
    problem = random_problem(seed, sizes, M, outputs=1 + seed % 2)
    members = [[4, 0, 3], [1, 2, -1]]
    every = costs(problem)
    design, root = root_of(problem, members, mu=1e-4)
    engine = engine_of(design, members, 1e-4, steps=seed % 3)
    for fixed in ({}, {0: 1}, {2: 0}, {3: 1, 2: 0}, {0: 0, 3: 0, 1: 1}):
        node = root
        if fixed:
            kept = torch.tensor([fixed.get(i) != 0 for i in range(len(sizes))])
            one = torch.tensor([fixed.get(i) == 1 for i in range(len(sizes))])
            node = root.keep(kept, one)
            node.own = node.bound = -torch.inf
            engine([node], torch.inf)
            if M > 1:  # the search for D leaves the box out; its barrier weighs 1e-4
                assert node.own >= root.own - 1e-6
        allowed = {
            bits: cost for bits, cost in every.items()
            if all(bits[i] == bool(v) for i, v in fixed.items())
        }  # fmt: skip
        assert node.own <= min(allowed.values()) + 1e-9
        assert node.score is not None
        forced = forced_bounds(node.own, node.score)
        for row, i in enumerate(node.position.tolist()):
            for value, bound in zip((1, 0), forced, strict=True):
                if bool(node.free[row]):
                    best = min(cost for bits, cost in allowed.items() if bits[i] == bool(value))
                    assert float(bound[row]) <= best + 1e-9


def test_clusters_are_a_partition_of_what_belongs_together():
    rng = np.random.default_rng(0)
    n, pairs = 200, 5
    common = np.repeat(rng.normal(size=(n, pairs)), 2, axis=1)
    order = rng.permutation(2 * pairs)
    X = (common + 0.3 * rng.normal(size=(n, 2 * pairs)))[:, order]
    problem = SparseTrainingProblem.linear(
        X, X.sum(1), [[j] for j in range(2 * pairs)], lam=0.1, alpha=0.5, M=5
    )
    design = design_of(problem).with_moments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_ENTITIES", 2)
        found = partition(design, torch.full((2 * pairs,), 0.5, dtype=torch.float64))
    twins = {tuple(sorted(np.flatnonzero(order // 2 == pair).tolist())) for pair in range(pairs)}
    assert {tuple(sorted(row)) for row in found.tolist()} == twins
    seven = partition(design.restrict(torch.arange(7)), torch.full((7,), 0.5, dtype=torch.float64))
    assert sorted(seven[seven >= 0].tolist()) == list(range(7))


def test_entities_too_wide_for_a_cluster_are_left_alone():
    problem = random_problem(0, (13, 13))
    assert partition(design_of(problem).with_moments(), torch.full((2,), 0.5)) is None


def only_clusters(patch: pytest.MonkeyPatch) -> None:
    """No trees but the one with clusters, of two entities."""
    patch.setattr(solver, "_TRIAL", 0)
    patch.setattr(solver, "_SPLIT_TRIAL", 0)
    patch.setattr(clusters, "_ENTITIES", 2)


@pytest.fixture
def at_once(monkeypatch):
    only_clusters(monkeypatch)


def in_clusters(certificate) -> list:
    return [r for r in certificate.proof.records if r.clusters is not None]


@pytest.mark.parametrize("M", [10.0, 0.5])
@pytest.mark.parametrize("seed", slow_unless(lambda seed: seed < 4, range(8)))
def test_the_tree_agrees_with_enumeration(seed, M, at_once, tmp_path):
    problem = random_problem(seed, (2, 1, 3, 2, 1, 2, 2), M)
    certificate = branch_and_bound(problem, gap=1e-6)
    truth = enumeration.solve(problem)
    assert certificate.objective == pytest.approx(truth.objective, rel=1e-6)
    assert certificate.bound <= truth.objective + 1e-9
    assert certificate.check().ok
    certificate.save(tmp_path / "c.json")
    assert load(tmp_path / "c.json", problem).check().ok


@pytest.mark.parametrize("M", [10.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_trees_of_several_outputs_agree_with_enumeration(seed, M, at_once, tmp_path):
    problem = random_problem(seed, (2, 1, 3, 2, 1, 2, 2), M, outputs=3)
    certificate = branch_and_bound(problem, gap=1e-8)
    truth = enumeration.solve(problem)
    assert certificate.objective == pytest.approx(truth.objective, rel=1e-6)
    assert certificate.bound <= truth.objective + 1e-9
    assert in_clusters(certificate) or len(certificate.proof.records) < 4
    certificate.save(tmp_path / "c.json")
    assert load(tmp_path / "c.json", problem).check().ok


def test_the_check_in_fractions_confirms_clusters_of_several_outputs(at_once):
    certificate = branch_and_bound(random_problem(16, (2,) * 7, outputs=2), gap=1e-9)
    assert in_clusters(certificate)
    exact, floats = certificate.check(exact=True), certificate.check()
    assert exact.ok and floats.ok
    assert exact.bound == pytest.approx(floats.bound, rel=1e-9)
    in_clusters(certificate)[-1].d *= 1.5
    assert not certificate.check().ok and not certificate.check(exact=True).ok


def _exchange(record):
    record.clusters = record.clusters.copy()
    record.clusters[0, 0], record.clusters[1, 0] = (
        int(record.clusters[1, 0]), int(record.clusters[0, 0]),
    )  # fmt: skip


def _leave_out(record):
    record.clusters = np.where(record.clusters == record.entities[0], -1, record.clusters)


def _name_twice(record):
    record.clusters = record.clusters.copy()
    record.clusters[0, 0] = record.clusters[1, 0]


def _take_too_much(record):
    record.d = 1.5 * record.d


def _make_indefinite(record):
    record.d = record.d.copy()
    record.d[0, 0, 0] *= -1


@pytest.fixture(scope="module")
def tree():
    with pytest.MonkeyPatch.context() as patch:
        only_clusters(patch)
        certificate = branch_and_bound(random_problem(16, (2,) * 7), gap=1e-9)
    assert len(in_clusters(certificate)) >= 3
    return certificate


def test_the_check_in_fractions_confirms_clusters(tree):
    exact, floats = tree.check(exact=True), tree.check()
    assert exact.ok, exact.problems
    assert floats.ok and exact.bound == pytest.approx(floats.bound, rel=1e-9)


@pytest.mark.parametrize(
    "tamper", [_exchange, _leave_out, _name_twice, _take_too_much, _make_indefinite]
)
@pytest.mark.parametrize("exact", [False, True])
def test_tampered_clusters_fail(tree, tmp_path, tamper, exact):
    tree.save(tmp_path / "c.json")
    copy = load(tmp_path / "c.json", tree.problem)
    assert copy.check(exact=exact).ok
    tamper(in_clusters(copy)[-1])
    assert not copy.check(exact=exact).ok


@pytest.mark.parametrize("seed", [1, 2, 11])
def test_what_the_root_fixed_stays_when_the_tree_begins_again(seed, at_once):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(100, 30))
    y = X[:, :6] @ [2, 2, 1.5, 1.5, 0.45, 0.4] + rng.normal(size=100)
    problem = SparseTrainingProblem.linear(
        X, y, [[j] for j in range(30)], lam=[0.2, 0.3, 0.4, 0.5][seed % 4],
        alpha=[0.1, 0.3, 0.5][seed % 3], M=10,
    )  # fmt: skip
    certificate = branch_and_bound(problem, gap=1e-6)
    first, second = certificate.proof.records[:2]
    assert len(first.zeros) >= 10 and second.d is not None
    assert len(second.entities) == 30 - len(first.zeros)
    check = certificate.check()
    assert check.ok, check.problems

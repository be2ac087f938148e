"""The certified solver against enumeration, and its proofs against tampering."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from certified_problems import curvature_at_once, random_problem, tree_problem
from slow_cases import slow_unless

from spr_or.certified_solver import incumbents
from spr_or.certified_solver.block_curvature import SplitEngine, spare_curvature
from spr_or.certified_solver.bounds import Terms, dual_bound, penalty_of
from spr_or.certified_solver.design import descent, design_of, loss_and_gradient, theta_of
from spr_or.certified_solver.node_threads import each_in_a_thread
from spr_or.certified_solver.nodes import Node
from spr_or.certified_solver.search import Search
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations import bigm
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import load
from spr_or.proof.exact import fractions_of, semidefinite
from spr_or.proof.rounding import positive_definite
from spr_or.proof.tree import Proof
from spr_or.solvers import enumeration
from spr_or.solvers.time_limit import TimeLimit

# These take longest to enumerate and are among the slow ones.
MANY_ENTITIES = (1, 3, 9, 12, 18, 28, 32, 33)


@pytest.mark.parametrize("seed", [seed for seed in range(41) if seed not in MANY_ENTITIES])
def test_agrees_with_enumeration_and_checks(seed):
    problem = random_problem(seed)
    certificate = branch_and_bound(problem, gap=1e-5)
    truth = enumeration.solve(problem)
    assert certificate.status == "optimal"
    scale = max(abs(truth.objective), 1e-6)
    assert abs(certificate.objective - truth.objective) <= 2e-5 * scale
    assert certificate.bound <= truth.objective + 1e-9 * scale
    check = certificate.check()
    assert check.ok, check.problems


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*MANY_ENTITIES, *range(41, 200)])
def test_agrees_with_enumeration_on_many_more(seed):
    test_agrees_with_enumeration_and_checks(seed)


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5, 6])
def test_the_exact_check_confirms_the_float_one(seed):
    problem = random_problem(seed)
    certificate = branch_and_bound(problem, gap=1e-4)
    check = certificate.check(exact=True)
    assert check.ok, check.problems
    assert check.bound == pytest.approx(certificate.check().bound, rel=1e-8)


def test_the_exact_check_states_its_limits():
    with pytest.raises(ValueError, match="only the squared loss"):
        branch_and_bound(random_problem(15)).check(exact=True)


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_told_to_stop_it_ends_after_that_round_with_a_proof(rounds):
    seen = []
    certificate = branch_and_bound(
        tree_problem(), node_batch=1, progress=seen.append, stop=lambda: len(seen) >= rounds
    )
    assert certificate.status == "interrupted" and len(seen) == len(certificate.trace) == rounds
    check = certificate.check()
    assert check.ok, check.problems
    truth = enumeration.solve(tree_problem()).objective
    assert certificate.bound <= truth <= certificate.objective + 1e-9
    assert math.isfinite(certificate.bound)


def test_the_search_leaves_no_inference_tensors_and_calls_back_outside_that_mode():
    modes = []

    def note() -> bool:
        modes.append(torch.is_inference_mode_enabled())
        return False

    certificate = branch_and_bound(
        tree_problem(), node_batch=1, progress=lambda _: note(), stop=note
    )
    assert modes and not any(modes)
    assert not certificate.weights.is_inference() and not certificate.indicators.is_inference()
    weights = certificate.weights.clone().requires_grad_()
    (weights * certificate.weights).sum().backward()
    assert torch.equal(weights.grad, certificate.weights)


@pytest.mark.parametrize("mode", [False, True])
def test_threads_have_the_inference_mode_of_their_caller(mode):
    modes = []
    with torch.inference_mode(mode):
        each_in_a_thread(
            lambda _: modes.append(torch.is_inference_mode_enabled()), range(3), workers=2
        )
    assert modes == [mode] * 3


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("groups, q", [(5, 1), (5, 3), (140, 1), (140, 2)])
def test_descent_is_a_step_along_the_gradient(groups, q, moments):
    generator = torch.Generator().manual_seed(groups + q)
    X, Y, W = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((20, 2 * groups), (20, q), (3, groups, 2, q))
    )
    columns = torch.arange(2 * groups).view(groups, 2).tolist()
    design = design_of(SparseTrainingProblem.linear(X, Y, columns, lam=0.1, alpha=0.5, M=3.0))
    design = design.with_moments() if moments else design
    W[:, groups // 3 :] = 0  # few columns used
    step = torch.rand(groups, dtype=torch.float64, generator=generator)
    expected = W - step[:, None, None] * loss_and_gradient(design, W)[1]
    torch.testing.assert_close(descent(design, step)(W), expected, rtol=1e-11, atol=1e-11)


def test_the_plain_bound_is_the_fenchel_bound_of_the_problem():
    for seed in (0, 3):
        problem = random_problem(seed)
        design = design_of(problem)
        W = torch.randn(1, *design.shape, dtype=torch.float64) * design.real.unsqueeze(-1)
        value, gradient = loss_and_gradient(design, W)
        count = len(problem.entities)
        one = torch.zeros(1, count, dtype=torch.bool)
        one[0, 0] = True
        free = ~one
        free[0, 1] = False
        bound, _ = dual_bound(penalty_of(design), value, gradient, W, Terms(None, free, one))
        theta = theta_of(problem, design, W[0]).requires_grad_()
        prediction = problem.predict(theta.detach()).requires_grad_()
        LOSSES[problem.loss].value(prediction, problem.y).sum().backward()
        expected = problem.dual_bound(
            prediction.grad, lower=one[0].double(), upper=(one | free)[0].double()
        )
        assert float(bound) == pytest.approx(float(expected), rel=1e-9)


def split_nodes(problem):
    """The root of a problem with moved curvature, ready to evaluate."""
    design = design_of(problem).with_moments()
    Q = design.moments.G.clone()
    Q.diagonal().add_(design.ridge.repeat_interleave(design.columns.shape[1]))
    smallest = float(torch.linalg.eigvalsh(Q)[0])
    count = design.shape[0]
    node = Node(
        torch.arange(count), torch.zeros(count, dtype=torch.bool),
        torch.zeros(design.shape, dtype=torch.float64),
        spare_curvature(design, torch.arange(count)),
    )  # fmt: skip
    return design, node, smallest


def test_moved_curvature_lies_between_the_relaxation_and_the_optimum():
    """Against an independent semidefinite program (without the box): the best split is its value."""
    cvxpy = pytest.importorskip("cvxpy")
    problem = tree_problem()
    problem = dataclasses.replace(problem, M=50 * problem.M)
    design, node, smallest = split_nodes(problem)
    plain = Node(node.position, node.one, node.W, node.d)
    SplitEngine(design, 1e-6, 0, 0.1 * smallest)([plain], torch.inf)
    for mu in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        SplitEngine(design, mu, 40, 0.1 * smallest)([node], torch.inf)
    G, C, c0 = (x.numpy() for x in design.moments)
    N, k, _ = design.shape
    p = N * k
    Q = G + np.diag(design.ridge.repeat_interleave(k).numpy())
    big = cvxpy.Variable((p + 1, p + 1), PSD=True)
    y = cvxpy.Variable((N, 1))
    w = big[:p, p]
    rules = [big[p, p] == 1, y <= 1]
    for i in range(N):
        own = slice(i * k, (i + 1) * k)
        row = cvxpy.hstack([y[i : i + 1], big[own, p : p + 1].T])
        rules.append(cvxpy.vstack([row, cvxpy.hstack([big[own, p : p + 1], big[own, own]])]) >> 0)
    cost = cvxpy.trace(Q @ big[:p, :p]) - 2 * C[:, 0] @ w + c0 + cvxpy.sum(design.price.numpy() @ y)
    best = cvxpy.Problem(cvxpy.Minimize(cost), rules).solve(solver=cvxpy.CLARABEL)
    assert plain.own < node.own <= best + 1e-6 * abs(best)
    assert node.own == pytest.approx(best, rel=2e-3)
    assert best <= enumeration.solve(problem).objective * (1 + 1e-6)


@pytest.mark.parametrize("rows, can", [(60, True), (20, False)])
def test_curvature_can_be_moved_beside_any_ridge_but_not_with_fewer_samples_than_columns(rows, can):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 24)) + 3 * rng.normal(size=(rows, 1))
    problem = SparseTrainingProblem.linear(
        X, X[:, 0] + rng.normal(size=rows), [[j] for j in range(24)], lam=2.0, alpha=0.5, M=3.0
    )
    design = design_of(problem).with_moments()
    d = spare_curvature(design, torch.arange(24))
    assert (d is not None) == can
    if d is not None:
        rest = design.quadratic() - torch.diag(d.flatten())
        assert float(torch.linalg.eigvalsh(rest)[0]) > 0


def test_a_batch_of_nodes_gives_the_bounds_of_its_nodes_alone():
    problem = tree_problem()
    design, root, smallest = split_nodes(problem)
    engine = SplitEngine(design, 1e-4, 3, 0.1 * smallest)
    engine([root], torch.inf)

    def children():
        made = []
        for i in range(4):
            kept = torch.ones_like(root.one)
            one = root.one.clone()
            kept[: i % 3] = False
            one[3:] = i > 1
            made.append(root.keep(kept, one))
        return made

    together = children()
    engine(together, torch.inf)
    for node, alone in zip(together, children(), strict=True):
        engine([alone], torch.inf)
        assert node.own == pytest.approx(alone.own, rel=1e-6)


@pytest.fixture(scope="module")
def tree():
    with pytest.MonkeyPatch.context() as patch:
        curvature_at_once(patch)  # a small tree, and yet with moved curvature
        certificate = branch_and_bound(tree_problem(), gap=1e-5)
    records = certificate.proof.records
    assert any(r.branch >= 0 for r in records) and any(r.d is not None for r in records)
    assert certificate.check().ok
    return certificate


def reloaded(tree, path):
    """An equal certificate whose parts may be changed."""
    tree.save(path / "tree.json")
    return load(path / "tree.json", tree_problem())


def test_saved_and_loaded_it_checks_the_same(tree, tmp_path):
    again = reloaded(tree, tmp_path)
    assert again.check() == tree.check()
    assert again.bound == tree.bound and again.nodes == tree.nodes


def test_large_proofs_keep_their_numbers_beside_the_json(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("spr_or.proof.certificate._INLINE", 10)
    again = reloaded(tree, tmp_path)
    assert (tmp_path / "tree.npz").exists() and again.check() == tree.check()


def _raise_bound(c):
    return dataclasses.replace(c, bound=c.bound + 1e-3 * abs(c.bound))


def _lower_objective(c):
    return dataclasses.replace(c, objective=c.objective * (1 - 1e-6))


def _change_weights(c):
    c.weights[c.weights != 0] *= 1.001
    return c


def _leave_the_box(c):
    c.weights[(c.weights == 0).nonzero()[0]] = 0.1
    return c


def _drop_leaf(c):
    parents = {r.parent for r in c.proof.records}
    leaf = max(i for i in range(len(c.proof.records)) if i not in parents)
    assert leaf == len(c.proof.records) - 1
    c.proof.records.pop()
    return c


def _hide_branching(c):
    """Both children gone: the inner node claims to be a leaf."""
    inner = next(r for r in c.proof.records if r.branch >= 0)
    number = c.proof.records.index(inner)
    del c.proof.records[number + 1 :]
    inner.branch = -1
    return c


def _fix_more(c):
    free = {r.branch for r in c.proof.records} - {-1}
    c.proof.records[0].zeros = np.append(c.proof.records[0].zeros, free.pop())
    return c


def _move_too_much_curvature(c):
    record = next(r for r in reversed(c.proof.records) if r.d is not None)
    record.d *= 50
    return c


def _change_leaf_point(c):
    for record in c.proof.records:
        record.W += 0.5
    return c


def _enormous_weights(c):
    """A tangent so far out that float64 sees infinity minus infinity, in place of all the tree."""
    root = c.proof.records[0]
    root.entities, root.W, root.d = np.arange(8), np.full((8, 3, 1), 1e200), None
    root.zeros = root.ones = root.zeros[:0]
    root.branch = -1
    del c.proof.records[1:]
    return dataclasses.replace(c, bound=c.objective)


def _name_the_last_twice(c):
    record = next(r for r in reversed(c.proof.records) if r.d is not None)
    record.entities = np.append(record.entities, -1)
    record.W = np.concatenate([record.W, record.W[-1:]])
    record.d = np.concatenate([record.d, record.d[-1:]])
    return c


def _share_one_block(c):
    record = next(r for r in c.proof.records if r.d is not None and len(r.d) > 1)
    record.d = record.d[:1]
    return c


TAMPERS = [
    _enormous_weights, _name_the_last_twice, _share_one_block, _raise_bound, _lower_objective,
    _change_weights, _leave_the_box, _drop_leaf, _hide_branching, _fix_more,
    _move_too_much_curvature, _change_leaf_point,
]  # fmt: skip
# The check in fractions finds these at its end only.
LATE = (_name_the_last_twice, _lower_objective, _change_weights, _leave_the_box, _change_leaf_point)


@pytest.mark.parametrize(
    ("exact", "tamper"),
    slow_unless(
        lambda exact, tamper: not (exact and tamper in LATE),
        itertools.product((False, True), TAMPERS),
    ),
)
def test_a_tampered_certificate_fails(tree, tmp_path, tamper, exact):
    changed = tamper(reloaded(tree, tmp_path))
    assert not changed.check(exact=exact).ok


def test_other_data_is_refused_and_fails_the_check(tree, tmp_path):
    tree.save(tmp_path / "tree.json")
    other = tree_problem()
    other.X[0, 0] += 0.5
    with pytest.raises(ValueError, match="data_sha256"):
        load(tmp_path / "tree.json", other)
    assert not dataclasses.replace(tree, problem=other).check().ok


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "another"}'])
def test_a_file_that_is_no_certificate_is_refused(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.json"):
        load(path, tree_problem())


def test_json_holds_plain_numbers(tree, tmp_path):
    tree.save(tmp_path / "tree.json")
    content = json.loads((tmp_path / "tree.json").read_text())
    assert content["result"]["bound"] == tree.bound


def test_rational_semidefiniteness_is_exact():
    near = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert semidefinite(fractions_of(near))
    near[1, 1] = np.nextafter(1.0, 0.0)
    assert not semidefinite(fractions_of(near))


def test_floating_semidefiniteness_never_accepts_an_indefinite_matrix():
    Q, _ = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64))
    values = torch.linspace(0, 3, 30, dtype=torch.float64)
    values[0] = 1e-9
    assert positive_definite((Q @ values.diag() @ Q.T).numpy(), np.zeros(len(Q)))
    values[0] = -1e-9
    assert not positive_definite((Q @ values.diag() @ Q.T).numpy(), np.zeros(len(Q)))


def test_a_spent_time_limit_still_gives_a_valid_certificate():
    certificate = branch_and_bound(tree_problem(), time_limit=0)
    assert certificate.status == "time_limit" and certificate.gap > 1e-4
    assert certificate.check().ok
    assert certificate.bound <= enumeration.solve(tree_problem()).objective


@pytest.mark.parametrize("when", [1, 2, 4])
def test_interrupted_it_returns_the_best_so_far(when):
    calls = []

    def interrupt(progress):
        calls.append(progress)
        if len(calls) == when:
            raise KeyboardInterrupt

    certificate = branch_and_bound(tree_problem(), node_batch=1, progress=interrupt)
    assert certificate.status == "interrupted"
    assert certificate.check().ok, certificate.check().problems


def test_a_wider_search_keeps_the_better_of_both_and_its_numbering():
    problem = random_problem(3, loss="squared")
    best = enumeration.solve(problem)
    whole = design_of(problem)
    empty = torch.zeros(whole.shape[0], dtype=torch.bool)
    start = incumbents.polish(whole, [empty])[0]
    search = Search(whole, TimeLimit(None), 1e-4, Proof(), start)
    search.search_wider()
    found = theta_of(problem, whole, search.best.W)
    assert best.objective - 1e-9 <= search.best.objective < start.objective
    support = search.best.support.double()
    penalty = bigm.penalty(problem.entities.rows(found), support, problem.alpha)
    assert search.best.objective == pytest.approx(
        float(problem.objective(found, penalty)), rel=1e-9
    )
    # An incumbent with an entity that the tree has fixed away cannot be searched around.
    inside = search.best.support.nonzero().flatten()
    search.design = whole.restrict((~search.best.support).nonzero().flatten())
    before = search.best
    search.search_wider()
    assert len(inside) > 0 and search.best is before


def test_the_objective_is_that_of_the_integer_problem(tree):
    problem = tree.problem
    penalty = bigm.penalty(problem.entities.rows(tree.weights), tree.indicators, problem.alpha)
    assert float(problem.objective(tree.weights, penalty)) == pytest.approx(tree.objective)


def test_wrong_arguments_are_named():
    problem = tree_problem()
    with pytest.raises(ValueError, match="gap must"):
        branch_and_bound(problem, gap=-1)
    with pytest.raises(ValueError, match="node_batch must"):
        branch_and_bound(problem, node_batch=0)
    absolute = SparseTrainingProblem.linear(
        [[1.0]], [1.0], [[0]], "absolute", lam=1, alpha=0.5, M=1
    )
    with pytest.raises(ValueError, match="absolute"):
        branch_and_bound(absolute)


@pytest.mark.gpu
def test_on_an_accelerator_it_finds_the_same():
    certificate = branch_and_bound(tree_problem(), device="cuda", gap=1e-5)
    assert certificate.check().ok
    assert certificate.objective == pytest.approx(
        branch_and_bound(tree_problem(), gap=1e-5).objective, rel=1e-6
    )

"""Free columns, weights of samples, signs and rules for supports, against enumeration and SCIP."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from enumerated_rules import optimum, random_problem

from spr_or.certified_solver.derived_m import solve_without_bounds
from spr_or.certified_solver.lambda_path import without_entities, zero_from
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers import enumeration, scip


def agrees(seed: int) -> None:
    problem = random_problem(seed)
    if problem is None:
        return
    certificate = branch_and_bound(problem, 1e-6)
    best = optimum(problem)
    assert certificate.check().ok and certificate.status == "optimal"
    assert certificate.objective == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert certificate.bound <= best * (1 + 1e-9)
    if problem.rules is not None:
        assert bool(problem.rules.allow(certificate.indicators.bool()))


@pytest.mark.parametrize("seed", range(24))
def test_the_solver_finds_and_proves_what_enumeration_finds(seed: int) -> None:
    agrees(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24, 300))
def test_more_problems_agree_with_enumeration(seed: int) -> None:
    agrees(seed)


@pytest.mark.parametrize("seed", [0, 5, 10, 11, 17, 20])
def test_a_derived_m_cuts_off_no_optimum(seed: int) -> None:
    problem = random_problem(seed)
    assert problem is not None
    certificate, _ = solve_without_bounds(problem, 1e-6)
    wide = random_problem(seed, M=1e4, M_free=1e4)
    assert wide is not None
    best = optimum(wide)
    assert certificate.check().ok
    assert certificate.objective == pytest.approx(best, rel=2e-5)
    assert certificate.bound <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", [3, 10, 33])
def test_scip_solves_the_same_problem(seed: int) -> None:
    problem = random_problem(seed)
    assert problem is not None and problem.rules is not None and problem.loss == "squared"
    found = scip.solve(problem, "bigm", time_limit=60)
    assert found.objective == pytest.approx(optimum(problem), rel=1e-4)


def test_other_routes_refuse_what_they_would_leave_out() -> None:
    problem = SparseTrainingProblem.linear(
        np.eye(3), [1, 2, 3], [[0], [1], [2]], lam=0.1, alpha=0.5, M=4, max_entities=1
    )
    with pytest.raises(ValueError, match="knows no rules"):
        enumeration.solve(problem)


def test_an_intercept_changes_which_columns_explain_a_logistic_target() -> None:
    # One class is rare: without an intercept a column that hardly varies stands in for it.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1))
    y = np.where(x[:, 0] - 1.5 + 0.5 * rng.normal(size=200) > 0, 1.0, -1.0)
    X = np.c_[x, 1 + 0.01 * rng.normal(size=(200, 1))]
    groups, settings = [[0], [1]], {"lam": 0.02, "alpha": 0.1, "M": 20.0}
    without = branch_and_bound(SparseTrainingProblem.linear(X, y, groups, "logistic", **settings))
    with_it = branch_and_bound(
        SparseTrainingProblem.linear(
            np.c_[X, np.ones(200)], y, groups, "logistic", free=[2], **settings
        )
    )
    assert without.indicators.tolist() == [1, 1]
    assert with_it.indicators.tolist() == [1, 0] and with_it.check().ok


def test_whole_weights_of_samples_are_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(20, 4)), np.sign(rng.normal(size=20))
    count = rng.integers(1, 4, 20)
    for loss in ("squared", "logistic"):
        settings = {"lam": 0.02, "alpha": 0.3, "M": 3.0}
        weighted = SparseTrainingProblem.linear(
            X, y, [[0], [1], [2], [3]], loss, sample_weight=count, **settings
        )
        repeated = SparseTrainingProblem.linear(
            X.repeat(count, 0), y.repeat(count), [[0], [1], [2], [3]], loss, **settings
        )
        one, two = branch_and_bound(weighted, 1e-7), branch_and_bound(repeated, 1e-7)
        assert one.objective == pytest.approx(two.objective, rel=1e-6)
        assert one.check().ok


def test_lambda_max_is_where_the_first_entity_enters_beside_an_intercept() -> None:
    rng = np.random.default_rng(2)
    X = np.c_[rng.normal(size=(60, 3)), np.ones(60)]
    y = np.where(X[:, 0] + 1 + rng.normal(size=60) > 0, 1.0, -1.0)

    def problem(lam: float) -> SparseTrainingProblem:
        return SparseTrainingProblem.linear(
            X, y, [[0], [1], [2]], "logistic", lam=lam, alpha=0.5, M=50.0, free=[3]
        )

    largest = zero_from(problem(1.0))
    share = float((y == 1).mean())
    intercept = float(without_entities(problem(1.0))[3])
    assert intercept == pytest.approx(np.log(share / (1 - share)), abs=1e-5)
    assert branch_and_bound(problem(1.001 * largest)).indicators.sum() == 0
    assert branch_and_bound(problem(0.5 * largest)).indicators.sum() > 0


def test_rules_close_what_they_imply() -> None:
    from spr_or.formulations.support_rules import support_rules
    from spr_or.proof.tree import Rules

    rng = np.random.default_rng(3)
    for _ in range(200):
        N = int(rng.integers(2, 7))
        order = rng.permutation(N)
        needs = {int(order[i]): [int(order[i - 1])] for i in range(1, N) if rng.random() < 0.5}
        most = int(rng.integers(1, N + 1)) if rng.random() < 0.6 else None
        try:
            other = [np.flatnonzero(rng.random(N) < 0.5).tolist() for _ in range(3)]
            rules = support_rules(N, [int(rng.integers(N))], most, needs, other)
        except ValueError:
            continue
        assert rules is not None
        alive = torch.from_numpy(rng.random(N) < 0.8)
        one = torch.from_numpy(rng.random(N) < 0.2)
        table = torch.tensor([[bool(b >> i & 1) for i in range(N)] for b in range(2**N)])
        fits = rules.allow(table) & (~table | alive).all(1) & (table | ~one).all(1)
        closed, forced, possible = rules.close(alive, one)
        own = Rules(rules.required.numpy(), N, most, rules.needs.numpy(), rules.forbidden.numpy())
        again = own.close(alive.numpy(), one.numpy())
        assert possible == again[2]
        assert not fits.any() or possible
        if possible:
            assert (closed.numpy() == again[0]).all() and (forced.numpy() == again[1]).all()
            # No support that fits is lost.
            assert not bool((table[fits] & ~closed).any() or (~table[fits] & forced).any())

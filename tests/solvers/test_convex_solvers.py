"""The routes for linear problems against each other, other libraries, and problems solved by hand."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from slow_cases import slow_unless
from torch import nn

from spr_or.formulations import bigm, projected
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers import (
    conic,
    enumeration,
    fixed_support,
    outer_approximation,
    projected_first_order,
)
from spr_or.solvers.certificate import Certificate
from spr_or.solvers.highs_thread import run_highs
from spr_or.solvers.time_limit import TimeLimit

ALL_LOSSES = tuple(loss for loss in LOSSES if loss != "poisson")  # of the certified solver only
SMOOTH = ("squared", "logistic", "softmax")


def random_problem(
    seed: int,
    loss: str,
    *,
    alpha: float | None = None,
    M: float | None = None,
    most: int = 10,
    cells: bool = False,
) -> SparseTrainingProblem:
    """A random group regression: 40-100 samples, 4..most entities of 1-4 correlated columns."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, rng.integers(4, most + 1))
    p, n = int(sizes.sum()), int(rng.integers(40, 101))
    X = rng.normal(size=(n, p)) @ (np.eye(p) + 0.3 * rng.normal(size=(p, p)))
    groups = np.split(rng.permutation(p), np.cumsum(sizes)[:-1])
    W = rng.normal(size=(p, 3))
    for group in groups:
        W[group] *= rng.random() < 0.5
    f = X @ W
    f = f / max(f.std(), 1e-9) + 0.5 * rng.normal(size=f.shape)
    q = 1
    if loss == "squared" and rng.random() < 0.5 or cells:
        y, q = f[:, :2], 2
    elif loss in ("squared", "absolute"):
        y = f[:, 0]
    elif loss == "softmax":
        y, q = f.argmax(1), 3
        y[:3] = range(3)
    else:
        y = np.where(f[:, 0] > 0, 1.0, -1.0)
    entities: list = [group.tolist() for group in groups]
    if cells:
        every = rng.permutation([(j, o) for j in range(p) for o in range(q)])
        entities = [part.tolist() for part in np.array_split(every, len(sizes))]
    return SparseTrainingProblem.linear(
        X,
        y,
        entities,
        loss,
        lam=float(np.exp(rng.uniform(np.log(0.005), 0))),
        alpha=float(rng.uniform(0.01, 0.9)) if alpha is None else alpha,
        M=float(np.exp(rng.uniform(np.log(0.2), np.log(20)))) if M is None else M,
        u=rng.uniform(0.2, 2, len(sizes)) if rng.random() < 0.5 else "uniform",
        name=f"{loss}-{seed}",
    )


def close(a: float, b: float, tolerance: float = 1e-5) -> bool:
    return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


CASES = [
    (seed, loss, alpha, M)
    for loss in ALL_LOSSES
    for seed, (alpha, M) in enumerate(
        [(None, None), (None, 0.2), (None, 20.0), (0.0, 1.0), (1.0, None), (0.01, 5.0)]
    )
]


# --- the relaxation -------------------------------------------------------------------------------


def cheap_relaxation(seed: int, loss: str, *_: object) -> bool:
    """All bounds with the two quickest losses, and each bound with one of the others."""
    others = {"absolute": (0, 3), "hinge": (1, 4), "softmax": (2, 5)}
    return loss in ("squared", "logistic") or seed in others[loss]


@pytest.mark.parametrize(("seed", "loss", "alpha", "M"), slow_unless(cheap_relaxation, CASES))
def test_three_routes_find_the_same_relaxation(
    seed: int, loss: str, alpha: float | None, M: float | None
) -> None:
    problem = random_problem(seed, loss, alpha=alpha, M=M, most=7)
    routes = [
        conic.solve(problem),
        projected_first_order.solve(problem),
        outer_approximation.solve(problem, relaxed=True),
    ]
    best = min(route.objective for route in routes)
    for route in routes:
        assert route.status == "optimal", route
        assert close(route.objective, best), [r.objective for r in routes]
        assert route.bound <= best + 1e-9
        assert route.objective - route.bound <= 1e-6 * max(1.0, abs(best))
        assert (route.weights.abs() <= problem.M.max()).all()
    # Dropping the perspective relaxes further; its own dual bound is tight.
    weaker = conic.solve(problem, formulation="bigm")
    assert weaker.status == "optimal" and weaker.objective <= best + 1e-7
    assert weaker.bound <= weaker.objective + 1e-9
    assert weaker.objective - weaker.bound <= 1e-6


@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_entities_that_are_cells_of_several_outputs(loss: str) -> None:
    problem = random_problem(3, loss, cells=True, most=6)
    a, b = conic.solve(problem), projected_first_order.solve(problem)
    c, d = outer_approximation.solve(problem), enumeration.solve(problem)
    assert close(a.objective, b.objective) and close(c.objective, d.objective)
    assert max(a.bound, b.bound) <= min(c.objective, d.objective)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_indicators_of_the_cone_are_those_of_the_closed_form(loss: str) -> None:
    problem = random_problem(11, loss, alpha=0.2)
    certificate = conic.solve(problem)
    rows = problem.entities.rows(certificate.weights)
    expected = projected.indicator(rows, problem.alpha, problem.M)
    torch.testing.assert_close(certificate.indicators, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("M", [0.3, 10.0])
def test_orthonormal_design_splits_into_scalar_problems(alpha: float, M: float) -> None:
    """With X'X = n I the problem is sum_j (w_j - c_j)^2 + lambda z_j: grid and formula know it."""
    c = np.array([2.0, -0.7, 0.25, 0.05])
    X = np.vstack([2 * np.eye(4)])
    lam = 0.2
    problem = SparseTrainingProblem.linear(
        X, 2 * c, [[0], [1], [2], [3]], lam=lam, alpha=alpha, M=M
    )
    w = np.clip(c / (1 + lam * alpha), -M, M)
    kept = (w - c) ** 2 + lam * (alpha * w**2 + 1 - alpha)
    integer = np.minimum(kept, c**2).sum()
    for route in (enumeration.solve(problem), outer_approximation.solve(problem)):
        assert abs(route.objective - integer) < 1e-7

    grid = torch.linspace(-M, M, 20001, dtype=torch.float64).unsqueeze(-1)
    z = projected.value(grid, alpha, M)
    relaxed = sum(float(((grid.squeeze(-1) - cj).square() + lam * z).min()) for cj in c)
    for route in (conic.solve(problem), projected_first_order.solve(problem)):
        assert relaxed - 1e-6 < route.objective <= relaxed + 1e-9


@pytest.mark.parametrize("loss", SMOOTH)
def test_multipliers_of_the_cone_are_the_gradient(loss: str) -> None:
    problem = random_problem(5, loss, alpha=0.3, M=8.0)
    certificate, gradient = conic.solve_with_duals(problem)
    # Stationarity: the multipliers balance the gradient of the loss everywhere ...
    theta = certificate.weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.loss_value(theta), theta)
    torch.testing.assert_close(gradient, -problem.entities.rows(slope), rtol=0, atol=1e-5)
    # ... and are lambda u z' where an entity is not zero.
    rows = problem.entities.rows(certificate.weights)
    formula = projected.gradient(rows, problem.alpha, problem.M)
    formula = formula * (problem.lam * problem.u).unsqueeze(-1)
    on = certificate.indicators > 1e-3
    assert on.any() and not on.all()
    torch.testing.assert_close(gradient[on], formula[on], rtol=0, atol=1e-5)


def test_multipliers_where_nothing_is_quadratic() -> None:
    problem = random_problem(2, "squared", alpha=0.0)
    certificate, gradient = conic.solve_with_duals(problem)
    theta = certificate.weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.loss_value(theta), theta)
    torch.testing.assert_close(gradient, -problem.entities.rows(slope), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_weak_duality_of_the_bigm_relaxation(loss: str, alpha: float) -> None:
    """No multipliers ever bound the relaxed big-M objective above its value anywhere in the box."""
    problem = random_problem(7, loss, alpha=alpha)
    generator = torch.Generator().manual_seed(0)
    shape = (problem.n, problem.n_outputs)
    for scale in (0.1, 1.0, 10.0):
        raw = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        nu = LOSSES[loss].project(raw, problem.y)
        bound = float(conic.bigm_dual_bound(problem, nu))
        assert bound > -float("inf")
        for size in (0.0, 0.01, 0.3, 1.0):
            theta = torch.rand(problem.entities.n_parameters, generator=generator).double() * 2 - 1
            rows = problem.entities.rows(size * theta) * problem.M.unsqueeze(-1)
            y = rows.abs().amax(-1) / problem.M
            value = problem.objective(
                problem.entities.flat(rows), bigm.penalty(rows, y, problem.alpha)
            )
            assert bound <= float(value) + 1e-12


@pytest.mark.parametrize("loss", ["squared", "hinge", "softmax"])
def test_first_order_under_bounds_on_the_indicators(loss: str) -> None:
    """Fixing every indicator leaves the convex problem on a support, which `fixed_support.fit` knows."""
    problem = random_problem(4, loss, most=5)
    count = len(problem.entities)
    free = projected_first_order.solve(problem)
    for digits in itertools.islice(itertools.product((0.0, 1.0), repeat=count), 0, 32, 5):
        y = torch.tensor(digits, dtype=torch.float64)
        fixed = projected_first_order.solve(problem, lower=y, upper=y)
        exact = fixed_support.fit(problem, y)
        assert fixed.status == "optimal"
        assert close(fixed.objective, exact.value, 1e-6)
        assert fixed.bound <= exact.value + 1e-9
        assert exact.value >= free.bound
    half = torch.zeros(count, dtype=torch.float64)
    half[0] = 1.0
    assert projected_first_order.solve(problem, lower=half).objective >= free.bound
    assert projected_first_order.solve(problem, upper=1 - half).objective >= free.bound


def test_first_order_bears_bad_scaling() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 12)) * np.logspace(-3, 3, 12)
    X[:, 5] = X[:, 4]
    X[:, 7] = 0
    groups = [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    labels = np.where(rng.normal(size=60) + X[:, 6] > 0, 1.0, -1.0)
    for loss in ("logistic", "hinge", "squared", "absolute"):
        problem = SparseTrainingProblem.linear(
            X, labels, groups, loss, lam=0.01, alpha=0.3, M=[0.01, 100, 5, 1, 1e3, 0.5]
        )
        certificate = projected_first_order.solve(problem)
        assert certificate.status == "optimal"
        assert certificate.objective - certificate.bound <= 1e-7
        assert close(
            certificate.objective, outer_approximation.solve(problem, relaxed=True).objective
        )


# --- the integer optimum --------------------------------------------------------------------------


def fit_elsewhere(problem: SparseTrainingProblem, y: np.ndarray) -> float:
    """The optimum on a support by scipy's least squares, L-BFGS-B and linear programs, and by OSQP."""
    owner = np.empty(problem.entities.n_parameters, dtype=int)
    for i, group in enumerate(problem.entities.groups):
        owner[list(group)] = i
    free = np.flatnonzero(y[owner])
    u, n = problem.u.numpy(), problem.n
    fixed = problem.lam * (1 - problem.alpha) * float(u @ y)
    M = problem.M.numpy()[owner][free]
    ridge = problem.lam * problem.alpha * u[owner][free]
    X = np.kron(problem.X.numpy(), np.eye(problem.n_outputs))[:, free]
    target = problem.y.numpy().reshape(-1)

    theta = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    index = torch.from_numpy(free)

    def smooth(w: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(w).requires_grad_()
        value = problem.loss_value(theta.index_put((index,), x)) + torch.from_numpy(ridge) @ x**2
        (slope,) = torch.autograd.grad(value, x)
        return value.item(), slope.numpy()

    if not len(free):
        return fixed + float(problem.loss_value(theta))
    if problem.loss == "squared":
        A = np.vstack([X / np.sqrt(n), np.diag(np.sqrt(ridge))])
        b = np.concatenate([target / np.sqrt(n), np.zeros(len(free))])
        return fixed + 2 * optimize.lsq_linear(A, b, (-M, M), tol=1e-14).cost
    if problem.loss in SMOOTH:
        found = optimize.minimize(
            smooth, np.zeros(len(free)), jac=True, method="L-BFGS-B",
            bounds=list(zip(-M, M, strict=True)),
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000, "maxfun": 50000},
        )  # fmt: skip
        return fixed + found.fun

    # target is +-1 for the hinge, so that 1 - y f = y (y - f).
    hinge = problem.loss == "hinge"
    B, m = (X * target[:, None], np.ones_like(target)) if hinge else (X, target)
    rows = len(m)
    if problem.alpha == 0:
        cost = np.concatenate([np.zeros(len(free)), np.full(rows, 1 / n)])
        eye = np.eye(rows)
        above, below = np.hstack([-B, -eye]), np.hstack([0 * B if hinge else B, -eye])
        found = optimize.linprog(
            cost, np.vstack([above, below]), np.concatenate([-m, np.zeros(rows) if hinge else m]),
            bounds=[*zip(-M, M, strict=True), *[(0, None)] * rows],
        )  # fmt: skip
        return fixed + found.fun
    import cvxpy as cp

    w = cp.Variable(len(free))
    loss = cp.pos(m - B @ w) if hinge else cp.abs(m - B @ w)
    objective = cp.sum(loss) / n + ridge @ cp.square(w)
    program = cp.Problem(cp.Minimize(objective), [w <= M, w >= -M])
    program.solve(solver="OSQP", eps_abs=1e-9, eps_rel=1e-9, max_iter=200_000, polishing=True)
    return fixed + float(program.value)


@pytest.mark.parametrize(
    ("loss", "M"),
    slow_unless(
        lambda loss, M: (loss, M) not in {("softmax", 0.3), ("logistic", 5.0)},
        itertools.product(ALL_LOSSES, (0.3, 5.0)),
    ),
)
def test_cuts_and_enumeration_find_the_brute_force_optimum(loss: str, M: float) -> None:
    problem = random_problem(21, loss, M=M, most=4)
    count = len(problem.entities)
    values = {
        digits: fit_elsewhere(problem, np.array(digits, dtype=float))
        for digits in itertools.product((0, 1), repeat=count)
    }
    best = min(values.values())
    for route in (enumeration.solve(problem), outer_approximation.solve(problem)):
        assert route.status == "optimal"
        assert close(route.objective, best, 2e-6)
        assert route.bound <= route.objective + 1e-9
        chosen = tuple(int(i) for i in route.indicators)
        assert close(values[chosen], best, 2e-6)
    assert projected_first_order.solve(problem).bound <= best + 1e-6


@pytest.mark.parametrize(
    ("seed", "loss"),
    slow_unless(
        lambda seed, loss: seed == 31 or loss == "squared",
        itertools.product((31, 32, 33), ALL_LOSSES),
    ),
)
def test_cuts_and_enumeration_agree(seed: int, loss: str) -> None:
    # Softmax has three outputs for each weight: its larger problems are among the slow tests.
    agree(random_problem(seed, loss, most=5 if loss == "softmax" else 7))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [31, 32, 33])
def test_cuts_and_enumeration_agree_on_larger_softmax_problems(seed: int) -> None:
    agree(random_problem(seed, "softmax", most=7))


def agree(problem: SparseTrainingProblem) -> None:
    a, b = enumeration.solve(problem), outer_approximation.solve(problem)
    assert a.status == b.status == "optimal"
    assert close(a.objective, b.objective, 1e-6)
    assert max(a.bound, b.bound) <= min(a.objective, b.objective) + 1e-9


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_integer_routes_at_the_ends_of_alpha(alpha: float) -> None:
    problem = random_problem(41, "hinge", alpha=alpha, most=6)
    a, b = enumeration.solve(problem), outer_approximation.solve(problem)
    assert a.status == b.status == "optimal" and close(a.objective, b.objective, 1e-6)


# --- one support ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "M", "loss"),
    slow_unless(
        lambda alpha, M, loss: alpha == 0.5 or loss not in ("logistic", "softmax"),
        [(*ends, loss) for ends in ((0.3, 0.2), (0.5, 20.0), (0.0, 1.0)) for loss in ALL_LOSSES],
    ),
)
def test_support_fit_is_feasible_exact_and_bounded(loss: str, alpha: float, M: float) -> None:
    problem = random_problem(51, loss, alpha=alpha, M=M)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        y = torch.randint(0, 2, (len(problem.entities),), generator=generator).double()
        weights, value, bound = fixed_support.fit(problem, y)
        rows = problem.entities.rows(weights)
        assert (rows.abs() <= (problem.M * y).unsqueeze(-1)).all()
        outside = problem.objective(weights, bigm.penalty(rows, y, problem.alpha))
        assert value == pytest.approx(float(outside), abs=1e-12)
        assert bound <= value + 1e-12
        assert value - bound <= 1e-9 * max(1.0, value)
        assert close(value, fit_elsewhere(problem, y.numpy()), 1e-6)


def test_support_fit_with_fewer_samples_than_weights() -> None:
    rng = np.random.default_rng(3)
    for loss in ("squared", "logistic", "absolute"):
        problem = SparseTrainingProblem.linear(
            rng.normal(size=(5, 12)),
            np.where(rng.normal(size=5) > 0, 1.0, -1.0),
            [[2 * i, 2 * i + 1] for i in range(6)],
            loss,
            lam=0.1,
            alpha=0.0,
            M=3.0,
        )
        found = fixed_support.fit(problem, torch.ones(6))
        assert found.value - found.bound <= 1e-8


@pytest.mark.parametrize("bad", [torch.tensor([0.5, 1, 1, 0]), torch.tensor([1, 0])])
def test_support_fit_wants_zeros_and_ones(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="0 or 1 for each of 4 entities"):
        fixed_support.fit(random_problem(21, "squared", most=4), bad)


# --- limits and interruptions ---------------------------------------------------------------------

ROUTES: dict[str, tuple[Any, dict[str, Any]]] = {
    "conic": (conic, {}),
    "conic-bigm": (conic, {"formulation": "bigm"}),
    "first-order": (projected_first_order, {}),
    "cuts-relaxed": (outer_approximation, {"relaxed": True}),
    "cuts": (outer_approximation, {}),
    "enumeration": (enumeration, {}),
}
each_route = pytest.mark.parametrize("route", ROUTES)


def assert_honest(
    problem: SparseTrainingProblem, certificate: Certificate, reference: Certificate, status: str
) -> None:
    """A stopped solve still gives a feasible point and a bound on the true optimum."""
    assert certificate.status == status
    assert np.isfinite(certificate.objective) and np.isfinite(certificate.bound)
    assert certificate.bound <= reference.objective + 1e-9
    assert certificate.objective >= reference.bound - 1e-9
    rows = problem.entities.rows(certificate.weights)
    reach = problem.M * certificate.indicators
    assert (rows.abs() <= reach.unsqueeze(-1) * (1 + 1e-12)).all()


@each_route
def test_a_time_limit_yields_an_honest_certificate(route: str) -> None:
    module, options = ROUTES[route]
    problem = random_problem(8, "softmax", most=5)
    reference = module.solve(problem, **options)
    certificate = module.solve(problem, time_limit=0.0, **options)
    assert_honest(problem, certificate, reference, "time_limit")
    for share in (0.1, 0.5):  # somewhere on the way; on a quick machine it may get there
        certificate = module.solve(problem, time_limit=share * reference.seconds, **options)
        assert_honest(problem, certificate, reference, certificate.status)
        assert certificate.status in ("time_limit", "optimal")


def raising_at(call: int, function: Callable) -> Callable:
    """``function`` with a Ctrl-C at its ``call``-th call."""
    calls = itertools.count(1)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return wrapped


@cache
def undisturbed(route: str) -> Certificate:
    """What a route finds for the problem that is interrupted below."""
    module, options = ROUTES[route]
    found: Certificate = module.solve(random_problem(9, "hinge", most=6), **options)
    return found


@pytest.mark.parametrize(
    ("route", "target", "name", "call"),
    [
        ("conic", conic, "_run", 1),
        ("conic", conic, "_build", 1),
        ("first-order", projected, "prox", 3),
        ("first-order", projected, "prox", 25),
        ("cuts-relaxed", outer_approximation, "run_highs", 4),
        ("cuts", fixed_support, "fit", 3),
        ("enumeration", fixed_support, "fit", 1),
        ("enumeration", fixed_support, "fit", 9),
    ],
)
def test_an_interrupt_yields_an_honest_certificate(
    monkeypatch: pytest.MonkeyPatch, route: str, target: Any, name: str, call: int
) -> None:
    module, options = ROUTES[route]
    problem, reference = random_problem(9, "hinge", most=6), undisturbed(route)
    monkeypatch.setattr(target, name, raising_at(call, getattr(target, name)))
    certificate = module.solve(problem, **options)
    if (route, call) == ("enumeration", 1):  # before there is anything
        assert certificate.status == "interrupted" and certificate.objective == float("inf")
        assert certificate.bound <= reference.objective
    else:
        assert_honest(problem, certificate, reference, "interrupted")


def test_interrupted_tree_search_keeps_the_bound_of_highs(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(31, "logistic", most=7)
    reference = outer_approximation.solve(problem)
    relaxed = outer_approximation.solve(problem, relaxed=True)
    original = outer_approximation.run_highs

    def stop_after_tree(highs: Any, clock: TimeLimit) -> str:
        status = original(highs, clock)
        if highs.getInfo().mip_node_count >= 0:
            raise KeyboardInterrupt
        return status

    monkeypatch.setattr(outer_approximation, "run_highs", stop_after_tree)
    certificate = outer_approximation.solve(problem)
    assert_honest(problem, certificate, reference, "interrupted")
    assert certificate.bound > relaxed.bound + 1e-6  # the tree's bound, not the root's


def _market_split(highs: Any) -> None:
    """Fill a HiGHS model with a program that takes hours."""
    rng = np.random.default_rng(0)
    highs.silent()
    rows, columns = 6, 50
    weights = rng.integers(0, 100, (rows, columns)).astype(float)
    x = [highs.addBinary() for _ in range(columns)]
    for row in weights:
        highs.addConstr(
            sum(float(a) * v for a, v in zip(row, x, strict=True)) == float(row.sum() // 2)
        )


def test_ctrl_c_as_highs_starts_leaves_no_thread() -> None:
    """The signal comes when HiGHS works and `startSolve` has not returned yet."""
    import highspy

    threads = []

    class Interrupted(highspy.Highs):
        def startSolve(self) -> threading.Thread:
            threads.append(super().startSolve())
            os.kill(os.getpid(), signal.SIGINT)
            return threads[0]

    highs = Interrupted()
    _market_split(highs)
    with pytest.raises(KeyboardInterrupt):
        run_highs(highs, TimeLimit(120))
    assert not threads[0].is_alive()


def test_ctrl_c_reaches_a_running_highs() -> None:
    """A signal while HiGHS is deep in a hard market-split program stops it at once."""
    import highspy

    highs = highspy.Highs()
    _market_split(highs)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_highs(highs, TimeLimit(120))
            pytest.fail("HiGHS finished before the signal")
    finally:
        timer.cancel()
    assert time.perf_counter() - started < 60


# --- what is refused ------------------------------------------------------------------------------


@each_route
def test_a_network_is_sent_to_scip(route: str) -> None:
    module, options = ROUTES[route]
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    problem = SparseTrainingProblem.network(
        net, torch.eye(2), [0, 1], [[0, 1], [2, 3]], lam=0.1, alpha=0.5, M=2
    )
    with pytest.raises(ValueError, match="is a network: use spr_or.solvers.scip"):
        module.solve(problem, **options)


def test_arguments_are_checked() -> None:
    problem = random_problem(0, "squared", most=4)
    with pytest.raises(ValueError, match="formulation must be"):
        conic.solve(problem, formulation="hull")
    with pytest.raises(ValueError, match="solver 'NONE' is not installed"):
        conic.solve(problem, solver="NONE")
    with pytest.raises(ValueError, match="time_limit"):
        projected_first_order.solve(problem, time_limit=-1.0)
    X = np.eye(21)
    many = SparseTrainingProblem.linear(X, X[0], [[j] for j in range(21)], lam=1, alpha=0.5, M=1)
    with pytest.raises(ValueError, match="N <= 20 entities, got 21"):
        enumeration.solve(many)


def test_another_conic_solver_does() -> None:
    problem = random_problem(1, "squared", alpha=0.4, most=4)
    a, b = conic.solve(problem), conic.solve(problem, solver="SCS")
    assert b.solver == "scs" and close(a.objective, b.objective, 1e-3)
    assert b.bound <= a.objective + 1e-9

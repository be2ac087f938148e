"""Whatever a route returns or raises, the ladder is not ok, and a claim that does not hold names it."""

import dataclasses
import functools
import math

import pytest
import torch

from spr_or import SparseTrainingProblem
from spr_or.formulations.entities import neurons
from spr_or.solvers import conic
from spr_or.verification import ladder_of_bounds
from spr_or.verification.ladder_of_bounds import verify
from spr_or.verification.routes import routes

# Positions in the order of `routes`: one linear problem with ten routes, one network with six.
LINEAR, NETWORK = range(10), range(6)


@functools.cache
def linear() -> SparseTrainingProblem:
    X = [[1.0, 0.2, 0.0], [0.3, 1.0, -0.4], [1.0, -1.0, 0.5], [-0.5, 0.1, 1.2], [0.9, 0.4, 0.3]]
    y = [1.1, 0.2, 0.9, -0.7, 1.0]
    return SparseTrainingProblem.linear(X, y, [[0, 1], [2]], lam=0.1, alpha=0.3, M=2)


@functools.cache
def network() -> SparseTrainingProblem:
    net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
    X, y = [[-1.0], [0.0], [1.0]], [0.0, 0.2, 1.5]
    return SparseTrainingProblem.network(net, X, y, neurons(net), lam=0.1, alpha=0.3, M=2)


@functools.cache
def answers(make):
    """Every route of the problem and its true answer, computed once."""
    problem = make()
    inner, _ = ladder_of_bounds.normalised(problem)
    return [(route, route.solve()) for route in routes(inner, 20.0)]


solve_with_duals = conic.solve_with_duals


@functools.cache
def duals(make):
    return solve_with_duals(ladder_of_bounds.normalised(make())[0])


def gives(**fields):
    """An answer with these fields; a function gets the true certificate."""

    def fault(c):
        new = {name: f(c) if callable(f) else f for name, f in fields.items()}
        return dataclasses.replace(c, **new)

    return fault


def raises(c):
    raise RuntimeError("the licence has expired")


FAULTS = {
    "raises": raises,
    "returns nothing": lambda c: None,
    "returns a number": lambda c: 0.5,
    "no solution": gives(
        objective=math.inf, weights=lambda c: c.weights * math.nan,
        indicators=lambda c: c.indicators * math.nan,
    ),
    "objective nan": gives(objective=math.nan),
    "objective -inf": gives(objective=-math.inf),
    "objective too low": gives(objective=lambda c: 0.98 * c.objective),
    "objective too high": gives(objective=lambda c: 1.02 * c.objective),
    "objective and bound too low": gives(
        objective=lambda c: 0.98 * c.objective, bound=lambda c: 0.98 * c.bound
    ),
    "bound nan": gives(bound=math.nan),
    "bound inf": gives(bound=math.inf),
    "bound above its objective": gives(bound=lambda c: 1.02 * c.objective),
    "optimal with a gap": gives(status="optimal", bound=lambda c: 0.9 * c.objective),
    "weights of a wrong shape": gives(weights=lambda c: c.weights[:-1]),
    "weights nan": gives(weights=lambda c: c.weights * math.nan),
    "no weights": gives(weights=None),
    "weights outside the box": gives(weights=lambda c: c.weights + 100.0),
    "indicators outside [0, 1]": gives(indicators=lambda c: c.indicators + 2.0),
    "indicators of a wrong shape": gives(indicators=lambda c: c.indicators[None]),
    "another formulation": gives(formulation="convex hull"),
    "the other integrality": gives(
        integrality=lambda c: "relaxed" if c.integrality == "integer" else "integer"
    ),
    "stopped": gives(status="time_limit", bound=-math.inf),
}  # fmt: skip


def ladder_of(make, monkeypatch, faulty=None, fault=None):
    """The ladder of stored answers and multipliers; route ``faulty`` answers with ``fault``."""

    def stored(inner, time_limit):
        for k, (route, true) in enumerate(answers(make)):
            change = fault if k == faulty else (lambda c: c)
            yield route._replace(solve=functools.partial(change, true))

    monkeypatch.setattr(ladder_of_bounds, "routes", stored)
    monkeypatch.setattr(conic, "solve_with_duals", lambda inner: duals(make))
    return verify(make())


@pytest.mark.parametrize("make", [linear, network])
def test_without_a_fault_the_ladder_holds(make, monkeypatch):
    ladder = ladder_of(make, monkeypatch)
    assert ladder.ok, [check for check in ladder.checks if not check.holds]
    assert len(ladder.rungs) == len(LINEAR if make is linear else NETWORK)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("make", "place"), [*((linear, k) for k in LINEAR), *((network, k) for k in NETWORK)]
)
def test_a_fault_of_any_route_is_caught_and_named(make, place, fault, monkeypatch):
    route, true = answers(make)[place]
    ladder = ladder_of(make, monkeypatch, place, FAULTS[fault])
    assert not ladder.ok
    named = [c for c in ladder.checks if not c.holds and route.label in c.claim + c.reason]
    assert named and all(check.reason for check in named)
    kept = [c for c in ladder.checks if c.holds and c.claim.startswith(route.label + ":")]
    assert not kept or "proof" in kept[0].claim


def test_a_bound_above_what_another_solver_found_is_refuted(monkeypatch):
    """A worse point with a bound to match contradicts nothing but the other solvers."""
    place = next(k for k, (r, _) in enumerate(answers(linear)) if r.integrality == "integer")
    zero = float(ladder_of_bounds.normalised(linear())[0].loss_value(torch.zeros(3).double()))

    def worse(c):
        nothing = {"weights": c.weights * 0, "indicators": c.indicators * 0}
        return dataclasses.replace(c, objective=zero, bound=zero, **nothing)

    ladder = ladder_of(linear, monkeypatch, place, worse)
    refuted = [c for c in ladder.checks if c.verdict == "refuted"]
    label = answers(linear)[place][0].label
    assert any("every bound" in c.claim and label in c.reason for c in refuted)
    assert any("same MIP optimum" in c.claim for c in refuted)


def test_a_proof_that_does_not_check_is_refuted(monkeypatch):
    place = next(k for k, (_, c) in enumerate(answers(linear)) if hasattr(c, "check"))
    ladder = ladder_of(linear, monkeypatch, place, gives(proof=lambda c: type(c.proof)([])))
    label = answers(linear)[place][0].label
    (check,) = [c for c in ladder.checks if c.claim.startswith(label) and "proof" in c.claim]
    assert check.verdict != "holds" and not ladder.ok


@pytest.mark.parametrize("make", [linear, network])
def test_no_routes_prove_nothing(make, monkeypatch):
    monkeypatch.setattr(ladder_of_bounds, "routes", lambda problem, time_limit: iter(()))
    ladder = verify(make())
    assert ladder.verdict == "not tested" and not ladder.ok

"""Branching on activation patterns finds the optimum that SCIP and enumeration find."""

import dataclasses
import time

import pytest
import torch
from slow_cases import slow_unless
from small_networks import random_layer

from spr_or.formulations.entities import Entities
from spr_or.solvers import network_enumeration, network_patterns, network_sgd, scip


@pytest.mark.parametrize("loss", ["squared", "hinge"])
@pytest.mark.parametrize("seed", slow_unless(lambda seed: seed < 2, range(12)))
def test_the_optimum_is_that_of_scip(loss, seed):
    problem = random_layer(seed, loss)
    found, plain = network_patterns.solve(problem), scip.solve(problem)
    assert found.status == plain.status == "optimal"
    assert found.objective == pytest.approx(plain.objective, rel=1e-5)
    assert found.bound <= plain.objective * (1 + 1e-6)


def test_the_optimum_is_that_of_every_support():
    problem = random_layer(4, n=5)
    found, by_support = network_patterns.solve(problem), network_enumeration.solve(problem)
    assert found.objective == pytest.approx(by_support.objective, rel=1e-5)


@pytest.mark.slow
def test_the_optimum_of_three_neurons_is_that_of_scip():
    problem = random_layer(5, n=7, hidden=3, lam=0.02)
    found, plain = network_patterns.solve(problem), scip.solve(problem)
    assert plain.status == "optimal"
    assert found.objective == pytest.approx(plain.objective, rel=1e-5)


@pytest.mark.parametrize("loss", ["squared", "hinge"])
def test_no_multiplier_bounds_above_a_solution(loss):
    # D(nu) holds for any nu, so that it must lie below the networks of its groups for random ones.
    problem = random_layer(2, loss, n=8, hidden=2)
    search = network_patterns.Search(problem, 1e-6, network_patterns.TimeLimit(None))
    search.first_nodes()
    nodes = [node for _, _, node in search.heap]
    generator = torch.Generator().manual_seed(0)
    best = network_patterns.solve(problem).objective
    for _ in range(200):
        nu = torch.randn(8, 1, generator=generator, dtype=torch.float64) * 0.5
        nu = network_patterns.LOSSES[loss].project(nu, problem.y).flatten()
        assert min(search.dual(node.groups, nu)[0] for node in nodes) <= best * (1 + 1e-6)


def test_entities_in_another_order_change_nothing():
    problem = random_layer(3, "hinge", hidden=3)
    turned = dataclasses.replace(
        problem, entities=Entities.of(problem.entities.groups[::-1], problem.entities.n_parameters)
    )
    one, other = network_patterns.solve(problem), network_patterns.solve(turned)
    assert one.objective == pytest.approx(other.objective, rel=1e-5)


def test_twenty_samples_and_four_neurons_close():
    problem = random_layer(0, "hinge", n=20, hidden=4, lam=0.05)
    trained = network_sgd.solve(problem, starts=4, steps=100)
    found = network_patterns.solve(problem, start=trained.weights)
    assert found.status == "optimal" and found.gap <= 1e-5
    assert found.objective <= network_sgd.rounded(problem, trained).objective + 1e-9


def test_no_time_leaves_an_honest_gap_and_the_start():
    problem = random_layer(1, n=12, hidden=4)
    trained = network_sgd.solve(problem, starts=4, steps=100)
    began = time.perf_counter()
    found = network_patterns.solve(problem, time_limit=0.0, start=trained.weights)
    assert time.perf_counter() - began < 20
    assert found.status == "time_limit" and found.bound <= found.objective
    assert found.objective <= network_sgd.rounded(problem, trained).objective + 1e-9


def test_ctrl_c_keeps_what_was_found(monkeypatch):
    problem = random_layer(1, n=12, hidden=4)
    solved, calls = network_patterns.Search.solved, []

    def interrupted(self, bound, node):
        calls.append(bound)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solved(self, bound, node)

    monkeypatch.setattr(network_patterns.Search, "solved", interrupted)
    found = network_patterns.solve(problem)
    assert found.status == "interrupted" and found.bound <= found.objective < float("inf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"loss": "absolute"}, "squared or hinge"), ({"alpha": 0.0}, "alpha must be positive")],
)
def test_what_it_cannot_take_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        network_patterns.solve(random_layer(0, **settings))

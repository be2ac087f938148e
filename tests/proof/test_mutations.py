"""Faults planted in the search: what it then believes is refused, and what it states is still true."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from certified_problems import random_problem, tree_problem

from spr_or.certified_solver import (
    block_curvature,
    block_newton,
    bounds,
    design,
    incumbents,
    node_fista,
    nodes,
    root,
    search,
    solver,
)
from spr_or.certified_solver.search import Search
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations import bigm
from spr_or.solvers import enumeration


def everywhere(patch, name, make):
    """Replace a function in all modules of the search that have it."""
    for module in (block_curvature, block_newton, bounds, design, incumbents, node_fista, nodes,
                   root, search, solver):  # fmt: skip
        if hasattr(module, name):
            patch.setattr(module, name, make(getattr(module, name)))


def scaled_design(**factors):
    """Design matrices whose ``factors`` are multiplied, such as price=1.3."""

    def mutate(patch):
        def make(original):
            def wrong(problem, device="cpu"):
                made = original(problem, device)
                changes = {name: factor * getattr(made, name) for name, factor in factors.items()}
                return dataclasses.replace(made, **changes)

            return wrong

        everywhere(patch, "design_of", make)

    return mutate


def penalty_too_small(patch):
    original = bigm.penalty
    patch.setattr(bigm, "penalty", lambda w, y, alpha: 0.7 * original(w, y, alpha))


def ignores_far_sides(patch):
    """Fixings that cost nothing: the walk that forgets the other side, and fixes what it likes."""

    def careless(original):
        def forced(bound, score):
            one, zero = original(bound, score)
            return one + 0.2 * abs(bound), zero + 0.2 * abs(bound)

        return forced

    everywhere(patch, "forced_bounds", careless)


def bound_too_high(factor):
    def mutate(patch):
        def make(original):
            def wrong(*arguments):
                bound, score = original(*arguments)
                return factor * bound, score

            return wrong

        everywhere(patch, "dual_bound", make)

    return mutate


def scores_wrong(patch):
    def make(original):
        def wrong(*arguments):
            bound, score = original(*arguments)
            return bound, -2 * score

        return wrong

    everywhere(patch, "dual_bound", make)


def loss_wrong(value=1.0, gradient=1.0):
    def mutate(patch):
        def make(original):
            def wrong(*arguments, **named):
                loss, slope = original(*arguments, **named)
                return value * loss, gradient * slope

            return wrong

        everywhere(patch, "loss_and_gradient", make)

    return mutate


def moments_wrong(patch):
    def make(original):
        def wrong(block, of):
            G, C, c0 = original(block, of)
            return design.Moments(0.8 * G, C, 1.1 * c0)

        return wrong

    everywhere(patch, "moments_of", make)


def closes_too_early(patch):
    patch.setattr(Search, "cutoff", property(lambda self: 0.85 * self.best.objective), raising=True)


def forgets_open_nodes(patch):
    patch.setattr(Search, "push", lambda self, node: None)


def drops_a_side(patch):
    original = Search.settle

    def settle(self, child):
        if self.evaluated % 3:
            original(self, child)

    patch.setattr(Search, "settle", settle)


def objective_too_small(patch):
    original = incumbents._incumbents

    def wrong(*arguments):
        return [found._replace(objective=0.9 * found.objective) for found in original(*arguments)]

    patch.setattr(incumbents, "_incumbents", wrong)


MUTATIONS = {
    "price in the design 1.3": scaled_design(price=1.3),
    "ridge in the design 1.5": scaled_design(ridge=1.5),
    "price in the design 0.6": scaled_design(price=0.6),
    "M in the design 0.2": scaled_design(M=0.2),
    "targets in the design 0.9": scaled_design(Y=1.1),
    "penalty in the objective 0.7": penalty_too_small,
    "fixes carelessly": ignores_far_sides,
    "dual bound 1.05": bound_too_high(1.05),
    "scores of the other sign": scores_wrong,
    "loss 1.1": loss_wrong(value=1.1),
    "gradient 0.9": loss_wrong(gradient=0.9),
    "moments of other data": moments_wrong,
    "nodes closed too early": closes_too_early,
    "open nodes forgotten": forgets_open_nodes,
    "sides of branchings dropped": drops_a_side,
    "incumbents cheaper than they are": objective_too_small,
}


@pytest.fixture(scope="module")
def truths():
    problems = [tree_problem(), random_problem(0), random_problem(7), random_problem(13)]
    return [(problem, enumeration.solve(problem).objective) for problem in problems]


# The three of an attack that once succeeded, and one more; the others run with the slow tests.
QUICK = (
    "price in the design 1.3",
    "penalty in the objective 0.7",
    "fixes carelessly",
    "gradient 0.9",
)


@pytest.mark.parametrize(
    ("problems", "name"),
    [("two", name) for name in QUICK]
    + [pytest.param("all", name, marks=pytest.mark.slow) for name in MUTATIONS],
)
def test_a_planted_fault_is_refused(problems, name, truths):
    refused = 0
    for problem, truth in truths if problems == "all" else truths[2:]:
        with pytest.MonkeyPatch.context() as patch:
            MUTATIONS[name](patch)
            made = branch_and_bound(problem, gap=1e-5, time_limit=5.0)
            rows = problem.entities.rows(made.weights)
            penalty = bigm.penalty(rows, made.indicators, problem.alpha)
            objective = float(problem.objective(made.weights, penalty))
            found = made.check()
        # What it states is true all the same, whatever it is.
        assert made.bound <= truth * (1 + 1e-9)
        if made.status == "optimal":
            assert found.ok and found.objective - found.bound <= 1e-5 * found.objective
            assert found.objective == pytest.approx(truth, rel=2e-5)
        # What it believed is refused wherever it is false.
        last = made.trace[-1]
        beliefs = (
            (last.bound, made.objective), (last.bound, last.objective), (made.bound, objective),
        )  # fmt: skip
        for bound, objective in beliefs:
            false = bound > truth * (1 + 1e-7) or abs(objective - found.objective) > 1e-7 * truth
            believed = dataclasses.replace(made, bound=bound, objective=objective)
            if false:
                refused += 1
                assert not believed.check().ok, (problem.name, bound, objective, truth)
        if not found.ok or made.status != "optimal":
            refused += 1
    assert refused, "the fault changed nothing: it tests nothing"


def test_without_a_fault_nothing_is_refused(truths):
    for problem, truth in truths:
        made = branch_and_bound(problem, gap=1e-5)
        assert made.status == "optimal" and made.check().ok
        assert math.isclose(made.objective, truth, rel_tol=2e-5)
        assert not np.isnan(made.bound) and bool(torch.isfinite(made.weights).all())

"""The check of a bound by activation patterns: what holds, what was tampered with, and that it is sound."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from small_networks import random_layer
from torch import Tensor

from spr_or.formulations import activation_patterns, one_hidden_layer
from spr_or.formulations.losses import LOSSES
from spr_or.proof.activation_cells import cells_of, largest_gains
from spr_or.proof.network_tree import LEAF, Stated, check_patterns, leaf_bounds
from spr_or.solvers import network_patterns


def stated(certificate, **other) -> Stated:
    claimed = {name: getattr(certificate, name) for name in Stated._fields}
    return Stated(**{**claimed, **other})


def random_points(seed: int, n: int) -> np.ndarray:
    return np.hstack([np.random.default_rng(seed).normal(size=(n, 2)), np.ones((n, 1))])


@pytest.fixture(scope="module", params=["squared", "hinge"])
def solved(request):
    problem = random_layer(0, request.param, n=10, hidden=3, lam=0.1)
    found = network_patterns.solve(problem)
    assert found.status == "optimal"
    return problem, found


# Cells and gains


@pytest.mark.parametrize("n", [3, 4, 9, 20])
def test_samples_of_which_no_three_lie_on_a_line_have_as_many_cells_as_lines_split_them(n):
    found = cells_of(random_points(n, n))
    assert len(found.fires) == len({tuple(row) for row in found.fires}) == n * n - n + 2


@pytest.mark.parametrize(
    "points",
    [
        [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1], [1, 5]],  # three on a line, parallels
        [[0, 0], [0, 0], [1, 0], [0, 1], [0.3, 0.3]],  # twice the same
        [[1e-3, 0], [1, 1e-9], [0, 1e9], [7, 3e8], [0.1, 0.3]],  # all sizes
    ],
)
def test_every_pattern_of_a_random_neuron_is_a_cell_also_in_special_position(points):
    points = np.hstack([np.array(points, dtype=float), np.ones((len(points), 1))])
    found = cells_of(points)
    w = np.random.default_rng(0).normal(size=(50_000, 3))
    w[:25_000, :2] /= np.abs(points[:, :2]).max(0)  # samples of all sizes get their share
    w[:25_000] *= 10.0 ** np.random.default_rng(1).uniform(-9, 1, (25_000, 3))
    patterns = {tuple(row) for row in w @ points.T > 0}
    assert patterns <= {tuple(row) for row in found.fires}
    inside = (found.rays @ points.T) * np.where(
        np.repeat(found.fires, np.diff(np.append(found.first, len(found.rays))), axis=0), 1, -1
    )
    assert (inside >= -1e-12 * np.abs(found.rays) @ np.abs(points).T).all()


def test_samples_on_one_line_are_refused():
    line = np.array([[0.0, 1.0, 1.0], [1.0, 2.0, 1.0], [2.0, 3.0, 1.0], [5.0, 6.0, 1.0]])
    with pytest.raises(ValueError, match="on one line"):
        cells_of(line)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sign", [1, -1])
def test_no_direction_helps_more_than_the_bound_of_its_cell_and_one_reaches_it(seed, sign):
    points = random_points(seed, 8)
    rng = np.random.default_rng(seed)
    nu = rng.normal(size=8) * (rng.random(8) < 0.7)  # some are 0, as with the hinge loss
    cells = cells_of(points)
    bounds = largest_gains(cells, nu, sign)
    d = rng.normal(size=(20_000, 3))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    z = d @ points.T
    gains = -sign * np.maximum(z, 0) @ nu
    number = {tuple(row): k for k, row in enumerate(cells.fires)}
    here = np.array([number[tuple(row)] for row in z > 0])
    assert (gains <= bounds[here]).all()
    # The solver's list of directions attains what is attained at all.
    arrangement = activation_patterns.arrangement(torch.from_numpy(points))
    for k in rng.integers(len(bounds), size=20):
        fires = torch.from_numpy(cells.fires[k])
        region = activation_patterns.Region(sign, fires, ~fires)
        (best,) = activation_patterns.most_helpful(arrangement, torch.from_numpy(nu), [region])
        assert best is not None and bounds[k] == pytest.approx(best.gain, abs=1e-7)


# The check of a solved problem


def test_the_proof_of_a_solved_problem_holds(solved):
    problem, found = solved
    outcome = check_patterns(problem, stated(found))
    assert outcome.ok and outcome.problems == []
    assert found.bound <= outcome.bound <= outcome.objective
    assert outcome.objective == pytest.approx(found.objective, rel=1e-12)


def without(rows: Tensor, k: int) -> Tensor:
    return torch.cat([rows[:k], rows[k + 1 :]])


def first_split(splits: Tensor) -> int:
    return int((splits[:, 0] >= 0).nonzero()[0])


def as_leaf(splits: Tensor) -> Tensor:
    """The first split that was made said to be a leaf, its children left out."""
    k = first_split(splits)
    return torch.cat([splits[:k], torch.tensor([LEAF]), splits[k + 1 :]])


TAMPERED = {
    "a higher bound": lambda s: {"bound": s.bound + 1e-3 * abs(s.bound)},
    "a bound above the objective": lambda s: {"bound": 1.01 * s.objective},
    "a bound that is no number": lambda s: {"bound": math.nan},
    "another objective": lambda s: {"objective": 0.999 * s.objective},
    "a leaf without multipliers": lambda s: {"multipliers": s.multipliers[:-1]},
    "multipliers of no leaf": lambda s: {"multipliers": s.multipliers[[0, *range(len(s[5]))]]},
    "multipliers of another problem": lambda s: {"multipliers": s.multipliers[:, :-1]},
    "multipliers that are no numbers": lambda s: {"multipliers": s.multipliers + math.nan},
    "multipliers of 0": lambda s: {"multipliers": 0 * s.multipliers},
    "larger multipliers": lambda s: {"multipliers": 1.5 * s.multipliers},
    "multipliers of other leaves": lambda s: {"multipliers": s.multipliers.flip(0)},
    "a node left out": lambda s: {"splits": without(s.splits, first_split(s.splits) + 1)},
    "the last node left out": lambda s: {"splits": s.splits[:-1]},
    "a node too many": lambda s: {"splits": torch.cat([s.splits, torch.tensor([LEAF])])},
    "a split said to be a leaf": lambda s: {"splits": as_leaf(s.splits)},
    "a group that is not there": lambda s: {"splits": s.splits + (s.splits >= 0) * torch.tensor([9, 0])},
    "a sample that is not there": lambda s: {"splits": s.splits + (s.splits >= 0) * torch.tensor([0, 99])},
    "splits at other samples": lambda s: {
        "splits": torch.where(s.splits >= 0, torch.stack([s.splits[:, 0], 9 - s.splits[:, 1]], 1), s.splits)
    },
    "multipliers beyond float64's squares": lambda s: {"multipliers": 1e300 * s.multipliers},
    "multipliers in a row": lambda s: {"multipliers": s.multipliers.flatten()},
    "splits in a row": lambda s: {"splits": s.splits.flatten()},
    "splits that are no integers": lambda s: {"splits": s.splits + 0.5},
    "weights outside": lambda s: {"weights": s.weights + 10},
    "other weights": lambda s: {"weights": 0.9 * s.weights},
    "weights of another network": lambda s: {"weights": s.weights[:-1]},
    "half indicators": lambda s: {"indicators": s.indicators / 2},
    "no indicators": lambda s: {"indicators": 0 * s.indicators},
}  # fmt: skip


@pytest.mark.parametrize("kind", TAMPERED)
def test_what_was_tampered_with_fails(solved, kind):
    problem, found = solved
    whole = stated(found)
    outcome = check_patterns(problem, whole._replace(**TAMPERED[kind](whole)))
    assert not outcome.ok and outcome.problems


@pytest.mark.parametrize("change", ["lam", "alpha", "M_free", "X", "y"])
def test_the_proof_of_one_problem_fails_for_another(solved, change):
    problem, found = solved
    value = getattr(problem, change)
    if change == "y":
        other = dataclasses.replace(problem, y=-value)
    else:
        other = dataclasses.replace(problem, **{change: value * 0.7})
    assert not check_patterns(other, stated(found)).ok


def test_a_problem_of_another_kind_is_named():
    problem = random_layer(0, "absolute", n=6)
    with pytest.raises(ValueError, match="squared or hinge"):
        check_patterns(problem, None)


# It is sound


@pytest.mark.parametrize("loss", ["squared", "hinge"])
def test_in_no_tree_the_optimum_costs_less_than_the_bound_of_its_leaf(loss):
    """Random trees, with shares of multipliers that the search found for some leaf, and noise."""
    problem = random_layer(3, loss, n=7, hidden=2)
    found = network_patterns.solve(problem)
    generator = torch.Generator().manual_seed(0)
    shares = []
    for size in (0.0, 0.01, 0.1, 0.5) * 5:
        splits, leaves, own = random_tree(problem, found.weights, generator)
        rows = torch.randint(len(found.multipliers), (leaves,), generator=generator)
        noise = torch.randn(leaves, problem.n, generator=generator, dtype=torch.float64)
        share = torch.rand(leaves, 1, generator=generator, dtype=torch.float64)
        nu = (share * found.multipliers[rows] + size * noise).unsqueeze(-1)
        nu = LOSSES[loss].project(nu, problem.y).squeeze(-1)
        bounds = list(leaf_bounds(problem, splits, nu))
        assert len(bounds) == leaves and bounds[own] <= found.objective
        shares.append(float(bounds[own]) / found.objective)
    assert max(shares) > 0.5  # some say something


def random_tree(problem, theta, generator) -> tuple[Tensor, int, int]:
    """Splits in preorder, the number of leaves, and the leaf of the network theta."""
    where = one_hidden_layer.places(problem)
    rows = theta[where.rows]
    used = (rows != 0).any(1)
    z = rows @ torch.cat([problem.X, torch.ones(problem.n, 1)], 1).T
    neurons = {
        sign: [i for i in used.nonzero().flatten().tolist() if sign * theta[where.out[i]] > 0]
        for sign in (1, -1)
    }
    most = len(problem.entities)
    splits, leaves, own = [], 0, -1
    waiting = []  # for each node the groups: their size, and their neurons (None: theta is elsewhere)
    for p, q in ((p, q) for p in range(most + 1) for q in range(most + 1) if p + q <= most):
        inside = (p, q) == (len(neurons[1]), len(neurons[-1]))
        groups = [(c, neurons[sign] if inside else None) for sign, c in ((1, p), (-1, q)) if c]
        waiting.insert(0, (inside, groups))
    while waiting:
        inside, groups = waiting.pop()
        if not groups or len(splits) > 25 or torch.rand((), generator=generator) < 0.4:
            splits.append(LEAF)
            own = leaves if inside else own
            leaves += 1
            continue
        g = int(torch.randint(len(groups), (), generator=generator))
        m = int(torch.randint(problem.n, (), generator=generator))
        splits.append((g, m))
        size, members = groups[g]
        fire = [i for i in members or [] if z[i, m] > 0]
        rest = [i for i in members or [] if i not in fire]
        children = []
        for a in range(size + 1):
            parts = [(c, own_) for c, own_ in ((a, fire), (size - a, rest)) if c]
            children.append((inside and a == len(fire), groups[:g] + parts + groups[g + 1 :]))
        waiting += children[::-1]
    return torch.tensor(splits), leaves, own


def test_networks_of_a_leaf_cost_at_least_its_bound():
    """Random networks with one neuron of each sign around the optimum, and random multipliers."""
    problem = random_layer(2, n=8, hidden=2)
    found = network_patterns.solve(problem)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(
        300, problem.entities.n_parameters, generator=generator, dtype=torch.float64
    )
    where = one_hidden_layer.places(problem)
    thetas = found.weights + 0.3 * noise
    thetas[:, where.out] = torch.tensor([2.0, -2.0], dtype=torch.float64)
    cheapest = min(one_hidden_layer.value(problem, theta) for theta in thetas)
    pairs = [(p, q) for p in range(3) for q in range(3) if p + q <= 2]
    leaves = torch.tensor([LEAF] * len(pairs))
    residuals = (
        LOSSES["squared"]
        .gradient(torch.stack([problem.predict(theta) for theta in thetas[:30]]), problem.y)
        .squeeze(-1)
    )
    for nu in residuals:
        bounds = list(leaf_bounds(problem, leaves, nu.expand(len(pairs), -1)))
        assert bounds[pairs.index((1, 1))] <= cheapest


def test_a_solver_that_misses_directions_is_caught(monkeypatch):
    """Without faces and edges in its list the solver's gains are too small, its bounds too high."""
    problem = random_layer(0, "hinge", n=10, hidden=3, lam=0.05)
    true = network_patterns.solve(problem).objective
    directions = activation_patterns.Arrangement.directions

    def few(self, nu, sign):
        found, z = directions(self, nu, sign)
        return found[: len(self.cones)], z[: len(self.cones)]

    monkeypatch.setattr(activation_patterns.Arrangement, "directions", few)
    found = network_patterns.solve(problem)
    outcome = check_patterns(problem, stated(found))
    assert not outcome.ok and outcome.bound <= true


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_the_tree_of_a_search_that_was_cut_short_proves_what_it_states(limit):
    problem = random_layer(1, n=12, hidden=4)
    found = network_patterns.solve(problem, time_limit=limit)
    outcome = check_patterns(problem, stated(found))
    assert outcome.ok, outcome.problems


@pytest.mark.parametrize("at", [1, 3, 7])
def test_the_tree_of_an_interrupted_search_proves_what_it_states(monkeypatch, at):
    problem = random_layer(1, n=12, hidden=4)
    best, calls = network_patterns.best_mixture, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        return best(*arguments)

    monkeypatch.setattr(network_patterns, "best_mixture", interrupted)
    found = network_patterns.solve(problem)
    assert found.status == "interrupted"
    outcome = check_patterns(problem, stated(found))
    assert outcome.ok, outcome.problems

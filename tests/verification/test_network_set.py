"""The larger networks of `spr-or verify --set networks`."""

import dataclasses

import pytest
import torch
from small_networks import random_layer
from typer.testing import CliRunner

from spr_or.cli import app
from spr_or.formulations.activation_patterns import arrangement
from spr_or.solvers import network_patterns
from spr_or.verification.instances import INSTANCES
from spr_or.verification.ladder_of_bounds import verify
from spr_or.verification.network_instances import NETWORKS
from spr_or.verification.routes import larger_network_routes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_instances_are_of_the_stated_size(name):
    problem = NETWORKS[name]()
    assert name == problem.name == f"{name.split('-')[0]}-{problem.n}x{len(problem.entities)}"
    assert 20 <= problem.n <= 40 and 4 <= len(problem.entities) <= 6
    assert network_patterns.reason_against(problem) == ""
    ones = torch.ones(problem.n, 1, dtype=torch.float64)
    arrangement(torch.cat([problem.X, ones], dim=1))


@pytest.mark.parametrize(("loss", "unit"), [("squared", 16.0), ("hinge", 1.0)])
def test_a_small_network_holds_on_the_routes_for_larger_ones(loss, unit):
    # In other units the routes get a normalised problem, whose biases are multiplied with 1 / unit.
    problem = random_layer(0, loss, n=5, lam=0.03 * unit**2)
    y = problem.y * unit if loss == "squared" else problem.y
    problem = dataclasses.replace(problem, X=problem.X * unit, y=y)
    ladder = verify(problem, routes_of=larger_network_routes)
    assert ladder.ok, [check for check in ladder.checks if not check.holds]
    assert [rung.solver.split(",")[0] for rung in ladder.rungs] == ["SGD", "scip", "patterns"]
    assert not any("relaxation" in check.claim for check in ladder.checks)
    direct = network_patterns.solve(problem)
    assert ladder.value("integer") == pytest.approx(direct.objective, rel=1e-5)


def test_a_problem_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="cannot take 'regression-8x3'"):
        verify(INSTANCES["regression-8x3"](), routes_of=larger_network_routes)


def test_the_command_knows_both_sets():
    run = CliRunner()
    listed = run.invoke(app, ["verify", "--set", "networks", "--list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.output.splitlines() if line[0] != " "] == list(
        NETWORKS
    )
    small = run.invoke(app, ["verify", "--list"])
    assert [line.split()[0] for line in small.output.splitlines() if line[0] != " "] == list(
        INSTANCES
    )
    wrong = run.invoke(app, ["verify", "--set", "large"])
    assert wrong.exit_code == 2 and "small, networks" in wrong.output
    other = run.invoke(app, ["verify", "--set", "networks", "relu-xor"])
    assert other.exit_code == 2 and "relu-xor" in other.output

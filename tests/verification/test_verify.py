"""The ladder holds where the mathematics says so, and fails where something is broken."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spr_or import SparseTrainingProblem
from spr_or.cli import app
from spr_or.verification import claims
from spr_or.verification.instances import INSTANCES
from spr_or.verification.ladder import Ladder, Rung
from spr_or.verification.ladder_of_bounds import verify


def random_regression(seed: int) -> SparseTrainingProblem:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, rng.integers(4, 9))
    n, p = int(rng.integers(40, 101)), int(sizes.sum())
    ends = np.cumsum(sizes)
    entities = [list(range(end - k, end)) for end, k in zip(ends, sizes, strict=True)]
    X = rng.standard_normal((n, p))
    w = rng.standard_normal(p) * np.repeat(rng.random(len(sizes)) < 0.4, sizes)
    y = X @ w + rng.standard_normal(n) * 0.5
    return SparseTrainingProblem.linear(
        X,
        y,
        entities,
        lam=10 ** rng.uniform(-2.5, 0),
        alpha=rng.uniform(0.02, 0.9),
        M=10 ** rng.uniform(-0.3, 1.2),
        name=f"random-{seed}",
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_ladder_of_a_random_regression_holds(seed):
    ladder = verify(random_regression(seed))
    assert ladder.ok, [check for check in ladder.checks if not check.holds]
    routes = {(r.formulation, r.solver) for r in ladder.of("integer")}
    assert len(routes) >= 4
    assert all(r.closed for r in ladder.rungs)


@pytest.mark.parametrize("variant", ["printed", "authors2022"])
def test_the_printed_formula_run_as_if_exact_is_refuted(variant):
    ladder = verify(random_regression(1), variant=variant)
    assert not ladder.ok
    failed = " ".join(check.claim for check in ladder.checks if not check.holds)
    assert "perspective relaxation = projected optimum" in failed


def test_a_network_is_solved_globally_and_training_stays_above():
    ladder = verify(INSTANCES["relu-xor"]())
    assert ladder.ok, [check for check in ladder.checks if not check.holds]
    assert not ladder.convex
    trained = ladder.value("relaxed", "projected")
    assert trained >= ladder.proven("relaxed", "perspective") - 1e-6


def test_a_time_limit_gives_intervals_and_no_error():
    problem = INSTANCES["regression-8x3"]()
    ladder = verify(problem, time_limit=0.01)
    assert any(not rung.closed for rung in ladder.rungs)
    for rung in ladder.rungs:
        assert rung.bound <= rung.value + 1e-6
    assert ladder.ok, [check for check in ladder.checks if not check.holds]


def rung(value, bound=None, *, formulation="bigm", integrality="integer", status="optimal"):
    return Rung(
        formulation,
        integrality,
        "made up",
        value,
        value if bound is None else bound,
        0.0,
        status,
        None,
    )


def test_claims_compare_closed_values_at_the_stated_tolerance():
    assert claims.same("x", [rung(1.0), rung(1.0 + 0.9e-5)]).holds
    assert not claims.same("x", [rung(1.0), rung(1.0 + 1.2e-5)]).holds


def test_claims_on_open_rungs_fail_only_when_refuted():
    cut_short = rung(1.3, bound=0.9, status="time_limit")
    assert claims.same("x", [rung(1.0), cut_short]).holds
    assert not claims.same("x", [rung(0.8), cut_short]).holds


def test_a_bound_above_a_value_is_refuted():
    ladder = Ladder("x", True, 1, [rung(1.0), rung(1.2, bound=1.1, status="time_limit")], [])
    assert not all(check.holds for check in claims.bounds_below_values(ladder))


def test_an_order_that_is_violated_is_refuted():
    ladder = Ladder(
        "x",
        True,
        1,
        [
            rung(2.0, integrality="relaxed"),
            rung(1.0, formulation="perspective", integrality="relaxed"),
        ],
        [],
    )
    assert not claims.at_most(ladder, "x", "bigm", "perspective").holds


def test_an_m_so_loose_that_indicators_vanish_is_refused():
    problem = dataclasses.replace(
        random_regression(2), M=torch.full_like(random_regression(2).M, 1e8)
    )
    ladder = verify(problem, time_limit=5)
    failed = [check.claim for check in ladder.checks if not check.holds]
    assert any("integrality tolerance" in claim for claim in failed)


def test_an_active_m_is_said():
    ladder = verify(INSTANCES["tight-m"]())
    assert ladder.ok
    assert any("M is active" in check.claim for check in ladder.checks)


def test_the_command_writes_the_promised_json(tmp_path):
    target = tmp_path / "verify.json"
    picture = tmp_path / "ladder.png"
    arguments = ["verify", "regression-8x3", "--json", str(target), "--plot", str(picture)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    assert report["ok"] is True
    (instance,) = report["instances"]
    assert {"name", "convex", "n_entities", "rungs", "checks"} <= set(instance)
    keys = {"formulation", "integrality", "solver", "value", "bound", "seconds", "status"}
    assert all(set(r) == keys for r in instance["rungs"])
    assert all(set(c) == {"claim", "holds", "slack"} for c in instance["checks"])
    assert {r["formulation"] for r in instance["rungs"]} == {
        "bigm", "perspective", "projected", "enumeration",
    }  # fmt: skip
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_command_exits_1_when_the_formula_is_broken():
    result = CliRunner().invoke(app, ["verify", "regression-8x3", "--variant", "printed"])
    assert result.exit_code == 1
    assert "FAILS" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["regression-8x4"], "did you mean 'regression-8x3'"),
        (["--variant", "wrong"], "authors2022"),
        (["--time-limit", "-1"], "time-limit"),
        (["no_such_module_at_all:f"], "no_such_module_at_all"),
        (["math:pi"], "math:pi"),
        (["--json", "/no/such/folder/x.json"], "does not exist"),
    ],
)
def test_bad_usage_exits_2_and_says_what(arguments, says):
    result = CliRunner().invoke(app, ["verify", *arguments], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert says in result.output


def test_the_sweep_over_m_draws_and_orders_its_bounds(tmp_path):
    target, picture = tmp_path / "sweep.json", tmp_path / "sweep.png"
    arguments = ["verify", "--sweep-m", "--json", str(target), "--plot", str(picture)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    points = json.loads(target.read_text())["sweep"]
    for point in points:
        assert point["bigm"] <= point["perspective"] + 1e-6 <= point["mip"] + 2e-6
    loose = points[-1]
    assert math.isclose(loose["perspective"], points[-2]["perspective"], rel_tol=1e-3)
    assert loose["bigm"] < points[0]["bigm"]
    assert picture.exists()

"""The ladder holds where the mathematics says so, and fails where something is broken."""

import dataclasses
import json
import math
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from slow_cases import slow_unless
from typer.testing import CliRunner

from spr_or import SparseTrainingProblem
from spr_or.cli import app
from spr_or.solvers import conic
from spr_or.verification import bounds_over_m, claims, ladder_of_bounds
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


@pytest.mark.parametrize("seed", slow_unless(lambda seed: seed < 2, range(4)))
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


def test_a_time_limit_leaves_claims_untested_and_says_which():
    problem = INSTANCES["regression-8x3"]()
    ladder = verify(problem, time_limit=0.01)
    assert any(not rung.closed for rung in ladder.rungs)
    for rung in ladder.rungs:
        assert rung.bound <= rung.value + 1e-6
    assert ladder.verdict == "not tested" and not ladder.ok
    untested = [check for check in ladder.checks if check.verdict == "not tested"]
    assert any("same MIP optimum" in check.claim for check in untested)
    assert all(check.reason for check in untested)
    assert not any("nan" in check.claim for check in ladder.checks)


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


def ladder_with(*rungs, scale=0.0):
    return Ladder("x", True, 1, list(rungs), [], scale=scale)


def test_claims_compare_closed_values_at_the_stated_tolerance():
    ladder = ladder_with()
    assert claims.same(ladder, "x", [rung(1.0), rung(1.0 + 0.9e-5)]).holds
    assert claims.same(ladder, "x", [rung(1.0), rung(1.0 + 1.2e-5)]).verdict == "refuted"


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_tolerances_follow_the_scale_of_the_problem(unit):
    ladder = ladder_with(scale=unit)
    near = [rung(0.5 * unit), rung(0.5 * unit * (1 + 0.9e-5))]
    apart = [rung(0.5 * unit), rung(0.5 * unit * (1 + 1.3e-5))]
    assert claims.same(ladder, "x", near).holds
    assert claims.same(ladder, "x", apart).verdict == "refuted"


def test_claims_on_open_rungs_are_refuted_or_not_tested():
    cut_short = rung(1.3, bound=0.9, status="time_limit")
    ladder = ladder_with()
    assert claims.same(ladder, "x", [rung(1.0), cut_short]).verdict == "not tested"
    assert claims.same(ladder, "x", [rung(0.8), cut_short]).verdict == "refuted"


def test_a_comparison_with_nan_or_with_nothing_is_not_tested():
    for rungs in ([], [rung(1.0)]):
        assert claims.same(ladder_with(), "x", rungs).verdict == "not tested"
        assert claims.bounds_below_values(ladder_with(*rungs)).verdict == "not tested"
    assert claims.same(ladder_with(), "x", [rung(1.0), rung(math.nan)]).verdict != "holds"
    assert claims.at_most(ladder_with(), "x", "bigm", None).verdict == "not tested"
    assert Ladder("x", True, 1, [], []).ok is False


def test_a_bound_is_compared_with_the_values_of_other_rungs():
    alone = ladder_with(rung(1.0, bound=0.5, status="time_limit"))
    assert claims.bounds_below_values(alone).verdict == "not tested"
    ladder = ladder_with(rung(1.0), rung(1.2, bound=1.1, status="time_limit"))
    check = claims.bounds_below_values(ladder)
    assert check.verdict == "refuted" and "1.1 above" in check.reason


def relaxed(value, formulation, **settings):
    return rung(value, formulation=formulation, integrality="relaxed", **settings)


def test_an_order_holds_is_refuted_or_is_open():
    def order(low, high):
        return claims.at_most(ladder_with(low, high), "x", "bigm", "perspective").verdict

    assert order(relaxed(2.0, "bigm"), relaxed(1.0, "perspective")) == "refuted"
    assert order(relaxed(1.0, "bigm"), relaxed(2.0, "perspective")) == "holds"
    open_rung = relaxed(2.0, "perspective", bound=0.5, status="time_limit")
    assert order(relaxed(1.0, "bigm"), open_rung) == "not tested"


def test_an_m_so_loose_that_indicators_vanish_is_refused():
    problem = dataclasses.replace(
        random_regression(2), M=torch.full_like(random_regression(2).M, 1e8)
    )
    ladder = verify(problem, time_limit=5)
    assert not ladder.ok
    refused = [check.claim for check in ladder.checks if not check.holds]
    assert any("integrality tolerance" in claim for claim in refused)


def test_an_active_m_is_said():
    ladder = verify(INSTANCES["tight-m"]())
    assert ladder.ok
    assert any("M is active" in note for note in ladder.notes)


def test_the_command_writes_the_promised_json(own, tmp_path):
    target = tmp_path / "verify.json"
    picture = tmp_path / "ladder.png"
    arguments = ["verify", "own_problems:tiny", "--json", str(target), "--plot", str(picture)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    assert report["ok"] is True
    (instance,) = report["instances"]
    assert {"name", "convex", "n_entities", "rungs", "checks"} <= set(instance)
    assert report["verdict"] == instance["verdict"] == "holds"
    keys = {"formulation", "integrality", "solver", "value", "bound", "seconds", "status", "fault"}
    assert all(set(r) == keys for r in instance["rungs"])
    keys = {"claim", "holds", "slack", "verdict", "reason"}
    assert all(set(c) == keys and c["holds"] is True for c in instance["checks"])
    assert "branch_and_bound" in {r["solver"] for r in instance["rungs"]}
    assert {r["formulation"] for r in instance["rungs"]} == {
        "bigm", "perspective", "projected", "enumeration",
    }  # fmt: skip
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_command_exits_1_when_the_formula_is_broken(own):
    result = CliRunner().invoke(app, ["verify", "own_problems:tiny", "--variant", "printed"])
    assert result.exit_code == 1
    assert "REFUTED" in result.output


def test_the_command_exits_3_when_something_was_not_tested(tmp_path):
    target = tmp_path / "verify.json"
    arguments = ["verify", "regression-8x3", "--time-limit", "0.01", "--json", str(target)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3, result.output
    assert "were not tested" in result.output and "same MIP optimum" in result.output
    report = json.loads(target.read_text())
    assert report["ok"] is False and report["verdict"] == "not tested"
    (instance,) = report["instances"]
    assert not any(c["holds"] for c in instance["checks"] if c["verdict"] != "holds")


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


@pytest.mark.parametrize(
    "factors",
    [
        pytest.param((0.25, 1.0, 8.0, 16.0), id="some"),
        pytest.param(bounds_over_m.FACTORS, id="all", marks=pytest.mark.slow),
    ],
)
def test_the_sweep_over_m_draws_and_orders_its_bounds(factors, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds_over_m, "FACTORS", factors)
    target, picture = tmp_path / "sweep.json", tmp_path / "sweep.png"
    arguments = ["verify", "--sweep-m", "--json", str(target), "--plot", str(picture)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    points = json.loads(target.read_text())["sweep"]
    assert {point["factor"] for point in points} == set(factors)
    for point in points:
        assert point["bigm"] <= point["perspective"] + 1e-6 <= point["mip"] + 2e-6
    loose = points[-1]
    assert math.isclose(loose["perspective"], points[-2]["perspective"], rel_tol=1e-3)
    assert loose["bigm"] < points[0]["bigm"]
    assert picture.exists()


def interrupt(*arguments, **settings):
    raise KeyboardInterrupt


def test_ctrl_c_between_two_solvers_leaves_what_was_found():
    seen = []

    def stop_at_the_third(label):
        seen.append(label)
        if len(seen) == 3:
            raise KeyboardInterrupt

    ladder = verify(random_regression(0), progress=stop_at_the_third)
    assert len(ladder.rungs) == 2 and ladder.interrupted and not ladder.ok
    assert len(ladder.checks) == 2 and ladder.to_dict()["ok"] is False


def test_a_claim_whose_solver_is_interrupted_ends_the_ladder(monkeypatch):
    true_duals = conic.solve_with_duals

    def stopped(problem):
        certificate, slopes = true_duals(problem)
        return dataclasses.replace(certificate, status="interrupted"), slopes

    monkeypatch.setattr(conic, "solve_with_duals", stopped)
    ladder = verify(random_regression(0))
    assert ladder.interrupted and ladder.verdict == "not tested"
    assert ladder.checks[-1].reason == claims.INTERRUPTED


def test_a_point_of_the_sweep_whose_solver_is_interrupted_is_none(monkeypatch, tmp_path):
    true_solve, calls = conic.solve, []

    def third_is_interrupted(*arguments, **settings):
        calls.append(settings)
        certificate = true_solve(*arguments, **settings)
        status = "interrupted" if len(calls) == 3 else certificate.status
        return dataclasses.replace(certificate, status=status)

    monkeypatch.setattr(conic, "solve", third_is_interrupted)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["verify", "--sweep-m", "--json", "sweep.json"])
    assert result.exit_code == 130 and "interrupted: 1 of 11 points" in result.output


OWN = """
from spr_or import SparseTrainingProblem

def tiny(**name):
    X, y = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [1.0, 0.0, 1.0]
    return SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=2, **name)

def called_mine():
    return tiny(name="mine")

def faulty():
    return 1 / 0
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder to stand in, with problems of one's own."""
    (tmp_path / "own_problems.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_problems", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "place",
    [
        "spr_or.solvers.scip.fixed_support.fit",  # inside a solver
        "spr_or.solvers.enumeration.solve",  # between two
        "spr_or.verification.claims.projection_value",  # in a claim
    ],
)
def test_the_command_shows_what_was_found_before_ctrl_c(place, own, monkeypatch):
    monkeypatch.setattr(place, interrupt)
    result = CliRunner().invoke(app, ["verify", "own_problems:tiny", "--json", "verify.json"])
    assert result.exit_code == 130, result.output
    assert "interrupted: 0 of 1 instances were verified" in result.output
    assert "big-M relaxed" in result.output and "claims hold" not in result.output
    report = json.loads((own / "verify.json").read_text())
    assert report["ok"] is False and len(report["instances"][0]["rungs"]) >= 5


def test_ctrl_c_keeps_the_instances_that_are_done(own, monkeypatch):
    true_verify, calls = ladder_of_bounds.verify, []

    def second_is_interrupted(problem, **settings):
        calls.append(problem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        ladders.append(true_verify(problem, **settings))
        return ladders[-1]

    ladders = []
    monkeypatch.setattr(ladder_of_bounds, "verify", second_is_interrupted)
    result = CliRunner().invoke(app, ["verify", *["own_problems:tiny"] * 3])
    assert result.exit_code == 130 and len(calls) == 2
    assert "interrupted: 1 of 3 instances were verified" in result.output
    assert f"all {len(ladders[0].checks)} claims hold on 1 instance" in result.output


@pytest.mark.slow  # `spr-or solve` gets a real Ctrl-C among the quick tests
def test_a_real_ctrl_c_ends_with_what_was_found(own):
    """SIGINT to a process that has said on stderr which problem it is at."""
    process = subprocess.Popen(
        [sys.executable, "-m", "spr_or", "verify", "own_problems:tiny", "relu-xor"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert any(line.startswith("[2/2]") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output + errors
    assert "interrupted: 1 of 2" in output and "claims hold on 1 instance" in output
    assert "Traceback" not in errors


def test_a_sweep_over_m_that_is_interrupted_shows_its_points(monkeypatch, tmp_path):
    true_bounds, calls = bounds_over_m.bounds_at, []

    def third_is_interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return true_bounds(*arguments)

    monkeypatch.setattr(bounds_over_m, "bounds_at", third_is_interrupted)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["verify", "--sweep-m", "--json", "sweep.json"])
    assert result.exit_code == 130 and "interrupted: 2 of 11 points" in result.output
    assert len(json.loads((tmp_path / "sweep.json").read_text())["sweep"]) == 2


@pytest.mark.parametrize(("function", "name"), [("tiny", "tiny"), ("called_mine", "mine")])
def test_a_problem_of_ones_own_is_called_by_the_name_it_was_given(function, name, own):
    result = CliRunner().invoke(app, ["verify", f"own_problems:{function}"])
    assert result.exit_code == 0, result.output
    assert f"{name}: 2 entities" in result.output and "linear:" not in result.output
    words = set(re.findall(r"[\w-]+", result.output))
    assert {"big-M", "perspective", "projected"} <= words
    assert not {"bigm", "rung", "rungs", "ladder", "route", "routes"} & words


def test_a_fault_in_ones_own_problem_is_said_with_its_place(own):
    result = CliRunner().invoke(app, ["verify", "own_problems:faulty"], env={"COLUMNS": "400"})
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert "ZeroDivisionError: division by zero" in result.output
    assert "own_problems.py, line 12" in result.output


def test_a_missing_name_is_told_without_a_place_in_this_package(own):
    result = CliRunner().invoke(app, ["verify", "own_problems:missing"], env={"COLUMNS": "400"})
    assert result.exit_code == 2 and "has no 'missing'" in result.output
    assert "import_path" not in result.output


def test_the_list_of_instances_fits_into_80_columns():
    lines = CliRunner().invoke(app, ["verify", "--list"]).output.splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line[0] != " "} == set(INSTANCES)

"""The pool of the next best choices of groups, against all supports by NumPy."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from spr_or.cli import app

N = 6


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, N)) + 0.8 * rng.normal(size=(50, 1))
    y = X[:, 0] + 0.8 * X[:, 1] + 0.3 * X[:, 2] + rng.normal(size=50)
    with (folder / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*"abcdef", "y"], *np.column_stack([X, y]).tolist()])
    return folder / "d.csv", X, y


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def ranked(X, y, lam, alpha):
    """(objective, support) of all supports, best first, on standardised data."""
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    found = []
    for support in itertools.product((False, True), repeat=N):
        at = np.flatnonzero(support)
        A = X[:, at]
        w = np.linalg.solve(A.T @ A / len(y) + lam * alpha * np.eye(len(at)), A.T @ y / len(y))
        value = np.mean((A @ w - y) ** 2) + lam * alpha * w @ w + lam * (1 - alpha) * len(at)
        found.append((float(value), {"abcdef"[i] for i in at}))
    return sorted(found, key=lambda pair: pair[0])


def test_the_pool_is_complete_and_says_so(table, tmp_path):
    data, X, y = table
    out = tmp_path / "out"
    output = run("solve", data, "--target", "y", "--standardise", "--lam", 0.03, "--gap", 1e-7,
                 "--pool", 10, "--within", "8%", "--out", out)  # fmt: skip
    everything = ranked(X, y, 0.03, 0.1)
    best = everything[0][0]
    wanted = [pair for pair in everything if pair[0] <= 1.08 * best]
    assert 2 <= len(wanted) < 10
    pool = json.loads((out / "pool.json").read_text())
    assert [set(row["kept"]) for row in pool["members"]] == [names for _, names in wanted]
    values = [row["objective"] for row in pool["members"]]
    assert values == pytest.approx([value for value, _ in wanted], rel=1e-6)
    assert pool["complete"] is True
    gap = 100 * (everything[len(wanted)][0] / best - 1)
    assert pool["others_at_least_pct"] == pytest.approx(gap, rel=1e-3)
    assert "no other choice of groups comes within 8 %" in output
    run("check", out)
    # The same question without a pool leaves none of it.
    run("solve", data, "--target", "y", "--standardise", "--lam", 0.03, "--out", out)
    assert not list(out.glob("pool*"))


def test_a_pool_that_was_cut_short_is_not_called_complete(table, tmp_path):
    data, X, y = table
    run("solve", data, "--target", "y", "--standardise", "--lam", 0.03, "--pool", 1, "--within", "8%",
        "--out", tmp_path)  # fmt: skip
    pool = json.loads((tmp_path / "pool.json").read_text())
    assert len(pool["members"]) == 1 and pool["complete"] is False
    everything = ranked(X, y, 0.03, 0.1)
    assert pool["others_at_least_pct"] <= 100 * (everything[1][0] / everything[0][0] - 1) + 1e-9
    run("check", tmp_path)


def test_a_pool_can_hold_every_choice(tmp_path):
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "y"], [1, 2.1], [2, 3.9], [3, 6.2], [4, 8.0]])
    out = tmp_path / "out"
    run(
        "solve",
        tmp_path / "d.csv",
        "--target",
        "y",
        "--lam",
        0.1,
        "--pool",
        9,
        "--within",
        "1e9",
        "--out",
        out,
    )
    pool = json.loads((out / "pool.json").read_text())
    assert [row["kept"] for row in pool["members"]] == [["a"], []] and pool["complete"] is True
    assert pool["others_at_least_pct"] is None
    run("check", out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pool: pool["members"].pop(1), "no bound proves it"),
        (lambda pool: pool.update(others_at_least_pct=50.0), "larger distance"),
        (lambda pool: pool.update(within_pct=60.0), "no bound proves it"),
        (lambda pool: pool["members"][1].update(kept=["f"]), "another result"),
    ],
)
def test_a_pool_that_states_what_is_not_proven_is_refused(table, tmp_path, change, said):
    data, _, _ = table
    run("solve", data, "--target", "y", "--standardise", "--lam", 0.03, "--pool", 10, "--within", "8%",
        "--out", tmp_path)  # fmt: skip
    run("check", tmp_path)
    pool = json.loads((tmp_path / "pool.json").read_text())
    change(pool)
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    assert said in " ".join(run("check", tmp_path, code=1).split())


def test_a_pool_with_a_missing_member_is_refused(table, tmp_path):
    import shutil

    data, _, _ = table
    run("solve", data, "--target", "y", "--standardise", "--lam", 0.03, "--pool", 10, "--within", "8%",
        "--out", tmp_path)  # fmt: skip
    shutil.rmtree(tmp_path / "pool-02")
    assert "other choices" in " ".join(run("check", tmp_path, code=1).split())


@pytest.mark.parametrize("loss", ["squared", "poisson"])
def test_nothing_is_a_share_of_a_best_objective_of_zero(tmp_path, loss):
    """A target that does not vary: the empty model costs nothing, and any other the price of a group."""
    X = np.random.default_rng(1).normal(size=(20, 3))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*"abc", "y"], *np.column_stack([X, np.full(20, 4)]).tolist()])
    out = tmp_path / "out"
    said = run("solve", tmp_path / "d.csv", "--target", "y", "--lam", 0.01, "--loss", loss,
               "--pool", 3, "--out", out)  # fmt: skip
    assert "gap 0 %" in said and "all others cost at least 0.009" in said
    pool = json.loads((out / "pool.json").read_text())
    assert pool["complete"] is True and pool["others_at_least_pct"] is None
    assert 0.00899 < pool["others_at_least"] <= 0.009
    assert "zero but for rounding" in (out / "report.html").read_text()
    run("check", out)
    (out / "pool.json").write_text(json.dumps(pool | {"others_at_least": 0.01}))
    assert "larger objective" in " ".join(run("check", out, code=1).split())


def test_choices_that_cost_nothing_are_within_any_share_of_zero(tmp_path):
    """No price for a group, and a free one that explains everything: each further group costs nothing."""
    X = np.random.default_rng(2).normal(size=(20, 3))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        rows = np.column_stack([X, 2 * X[:, 0]]).tolist()
        csv.writer(file).writerows([[*"abc", "y"], *rows])
    (tmp_path / "u.json").write_text('{"a": 0}')
    out = tmp_path / "out"
    run("solve", tmp_path / "d.csv", "--target", "y", "--max-groups", 1, "--group-weights",
        tmp_path / "u.json", "--pool", 5, "--out", out)  # fmt: skip
    pool = json.loads((out / "pool.json").read_text())
    assert [sorted(row["kept"]) for row in pool["members"]][0] == []
    assert sorted(row["kept"] for row in pool["members"]) == [[], ["b"], ["c"]]
    assert pool["complete"] is True
    run("check", out)

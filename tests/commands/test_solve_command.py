"""`spr-or solve` as its user meets it: files in, a proven answer in her terms out, clear errors."""

import csv
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from enumerated_rules import optimum
from typer.testing import CliRunner

from spr_or.certified_solver.lambda_path import grid, without_entities, zero_from
from spr_or.certified_solver.search import Search
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.cli import app
from spr_or.solvers import enumeration
from spr_or.tabular import solve_run
from spr_or.tabular.groups import group_labels
from spr_or.tabular.prepare import prepare
from spr_or.tabular.read import read_table

NAMES = ["age_1", "age_2", "height", "colour_red", "colour_blue", "noise_1", "noise_2", "day"]
GROUPS = [[0, 1], [2], [3, 4], [5, 6], [7]]


def write_csv(path, heads, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([heads, *rows])
    return path


def sample(seed=0, n=40):
    """Columns of unlike scales and offsets, a target with an intercept far from zero."""
    rng = np.random.default_rng(seed)
    scales = np.array([1, 2, 3, 1, 1, 1, 2, 0.5])
    X = (rng.normal(size=(n, 8)) * scales + 3).round(3)
    y = (50 + X[:, 0] - 0.6 * X[:, 2] + X[:, 3] + 0.8 * rng.normal(size=n)).round(3)
    return X, y


@pytest.fixture
def data(tmp_path):
    X, y = sample()
    return write_csv(tmp_path / "own.csv", [*NAMES, "price"], np.column_stack([X, y]).tolist())


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def best_with_intercept(X, y, lam, alpha, scale):
    """All supports by NumPy, with an intercept column that carries no penalty: (value, w, intercept)."""
    best: tuple = (np.inf, None, None)
    n = len(y)
    for size in range(len(GROUPS) + 1):
        for support in itertools.combinations(range(len(GROUPS)), size):
            at = [j for i in support for j in GROUPS[i]]
            A = np.column_stack([np.ones(n), X[:, at]])
            ridge = lam * alpha * np.append(0.0, scale[at] ** 2)
            w = np.linalg.solve(A.T @ A / n + np.diag(ridge), A.T @ y / n)
            value = np.mean((A @ w - y) ** 2) + ridge @ w**2 + lam * (1 - alpha) * size
            if value < best[0]:
                full = np.zeros(X.shape[1])
                full[at] = w[1:]
                best = (value, full, w[0])
    return best


def weights_of(folder):
    with (folder / "weights.csv").open() as file:
        return {row["column"]: float(row["weight"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("standardise", [False, True])
def test_the_answer_is_the_best_model_with_intercept_in_the_users_units(
    data, tmp_path, standardise
):
    X, y = sample()
    out = tmp_path / "out"
    options = ["--standardise"] if standardise else []
    output = run("solve", data, "--target", "price", "--groups", "_", "--lam", 0.2, "--gap", 1e-6,
                 "--out", out, *options)  # fmt: skip
    scale = X.std(0) if standardise else np.ones(8)
    unit = y.std() if standardise else 1.0  # of the target, too
    value, w, intercept = best_with_intercept(X, y / unit, 0.2, 0.1, scale)
    w, intercept = w * unit, intercept * unit
    result = json.loads((out / "result.json").read_text())
    assert result["outcome"]["objective"] == pytest.approx(value, rel=1e-6)
    assert result["outcome"]["status"] == "optimal"
    found = weights_of(out)
    assert found.pop("(intercept)") == pytest.approx(intercept, rel=1e-6)
    assert list(found) == NAMES
    assert np.allclose(list(found.values()), w, rtol=1e-4, atol=1e-6)
    assert "divided" in output if standardise else "divided" not in output
    labels = ["age", "height", "colour", "noise", "day"]
    kept = {name for name, group in zip(labels, GROUPS, strict=True) if np.any(w[group])}
    assert set(result["kept"]) == kept and 0 < len(kept) < 5
    assert all(name in output for name in kept)


def test_without_an_intercept_the_data_stay_as_they_are(data, tmp_path):
    arguments = ["solve", data, "--target", "price", "--groups", "_", "--lam", 5, "--no-intercept",
                 "--out", tmp_path / "o", "--M", 100]  # fmt: skip
    run(*arguments)
    stated = prepare(data, "price", "_", "squared", intercept=False)
    problem = stated.problem(5.0, 0.1, 100.0)
    assert torch.equal(problem.X, torch.from_numpy(stated.table.X))
    objective = json.loads((tmp_path / "o" / "result.json").read_text())["outcome"]["objective"]
    assert objective == pytest.approx(enumeration.solve(problem).objective, rel=2e-4)
    assert "(intercept)" not in weights_of(tmp_path / "o")


@pytest.mark.parametrize("labels", [("no", "yes"), ("-1", "1"), ("0.0", "1")])
def test_logistic_takes_two_labels_and_says_which_is_positive(tmp_path, labels):
    X, _ = sample(1)
    X = X - X.mean(0)
    sign = X[:, 0] + X[:, 3] + 0.3 * np.random.default_rng(0).normal(size=len(X)) > 0
    rows = [[*row, labels[int(s)]] for row, s in zip(X.tolist(), sign, strict=True)]
    data = write_csv(tmp_path / "c.csv", [*NAMES, "bought"], rows, delimiter=";")
    out = tmp_path / "out"
    output = run("solve", data, "--target", "bought", "--groups", "_", "--loss", "logistic",
                 "--lam", 0.05, "--out", out)  # fmt: skip
    assert f"scores '{labels[1]}' (+1)" in output
    problem = prepare(data, "bought", "_", "logistic").problem(0.05, 0.1, 100.0)
    assert torch.equal(problem.y[:, 0] > 0, torch.from_numpy(sign))
    objective = json.loads((out / "result.json").read_text())["outcome"]["objective"]
    assert objective == pytest.approx(optimum(problem), rel=2e-4)
    run("check", out)


def test_npz_with_groups_and_many_targets(tmp_path):
    X, y = sample()
    Y = np.column_stack([y, y[::-1]])
    labels = np.array([3, 3, 1, 2, 2, 7, 7, 9])
    np.savez(tmp_path / "d.npz", X=X, Y=Y, groups=labels)
    out = tmp_path / "out"
    run("solve", tmp_path / "d.npz", "--target", "Y", "--lam", 0.3, "--out", out)
    problem = prepare(tmp_path / "d.npz", "Y", None, "squared").problem(0.3, 0.1, 100.0)
    assert [len(group) for group in problem.entities.groups] == [4, 2, 4, 4, 2]
    result = json.loads((out / "result.json").read_text())
    truth = enumeration.solve(problem).objective
    assert result["outcome"]["objective"] == pytest.approx(truth, rel=2e-4)
    heads = (out / "weights.csv").read_text().splitlines()[0]
    assert heads == "column,group,weight Y0,weight Y1"
    run("check", out / "certificate.json")


def test_groups_can_be_said_in_every_way(tmp_path):
    wanted = ["a", "a", "b", "c", "c", "d", "d", "e"]
    mapping = dict(zip(NAMES, wanted, strict=True))
    (tmp_path / "g.json").write_text(json.dumps(mapping))
    write_csv(tmp_path / "g.csv", ["column", "group"], list(mapping.items()))
    assert group_labels(str(tmp_path / "g.json"), NAMES) == wanted
    assert group_labels(str(tmp_path / "g.csv"), NAMES) == wanted
    assert group_labels(None, NAMES) == NAMES
    assert group_labels("_", NAMES)[:3] == ["age", "age", "height"]
    assert group_labels("3", NAMES)[5:] == ["colour_blue..noise_2"[:0] or "colour_red..noise_1",
                                           "noise_2..day", "noise_2..day"]  # fmt: skip


def test_numbers_are_read_as_python_reads_them(tmp_path):
    path = tmp_path / "n.csv"
    path.write_text("\ufeffa\tb,c\ty\n 1e3\t-2\t+.5\n\n10\t3.\t4\n", encoding="utf-8")
    table = read_table(path, "y", None, "squared")
    assert table.columns == ["a", "b,c"]
    assert table.X.tolist() == [[1000.0, -2.0], [10.0, 3.0]] and table.y.tolist() == [[0.5], [4]]


GOOD = [[1, 2, 3], [2, 1, 5], [4, 4, 1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("heads", "rows", "options", "says"),
    [
        (["a", "b", "y"], GOOD, ["--target", "z"], "no column is called 'z'; there are a, b, y"),
        (["a", "b", "y"], GOOD, [], "--target is missing"),
        (["a", "a", "y"], GOOD, ["--target", "y"], "'a' names 2 columns"),
        (["a", "b", "y"], [[1, 2, 3], [1, "red", 2]], ["--target", "y"], "line 3, column 'b': 'red'"),
        (["a", "b", "y"], [[1, 2, 3], [1, "", 2]], ["--target", "y"], "values are missing, by column: b 1;"),
        (["a", "b", "y"], [[1, 2, "nan"], *GOOD], ["--target", "y"], "y 1; --missing drop uses the 4 of 5"),
        (["a", "b", "y"], [[1, 2, "inf"]], ["--target", "y"], "line 2, column 'y': 'inf' is not a finite"),
        (["a", "b", "y"], [[1, 2]], ["--target", "y"], "line 2: 2 values, the header has 3"),
        (["a", "b", "y"], [], ["--target", "y"], "no data"),
        (["y"], [[1]], ["--target", "y"], "no column is left"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--lam", "-1"], "--lam must be a positive number"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--lam", "0.1 min"], "--lam must be a positive number"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--alpha", "1.5"], "alpha must lie in [0, 1], got 1.5"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--M", "0"], "--M must be auto or a positive number"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--gap", "-1"], "--gap must be"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--path", "5"], "either --lam, or --path"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--loss", "huber"], "--loss must be squared, logi"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--loss", "logistic"], "exactly two labels; 'y' has 4"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--groups", "0"], "at least one column"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--groups", "_"], "no column has this separator"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--groups", "g.json"], "g.json: No such file"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--groups", "what"], "--groups 'what': give a number"),
        (["a", "b", "y"], [["1_000", 2, 3], [1, 3, 4]], ["--target", "y"], "'1_000' is a number with marks"),
        (["a", "b", "y"], [[1, "2020-01-31", 3]], ["--target", "y"], "'b': '2020-01-31' is a date"),
        (["a", "b", "y"], [[1, 2, 3], [2, 4, 5], [3, 6, 8]], ["--target", "y", "--alpha", "0"], "depend"),
        (["a", "b", "y"], GOOD, ["--target", "y", "--device", "nonsense"], "--device nonsense"),
    ],
)  # fmt: skip
def test_errors_are_one_line_that_says_what_and_where(tmp_path, heads, rows, options, says):
    data = write_csv(tmp_path / "bad.csv", heads, rows)
    lam = [] if "--lam" in options else ["--lam", "0.1"]
    output = run("solve", data, *options, *lam, "--out", tmp_path / "o", code=2)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert says in line and "Traceback" not in output


def test_missing_and_strange_files_are_errors_too(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    np.savez(tmp_path / "y.npz", X=np.ones((2, 2)))
    np.savez(tmp_path / "z.npz", X=np.array([[1.0, np.nan], [2.0, 3.0]]), y=np.ones(2))
    cases = {"no.csv": "no such file", "x.npz": "not an npz", "y.npz": "no array 'y'",
             "z.npz": "by column: x1 1;", ".": "no such file"}  # fmt: skip
    for name, says in cases.items():
        assert says in run("solve", tmp_path / name, "--target", "y", "--lam", 1, code=2)
    assert "no such file" in run("solve", tmp_path / "no.csv", "--path", 3, code=2)
    assert f"{tmp_path}: no result of spr-or solve there" in run("check", tmp_path, code=2)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """One solved folder, and its data beside it."""
    folder = tmp_path_factory.mktemp("once")
    X, y = sample()
    data = write_csv(folder / "own.csv", [*NAMES, "price"], np.column_stack([X, y]).tolist())
    run("solve", data, "--target", "price", "--groups", "_", "--lam", 0.2, "--out", folder / "o")
    return folder


@pytest.fixture
def solved(once, tmp_path):
    """A copy to tamper with; its result.json still names the data of the original."""
    shutil.copytree(once / "o", tmp_path / "o")
    return tmp_path / "o"


def test_a_fresh_process_confirms_the_result(solved):
    done = subprocess.run(
        [sys.executable, "-m", "spr_or.cli", "check", "--exact", str(solved)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "holds" in done.stdout and "M proven" in done.stdout


def change_json(path, *keys, by):
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = by(inner[keys[-1]])
    path.write_text(json.dumps(content))


def another_weight(folder):
    text = (folder / "weights.csv").read_text()
    (folder / "weights.csv").write_text(text.replace("age_1,age,", "age_1,age,1"))


def smaller_m(folder):
    """A smaller M everywhere it is written down, with a certificate that is right for it."""
    change_json(folder / "result.json", "M", "value", by=lambda M: [0.5 * m for m in M])
    content = json.loads((folder / "result.json").read_text())
    data = prepare(Path(content["data"]["file"]), "price", "_", "squared")
    certificate = branch_and_bound(data.problem(0.2, 0.1, content["M"]["value"]))
    certificate.save(folder / "certificate.json")
    change_json(folder / "result.json", "outcome", by=lambda o: {**o, "nodes": certificate.nodes,
                "objective": certificate.objective, "bound": certificate.bound})  # fmt: skip


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (lambda f: change_json(f / "result.json", "outcome", "objective", by=lambda x: 0.9 * x), "objective"),
        (lambda f: change_json(f / "result.json", "kept", by=lambda k: [*k, "day"]), "other groups"),
        (lambda f: change_json(f / "result.json", "lam", by=lambda x: 2 * x), "another problem"),
        (lambda f: change_json(f / "certificate.json", "result", "bound", by=lambda b: 1.01 * b), "proves"),
        (lambda f: change_json(f / "result.json", "M", "value", by=lambda M: M[:-1]), "M must be"),
        (another_weight, "weights.csv"),
        (smaller_m, "is below"),
    ],
)  # fmt: skip
def test_a_tampered_result_is_refused(solved, tamper, says):
    tamper(solved)
    assert says in run("check", solved, code=1)


def test_other_data_are_refused(solved, data):
    run("check", solved, "--data", data)
    data.write_text(data.read_text().replace("\n", "\n\n", 1))
    assert "SHA-256" in run("check", solved, "--data", data, code=2)


def test_an_m_chosen_too_small_is_said(data, tmp_path):
    output = run("solve", data, "--target", "price", "--groups", "_", "--lam", 0.2, "--M", 0.3,
                 "--out", tmp_path / "o")  # fmt: skip
    assert "M is active" in output
    assert "M as given, not proven" in run("check", tmp_path / "o")


@pytest.mark.pictures
def test_a_path_solves_each_lambda_and_resumes(data, tmp_path):
    out = tmp_path / "o"
    arguments = ["solve", data, "--target", "price", "--groups", "_", "--path", 4, "--out", out]
    run(*arguments)
    points = json.loads((out / "path.json").read_text())
    assert len(points) == 4 and points[0]["groups_kept"] == 0 < points[-1]["groups_kept"]
    X, y = sample()
    for point in points:
        value, _, _ = best_with_intercept(X, y, point["lam"], 0.1, np.ones(8))
        assert point["objective"] == pytest.approx(value, rel=2e-4)
    table = list(csv.DictReader((out / "path.csv").open()))
    assert [float(row["objective"]) for row in table] == [p["objective"] for p in points]
    assert (out / "path.png").read_bytes()[:4] == b"\x89PNG"
    assert run("check", out).count("holds") == 4
    (out / "lambda-03" / "result.json").unlink()
    assert run(*arguments).count("from before") == 3
    assert [p["lam"] for p in json.loads((out / "path.json").read_text())] == [
        p["lam"] for p in points
    ]
    said = run(*arguments, "--alpha", 0.2, code=2)
    assert "another problem" in said and "another alpha" in said and "--out" in said


@pytest.mark.pictures
def test_names_are_shown_as_they_are(tmp_path):
    """Brackets are no markup, and control characters of a file do not reach the terminal."""
    X, y = sample()
    heads = ["height[cm]", "b", "a[/b]", "c\x1b[2J", "e", "f", "g", "h", "y"]
    data = write_csv(tmp_path / "own.csv", heads, np.column_stack([X, y]).tolist())
    output = run("solve", data, "--target", "y", "--lam", 0.01, "--out", tmp_path / "o")
    assert "height[cm]" in output and "a[/b]" in output
    assert "c?[2J" in output and "\x1b" not in output


def test_a_list_of_lambdas_is_followed_downwards(data, tmp_path):
    run("solve", data, "--target", "price", "--path", "0.5,2", "--out", tmp_path, "--M", 50)
    assert [p["lam"] for p in json.loads((tmp_path / "path.json").read_text())] == [2.0, 0.5]


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.5, 0.95])
def test_from_lambda_max_on_zero_is_optimal(tmp_path, loss, alpha):
    """Every support loses there by enumeration; and the bound is not idle: far below it, one wins."""
    X, y = sample(2)
    target = np.where(y > y.mean(), 1, -1) if loss == "logistic" else y
    write_csv(tmp_path / "d.csv", [*NAMES, "y"], np.column_stack([X, target]).tolist())
    stated = prepare(tmp_path / "d.csv", "y", "_", loss)
    largest = zero_from(stated.problem(1.0, alpha, 50.0))
    at = stated.problem(largest, alpha, 50.0)
    nothing = float(at.loss_value(without_entities(at)))
    assert optimum(at) == pytest.approx(nothing, rel=1e-9)
    assert optimum(stated.problem(grid(largest, 2)[1], alpha, 50.0)) < nothing * (1 - 1e-6)


def test_lambda_max_does_not_exist_without_a_price(data):
    problem = prepare(data, "price", "_", "squared").problem(1.0, 1.0, 5.0)
    with pytest.raises(ValueError, match="alpha = 1"):
        zero_from(dataclasses.replace(problem))


def hard_data(path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 40)) + rng.normal(size=(60, 1))
    np.savez(path, X=X, y=X[:, ::8].sum(1) + 6 * rng.normal(size=60))


def test_ctrl_c_gives_the_best_so_far_with_its_gap(tmp_path):
    """A real SIGINT to a real process, as soon as it says that it has begun."""
    hard_data(tmp_path / "hard.npz")
    command = [
        sys.executable, "-m", "spr_or.cli", "solve", str(tmp_path / "hard.npz"), "--groups", "2",
        "--lam", "0.2", "--alpha", "0.001", "--gap", "0", "--out", str(tmp_path / "o"),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert "60 rows" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output + errors
    assert "interrupted: objective" in output and "Traceback" not in errors
    outcome = json.loads((tmp_path / "o" / "result.json").read_text())["outcome"]
    assert outcome["status"] == "interrupted" and 0 < outcome["gap"] < 1
    run("check", tmp_path / "o")


@pytest.mark.parametrize("asked", [("--lam", 2), ("--path", "0.5,2")])
def test_ctrl_c_before_any_solution_leaves_none(asked, data, tmp_path, monkeypatch):
    def stopped_at_once(*arguments, **settings):
        return dataclasses.replace(branch_and_bound(*arguments, **settings), trace=())

    monkeypatch.setattr(solve_run, "branch_and_bound", stopped_at_once)
    said = run(
        "solve", data, "--target", "price", *asked, "--M", 50, "--out", tmp_path / "o", code=130
    )
    assert "interrupted before there was a first solution" in said
    assert not list((tmp_path / "o").rglob("*.json"))


def test_a_search_broken_off_in_a_step_states_what_its_tree_proves(data, monkeypatch):
    """What a second Ctrl-C can leave: an open node lost, and a bound that the tree does not bear."""
    problem = prepare(data, "price", "1", "squared").problem(0.5, 0.001, 5.0)
    settle, calls = Search.settle, []

    def broken(self, child):
        calls.append(child)
        if len(calls) == 2:
            raise KeyboardInterrupt
        settle(self, child)

    monkeypatch.setattr(Search, "settle", broken)
    stated = branch_and_bound(problem, gap=0)
    assert len(calls) == 2 and stated.status == "interrupted"
    assert stated.check().ok and 0 < stated.gap < 1


def test_a_time_limit_exits_1_with_a_result_that_checks(tmp_path):
    hard_data(tmp_path / "hard.npz")
    run("solve", tmp_path / "hard.npz", "--groups", 2, "--lam", 0.2, "--alpha", 0.001, "--gap", 0,
        "--time-limit", 0.1, "--out", tmp_path / "o", code=1)  # fmt: skip
    run("check", tmp_path / "o")


def test_rules_of_the_model_are_kept_said_and_checked(data, tmp_path):
    out = tmp_path / "out"
    output = run("solve", data, "--target", "price", "--groups", "_", "--standardise", "--lam", "0.02 max",
                 "--max-groups", 2, "--require", "noise", "--nonnegative", "all", "--out", out)  # fmt: skip
    result = json.loads((out / "result.json").read_text())
    assert len(result["kept"]) == 2 and "noise" in result["kept"]
    assert min(w for name, w in weights_of(out).items() if name != "(intercept)") >= 0
    for said in ("at most 2 groups", "required: noise", "weights not negative: all"):
        assert said in output
    assert "required: noise" in run("check", out)
    content = result | {"model": result["model"] | {"rules": {"max_groups": 1}}}
    (out / "result.json").write_text(json.dumps(content))
    run("check", out, code=1)


def test_the_best_groups_of_a_number_need_no_lambda(data, tmp_path):
    out = tmp_path / "out"
    run("solve", data, "--target", "price", "--groups", "_", "--max-groups", 2, "--out", out)
    X, y = sample()
    # The least squares of every pair of groups, by NumPy.
    costs = {}
    labels = ["age", "height", "colour", "noise", "day"]
    for pair in itertools.combinations(range(len(GROUPS)), 2):
        A = np.column_stack([np.ones(len(y)), X[:, [j for i in pair for j in GROUPS[i]]]])
        costs[pair] = float(np.mean((y - A @ np.linalg.lstsq(A, y, rcond=None)[0]) ** 2))
    best = min(costs, key=lambda pair: costs[pair])
    result = json.loads((out / "result.json").read_text())
    assert set(result["kept"]) == {labels[i] for i in best}
    assert result["outcome"]["mean_loss"] == pytest.approx(costs[best], rel=1e-3)


def test_groups_of_weight_zero_are_free_and_weights_of_rows_count(data, tmp_path):
    X, y = sample()
    count = np.random.default_rng(0).integers(0, 3, len(y))
    rows = np.column_stack([X, count, y])
    weighted = write_csv(tmp_path / "w.csv", [*NAMES, "times", "price"], rows.tolist())
    repeated = write_csv(
        tmp_path / "r.csv", [*NAMES, "price"], np.column_stack([X, y]).repeat(count, 0).tolist()
    )
    file = tmp_path / "groups.json"
    file.write_text(json.dumps({"age": 0, "day": 2.5}))
    asked = [
        "--target",
        "price",
        "--groups",
        "_",
        "--standardise",
        "--lam",
        0.05,
        "--group-weights",
        file,
    ]
    run("solve", weighted, *asked, "--weights", "times", "--out", tmp_path / "a")
    run("solve", repeated, *asked, "--out", tmp_path / "b")
    one, two = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert list(one) == list(two)
    assert np.allclose(list(one.values()), list(two.values()), rtol=1e-3, atol=1e-4)
    kept = json.loads((tmp_path / "a" / "result.json").read_text())["kept"]
    assert "age" not in kept and one["age_1"] != 0  # free: always in, never chosen
    run("check", tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--require", "colur"], "did you mean 'colour'?"),
        (["--needs", "age"], "--needs takes GROUP:OTHER"),
        (["--needs", "age:day,day:age"], "needs itself"),
        (["--nonnegative", "x"], "no column is called 'x'"),
        (["--group-weights", "log"], "uniform, size, root or a .json file"),
        (["--max-groups", 1, "--require", "age,day"], "2 entities are required"),
        (["--weights", "price"], "no column is called 'price'"),
        (["--weights", "noise_2"], "must be 0 or positive"),
    ],
)
def test_rules_that_make_no_sense_are_refused(data, tmp_path, options, said):
    output = run("solve", data, "--target", "price", "--groups", "_", "--lam", 0.1, "--out", tmp_path,
                 *options, code=2)  # fmt: skip
    assert said in " ".join(output.split())

"""Where `spr-or solve` writes: a folder for each problem, one process at a time, and how it ends."""

import csv
import fcntl
import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import spr_or as so
from spr_or.cli import app
from spr_or.tabular.folder import alone_in, default_folder, question
from spr_or.tabular.prepare import prepare
from spr_or.tabular.source import TableError
from spr_or.utils import folder_lock


def cli(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "250"})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def write_table(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(30, 3)).round(3)
    y = (2 * X[:, 0] + 0.5 * X[:, 2] + 0.1 * rng.normal(size=30)).round(3)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c", "y"], *np.column_stack([X, y]).tolist()])
    return path


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table in the current folder, so that the default folder is below it."""
    monkeypatch.chdir(tmp_path)
    return write_table(tmp_path / "own.csv")


def results(place: Path) -> list[Path]:
    return sorted(file.parent for file in place.glob("runs/**/result.json"))


def test_each_problem_has_a_folder_of_its_own(table: Path) -> None:
    base = ("solve", table, "--target", "y")
    variants = (
        ("--lam", 0.1), ("--lam", 0.2), ("--lam", 0.1, "--alpha", 0.3), ("--lam", 0.1, "--M", 5),
        ("--lam", 0.1, "--standardise"), ("--lam", 0.1, "--no-intercept"),
        ("--lam", 0.1, "--groups", 2),
    )  # fmt: skip
    for number, options in enumerate(variants, 1):
        cli(*base, *options)
        assert len(results(table.parent)) == number
    write_table(table, seed=1)  # other data of the same name
    cli(*base, "--lam", 0.1)
    assert len(results(table.parent)) == len(variants) + 1
    cli(*base, "--path", "1,0.1")
    cli(*base, "--path", "1,0.1,0.01")
    assert len(results(table.parent)) == len(variants) + 1 + 2 + 3
    for folder in (table.parent / "runs").iterdir():
        assert folder.name.startswith("solve-own-")


def test_the_same_problem_again_replaces_its_result(table: Path) -> None:
    for gap in (0.5, 1e-4):
        cli("solve", table, "--target", "y", "--lam", 0.1, "--gap", gap)
    (folder,) = results(table.parent)
    assert json.loads((folder / "result.json").read_text())["asked_gap"] == 1e-4
    cli("check", folder)


def test_the_name_does_not_depend_on_threads(table: Path) -> None:
    data = prepare(table, "y", None, "squared")
    lams = [1.0, 0.1, 0.01]
    near = [lam * (1 + 1e-15) for lam in lams]
    names = {
        default_folder(table, [question(data, 0.1, None, None, path)]) for path in (lams, near)
    }
    assert len(names) == 1


def test_a_folder_of_another_problem_is_refused_with_the_way_out(table: Path) -> None:
    base = ("solve", table, "--target", "y", "--out", "o")
    cli(*base, "--lam", 0.1)
    kept = {file.name: file.read_bytes() for file in Path("o").iterdir()}
    for options, says in (
        (("--lam", 0.2), "another lambda"),
        (("--lam", 0.1, "--alpha", 0.3), "another alpha"),
        (("--lam", 0.1, "--M", 9), "another M"),
        (("--lam", 0.1, "--standardise"), "another standardise"),
        (("--path", "0.1,0.01"), "another path"),
    ):  # fmt: skip
        said = cli(*base, *options, code=2)
        assert says in said and "name another folder with --out, or remove this one" in said
    write_table(table, seed=1)
    assert "another data" in cli(*base, "--lam", 0.1, code=2)
    assert {file.name: file.read_bytes() for file in Path("o").iterdir()} == kept


def test_another_path_never_leaves_lambdas_behind(table: Path) -> None:
    base = ("solve", table, "--target", "y", "--out", "o")
    cli(*base, "--path", "1,0.1,0.01")
    for path in ("1,0.1", "1,0.1,0.01,0.001", "1,0.2,0.01", "3"):
        assert "another path" in cli(*base, "--path", path, code=2)
    assert "another" in cli(*base, "--lam", 0.1, code=2)
    assert cli(*base, "--path", "1,0.1,0.01").count("from before") == 3
    cli("check", "o")


def test_a_folder_in_use_is_refused(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "_GRACE", 0.1)
    Path("o").mkdir()
    with Path("o/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = cli("solve", table, "--target", "y", "--lam", 0.1, "--out", "o", code=2)
        assert "another solve is at work in o" in said and "--out" in said
        assert [file.name for file in Path("o").iterdir()] == [".lock"]
    cli("solve", table, "--target", "y", "--lam", 0.1, "--out", "o")


def test_the_lock_goes_with_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "_GRACE", 0.1)
    with alone_in(tmp_path):
        child = os.fork()
        if child == 0:  # another process
            try:
                with alone_in(tmp_path):
                    os._exit(1)
            except TableError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with alone_in(tmp_path):
        pass


# --- how a solve ends -----------------------------------------------------------------------------


def hard(path: Path) -> Path:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 40)) + rng.normal(size=(60, 1))
    np.savez(path, X=X, y=X[:, ::8].sum(1) + 6 * rng.normal(size=60))
    return path


@pytest.mark.parametrize("limit", [0, 1e-6, 0.02])
def test_a_limit_in_the_first_round_is_called_a_time_limit(tmp_path: Path, limit: float) -> None:
    data = hard(tmp_path / "hard.npz")
    options = ("--groups", 2, "--alpha", 0.001, "--gap", 0, "--time-limit", limit)
    said = cli("solve", data, *options, "--lam", 0.2, "--out", tmp_path / "o", code=1)
    outcome = json.loads((tmp_path / "o" / "result.json").read_text())["outcome"]
    assert "time limit: objective" in said and "interrupted" not in said
    assert outcome["status"] == "time_limit"
    cli("check", tmp_path / "o")


def test_a_path_goes_on_after_a_limit_in_the_first_round(tmp_path: Path) -> None:
    data = hard(tmp_path / "hard.npz")
    options = ("--groups", 2, "--alpha", 0.001, "--gap", 0, "--time-limit", 0)
    cli("solve", data, *options, "--path", "2,0.2,0.02", "--out", tmp_path / "o", code=1)
    assert len(json.loads((tmp_path / "o" / "path.json").read_text())) == 3


CRASH = """a,b,c,d,y
-1.11,-0.288,-0.263,-0.237,-0.548
1.119,0.133,0.359,0.006,-1.221
-0.898,0.172,0.726,0.117,1.625
"""


def answers(data: Path, out: Path, *options: object) -> None:
    """An answer that its check confirms, or one line of error; never a traceback."""
    done = CliRunner().invoke(
        app, ["solve", str(data), "--target", "y", *map(str, options), "--out", str(out)]
    )
    assert done.exit_code in (0, 1, 2), (done.output, done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    if done.exit_code == 2:
        assert sum(line.startswith("error: ") for line in done.output.splitlines()) == 1
        return
    checked = CliRunner().invoke(app, ["check", str(out)])
    assert checked.exit_code == 0, checked.output


def test_a_node_without_a_group_left_is_answered(tmp_path: Path) -> None:
    (tmp_path / "crash.csv").write_text(CRASH)
    options = ("--no-intercept", "--lam", 0.35, "--alpha", 0.1, "--M", 3.5)
    answers(tmp_path / "crash.csv", tmp_path / "o", *options)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--M", 2),
        ("--no-intercept",),
        ("--alpha", 0),
    ],
)
def test_a_table_in_which_nothing_varies_is_answered(tmp_path: Path, options: tuple) -> None:
    y = np.random.default_rng(0).normal(size=20)
    text = "a,b,y\n" + "".join(f"1.0,2.0,{value}\n" for value in y.tolist())
    (tmp_path / "all_constant.csv").write_text(text)
    answers(tmp_path / "all_constant.csv", tmp_path / "o", "--lam", 0.1, *options)


@pytest.mark.parametrize("start", [np.ones(2), [1.0, 1.0], None])
def test_a_start_may_be_any_array(start: object) -> None:
    p = so.SparseTrainingProblem.linear(
        [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=4
    )
    assert so.solve(p, start=start).status == "optimal"


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 2), ()])
def test_a_start_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    p = so.SparseTrainingProblem.linear(
        [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=4
    )
    with pytest.raises(ValueError, match="start"):
        so.solve(p, start=np.ones(shape))

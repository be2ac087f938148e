"""A check says what it checked, believes no number that is stated, and no point that is not finite."""

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import spr_or as so
from spr_or.cli import app
from spr_or.tabular.prepare import prepare
from spr_or.tabular.results import write_result


def cli(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "250"})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single result and a path of three lambdas, for one table."""
    place = tmp_path_factory.mktemp("recheck")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 4))
    y = 2 * X[:, 0] + 0.5 * X[:, 2] + 0.1 * rng.normal(size=40)
    with (place / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a_1", "a_2", "b", "c", "y"], *np.column_stack([X, y])])
    arguments = ["solve", place / "own.csv", "--target", "y", "--groups", "_"]
    cli(*arguments, "--lam", "0.1", "--out", place / "single")
    cli(*arguments, "--path", "1,0.1,0.01", "--out", place / "path")
    return place


@pytest.fixture
def single(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once / "single", tmp_path / "single"))


@pytest.fixture
def path(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once / "path", tmp_path / "path"))


def edit(file: Path, *keys: str, to: Any) -> None:
    """Set a value in a JSON file; a function gets the old one."""
    content = json.loads(file.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to(inner[keys[-1]]) if callable(to) else to
    file.write_text(json.dumps(content))


def test_a_check_says_what_it_checked(once: Path) -> None:
    said = cli("check", once / "single")
    data = prepare(once / "own.csv", "y", "_", "squared")
    result = json.loads((once / "single" / "result.json").read_text())
    M = result["M"]["value"]
    for part in (
        f"data own.csv (SHA-256 {data.sha256[:12]})", "target y", "40 rows, 4 columns in 3 groups",
        "squared loss", "lambda 0.1,", "alpha 0.1,", "with intercept", "not standardised",
        f"M {min(M):.4g} to {max(M):.4g} (derived from the data and proven)",
        f"objective {result['outcome']['objective']:.10g}",
    ):  # fmt: skip
        assert part in said
    found = so.check(once / "single")
    assert found.ok and found.subject.sha256 == data.sha256 and found.subject.lam == 0.1
    assert f"bound {found.bound:.10g}, gap {100 * found.gap:.4g} %" in said
    assert found.gap == pytest.approx(1 - found.bound / found.objective, abs=1e-15)


def test_an_m_by_hand_is_called_given(once: Path, tmp_path: Path) -> None:
    cli("solve", once / "own.csv", "--target", "y", "--lam", 0.1, "--M", 7, "--standardise",
        "--no-intercept", "--out", tmp_path / "o")  # fmt: skip
    said = cli("check", tmp_path / "o")
    assert "M 7 (given)" in said and "M as given, not proven" in said
    assert "no intercept, standardised" in said


@pytest.mark.parametrize(
    ("keys", "to", "says"),
    [
        (("outcome", "objective"), lambda x: x * (1 + 1e-6), "states objective"),
        (("outcome", "bound"), lambda x: x * (1 + 1e-6), "states bound"),
        (("outcome", "bound"), None, "states bound"),
        (("outcome", "gap"), 0.0, "states gap"),
        (("outcome", "gap"), None, "states gap"),
        (("outcome", "mean_loss"), lambda x: 0.99 * x, "states mean_loss"),
        (("outcome", "nodes"), lambda x: x + 1, "states nodes"),
        (("outcome", "seconds"), lambda x: x + 1, "states seconds"),
        (("outcome", "status"), "time_limit", "states status"),
        (("kept",), [], "names other groups"),
        (("model", "classes"), ["no", "yes"], "names other classes"),
        (("asked_gap",), 0.0, "the status is optimal, but the gap is"),
        (("alpha",), 0.2, "another problem"),
        (("model", "intercept"), False, "another problem"),
        (("model", "groups"), ["a", "b", "b", "c"], "another problem"),
        (("path",), [1.0, 0.1], "does not stand at this place"),
    ],
)  # fmt: skip
def test_what_is_stated_is_compared(single: Path, keys: Any, to: Any, says: str) -> None:
    content = json.loads((single / "result.json").read_text())
    content.setdefault("path", None)
    if keys == ("asked_gap",):  # an honest certificate with a gap left, called optimal
        data = prepare(Path(content["data"]["file"]), "y", "_", "squared")
        open_ = so.solve(data.problem(0.1, 0.1, content["M"]["value"]), gap=0.5, time_limit=0)
        assert open_.gap > 1e-6
        write_result(single, data, open_, None, asked_gap=0.5)
        edit(single / "certificate.json", "result", "status", to="optimal")
        edit(single / "result.json", "outcome", "status", to="optimal")
    else:
        (single / "result.json").write_text(json.dumps(content))
    edit(single / "result.json", *keys, to=to)
    assert says in cli("check", single, code=1)


def test_a_small_objective_without_a_bound_is_not_optimal(tmp_path: Path) -> None:
    """A lambda of 1e-9 on exact data: all of the objective is below what sums of the target may be off by."""
    X = np.random.default_rng(3).normal(size=(30, 3))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c", "y"], *np.column_stack([X, X[:, 0] - X[:, 1]])])
    data = prepare(tmp_path / "d.csv", "y", None, "squared")
    honest = so.solve(data.problem(1e-9, 0.1, 2.0))
    assert honest.status == "optimal" and honest.bound > 0
    write_result(tmp_path / "o", data, dataclasses.replace(honest, bound=0.0), None, 1e-4)
    said = cli("check", tmp_path / "o", code=1)
    assert "the status is optimal, but the gap is 100 %" in said
    nothing = dataclasses.replace(honest, objective=0.0, bound=0.0)
    write_result(tmp_path / "zero", data, nothing, None, 1e-4)
    assert "not 0.0 as stated" in cli("check", tmp_path / "zero", code=1)


def test_optimal_means_the_gap_that_the_check_finds(tmp_path: Path) -> None:
    """Counts so large that rounding hides the objective: 0 may be stated for it, which has no gap."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(30, 3))
    mean = 1e13 * np.exp(0.2 * X[:, 0])
    y = np.round(mean + np.sqrt(mean) * rng.normal(size=30))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c", "y"], *np.column_stack([X, y])])
    data = prepare(tmp_path / "d.csv", "y", None, "poisson")
    honest = so.solve(data.problem(0.3, 0.1, 50.0), time_limit=5)
    assert honest.status != "optimal" and honest.check().ok
    told = dataclasses.replace(honest, status="optimal", objective=0.0, bound=0.0)
    assert told.gap == 0.0 and told.check().ok and told.check().gap > 0.1
    write_result(tmp_path / "o", data, told, None, 1e-4)
    assert "the status is optimal, but the gap is" in cli("check", tmp_path / "o", code=1)


def test_needs_and_signs_go_together(tmp_path: Path) -> None:
    """The group that another one needs stays at weight zero, and is paid for."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40))
    y = b - a + 0.2 * rng.normal(size=40)
    with (tmp_path / "nn.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "y"], *np.column_stack([a, b, y])])
    rules = ["--needs", "b:a", "--nonnegative", "all"]
    table = ["solve", tmp_path / "nn.csv", "--target", "y", *rules]
    for number, more in enumerate((["--lam", "0.02"], ["--lam", "0.02", "--max-groups", "2"])):
        cli(*table, *more, "--out", tmp_path / f"o{number}")
        result = json.loads((tmp_path / f"o{number}" / "result.json").read_text())
        assert sorted(result["kept"]) == ["a", "b"]
        assert "M proven" in cli("check", tmp_path / f"o{number}")
    cli(*table, "--path", "0.1,0.02", "--out", tmp_path / "path")
    cli("check", tmp_path / "path")


def test_an_older_result_without_the_new_keys_still_checks(single: Path) -> None:
    content = json.loads((single / "result.json").read_text())
    del content["asked_gap"]
    (single / "result.json").write_text(json.dumps(content))
    cli("check", single)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("weights.csv", "a_1,a,", "a_1,a,1"),
        ("weights.csv", "a_1,a,", "a_1,b,"),
        ("weights.csv", "column,", "col,"),
        ("groups.csv", "a,a_1 a_2,", "a,a_1,"),
        ("groups.csv", "a,a_1 a_2,", "a,a_1 a_2,1"),
        ("groups.csv", "norm", "length"),
    ],
)
def test_tables_are_compared(single: Path, name: str, old: str, new: str) -> None:
    text = (single / name).read_text()
    assert text.count(old) == 1
    (single / name).write_text(text.replace(old, new))
    assert f"{name} does not hold" in cli("check", single, code=1)
    (single / name).unlink()
    assert f"{name} does not hold" in cli("check", single, code=1)


def evidence(single: Path, text: str) -> None:
    file = single / "result.json"
    content = json.loads(file.read_text())
    content["M"]["value"] = [0.3] * 3
    content["M"]["evidence"] = "HERE"
    file.write_text(json.dumps(content).replace('"HERE"', text))
    data = prepare(Path(content["data"]["file"]), "y", "_", "squared")
    certificate = so.solve(data.problem(0.1, 0.1, 0.3))  # right for that M, which cuts off the best
    write_result(single.parent / "other", data, certificate, None)
    for name in ("certificate.json", "weights.csv", "groups.csv"):
        shutil.copy(single.parent / "other" / name, single / name)
    other = json.loads((single.parent / "other" / "result.json").read_text())
    content = json.loads(file.read_text().replace("NaN", '"NaN"').replace("1e400", '"1e400"'))
    for key in ("outcome", "kept"):
        content[key] = other[key]
    written = json.dumps(content).replace('"NaN"', "NaN").replace('"1e400"', "1e400")
    file.write_text(written)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ('{"incumbent": {"0": NaN}, "point": null}', 2, "NaN is not a finite number"),
        ('{"incumbent": {"0": 1e400}, "point": null}', 2, "1e400 is not a finite number"),
        ('{"incumbent": {"0": 1e308}, "point": null}', 1, "no finite objective"),
        ('{"incumbent": {"0": -1e308}, "point": null}', 1, "no finite objective"),
        (
            '{"incumbent": {"0": 1e308, "1": -1e308}, "point": {"2": 1e308}}',
            1,
            "no finite objective",
        ),
        ('{"incumbent": {}, "point": {"0": 1e308, "3": -1e308}}', 1, "no finite bound"),
        ('{"incumbent": {"4": 1.0}, "point": null}', 1, "names weight '4'; there are 0 to 3"),
        ('{"incumbent": {"-1": 1.0}, "point": null}', 1, "names weight '-1'"),
        ('{"incumbent": {"1.5": 1.0}, "point": null}', 1, "names weight '1.5'"),
        ('{"incumbent": {}, "point": {"٣": 1.0}}', 1, "point of M's evidence names weight"),
        ('{"incumbent": {"0": "1"}, "point": null}', 2, "M.evidence.incumbent.0"),
        ('{"incumbent": [1.0]}', 2, "M.evidence.incumbent"),
        ("null", 1, "there is no evidence"),
    ],
)
def test_an_m_without_a_proof_is_never_called_proven(
    single: Path, text: str, code: int, says: str
) -> None:
    """The M that cuts the best solution off; the certificate and all tables are right for it."""
    evidence(single, text)
    said = cli("check", single, code=code)
    assert says in said and "M proven" not in said


def test_the_search_finds_twice_as_good_a_model_without_that_m(single: Path) -> None:
    """So the evidence above would have sold a wrong model as the best one."""
    free = so.check(single).objective
    evidence(single, '{"incumbent": {}, "point": null}')
    assert so.check(single).objective > 2 * free


# --- paths ----------------------------------------------------------------------------------------


def test_a_path_is_checked_with_its_tables(path: Path) -> None:
    said = cli("check", path)
    assert said.count("holds") == 3 and said.count("M proven") == 3


def stale(path: Path, once: Path) -> None:
    """A fourth lambda, from a longer path of another time."""
    shutil.copytree(path / "lambda-03", path / "lambda-04")
    edit(path / "lambda-04" / "result.json", "path", to=None)


def another_alpha(path: Path, once: Path) -> None:
    cli("solve", once / "own.csv", "--target", "y", "--groups", "_", "--path", "1,0.1,0.01",
        "--alpha", "0.2", "--out", path.parent / "other")  # fmt: skip
    shutil.rmtree(path / "lambda-02")
    shutil.copytree(path.parent / "other" / "lambda-02", path / "lambda-02")


def swapped(path: Path, once: Path) -> None:
    (path / "lambda-02").rename(path / "x")
    (path / "lambda-03").rename(path / "lambda-02")
    (path / "x").rename(path / "lambda-03")


def single_beside(path: Path, once: Path) -> None:
    for file in (once / "single").iterdir():
        shutil.copy(file, path)


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (stale, "lambda-04 is not in path.json: it is left from another solve"),
        (stale, "lambda-04 was solved for another problem than lambda-01: path differ"),
        (another_alpha, "lambda-02 was solved for another problem than lambda-01: alpha"),
        (swapped, "does not stand at this place of its path"),
        (single_beside, "holds this result and a path (lambda-01, ...): two problems"),
        (lambda p, o: shutil.rmtree(p / "lambda-03"), "path.json has 3 rows, the folder 2"),
        (lambda p, o: (p / "lambda-02" / "result.json").unlink(), "lambda-02 is in the folder"),
        (lambda p, o: (p / "path.json").unlink(), "path.json: No such file"),
        (lambda p, o: (p / "path.json").write_text("[" * 99_999), "nested too deeply"),
        (lambda p, o: (p / "path.json").write_text("{}"), "no list of rows"),
        (lambda p, o: (p / "path.json").write_text("[{}]"), "path.json has a row without"),
        (lambda p, o: (p / "path.csv").unlink(), "path.csv: No such file"),
    ],
)  # fmt: skip
def test_a_folder_of_two_problems_is_refused(
    path: Path, once: Path, tamper: Any, says: str
) -> None:
    tamper(path, once)
    assert says in cli("check", path, code=1)


@pytest.mark.parametrize(
    "key", ["lam", "groups_kept", "objective", "bound", "gap", "mean_loss", "kept"]
)
def test_each_number_of_a_path_is_compared(path: Path, key: str) -> None:
    rows = json.loads((path / "path.json").read_text())
    rows[1][key] = ["c"] if key == "kept" else 1.001 * rows[1][key] + 1
    (path / "path.json").write_text(json.dumps(rows))
    said = cli("check", path, code=1)
    assert f"path.json states another {key} than lambda-02" in said
    assert "path.csv does not say what path.json says" in said


def test_the_certificate_of_another_problem_is_refused(single: Path, path: Path) -> None:
    shutil.copy(path / "lambda-03" / "certificate.json", single / "certificate.json")
    assert "made for another problem" in cli("check", single, code=1)


def test_a_stored_lambda_is_checked_before_it_is_trusted(path: Path, once: Path) -> None:
    arguments = ["solve", once / "own.csv", "--target", "y", "--groups", "_", "--path", "1,0.1,0.01",
                 "--out", path]  # fmt: skip
    assert cli(*arguments).count("from before") == 3
    certificate = json.loads((path / "lambda-02" / "certificate.json").read_text())
    honest = certificate["result"]["objective"]
    edit(path / "lambda-02" / "certificate.json", "result", "bound", to=honest * 1.1)
    edit(path / "lambda-02" / "certificate.json", "result", "objective", to=honest * 1.1)
    assert cli(*arguments).count("from before") == 2
    assert math.isclose(so.check(path / "lambda-02").objective, honest, rel_tol=1e-9)
    edit(path / "lambda-03" / "result.json", "M", "evidence", "incumbent", to={"0": 1e300})
    assert cli(*arguments).count("from before") == 2
    cli("check", path)

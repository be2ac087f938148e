"""`spr-or predict`: new data get the preparation of the fit, and what does not fit is a clear error."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from spr_or.cli import app
from spr_or.tabular.predictions import predict
from spr_or.tabular.source import TableError


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def rows_of(seed: int, n: int) -> list[dict[str, Any]]:
    """People: a column of words, one with gaps, one that does not matter."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        city = str(rng.choice(["Bern", "Oslo", "Rome"]))
        age, noise = rng.normal(50, 10), rng.normal()
        bonus = {"Bern": 0, "Oslo": 20, "Rome": -15}[city]
        pay = 100 + 2 * age + bonus + rng.normal()
        found.append({"age": round(age, 2), "city": city, "noise": noise, "pay": pay})
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("predict")
    data = write(folder / "people.csv", rows_of(0, 60))
    out = folder / "result"
    run("solve", data, "--target", "pay", "--standardise", "--lam", 0.02, "--out", out)
    return data, out


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_data_of_the_fit_give_its_loss(fitted: tuple[Path, Path]) -> None:
    data, out = fitted
    predicted = np.array([float(row["pay"]) for row in table(run("predict", out, data))])
    pay = np.array([row["pay"] for row in rows_of(0, 60)])
    result = json.loads((out / "result.json").read_text())
    assert set(result["kept"]) == {"age", "city"}
    # The target was divided by its deviation.
    loss = np.mean((predicted - pay) ** 2) / pay.var()
    assert loss == pytest.approx(result["outcome"]["mean_loss"], rel=1e-9)


def test_new_data_need_only_the_columns_of_the_model(
    fitted: tuple[Path, Path], tmp_path: Path
) -> None:
    _, out = fitted
    people = rows_of(1, 30)
    new = write(tmp_path / "new.csv", [{"city": r["city"], "age": r["age"]} for r in people])
    file = tmp_path / "p.csv"
    assert "30 predictions" in run("predict", out, new, "--out", file)
    predicted = [float(row["pay"]) for row in table(file.read_text())]
    assert np.allclose(predicted, [row["pay"] for row in people], atol=6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"city": "Bonn"}, "line 2, column 'city': the model knows no level 'Bonn'"),
        ({"age": "old"}, "the model takes its numbers"),
        ({"age": ""}, "values are missing, by column: age 1"),
        ({"age": "3 %"}, "a number with a unit"),
    ],
)
def test_what_does_not_fit_is_named(
    fitted: tuple[Path, Path], tmp_path: Path, change: dict[str, str], message: str
) -> None:
    people = [{**row, **change} for row in rows_of(1, 1)]
    if change.get("age") == "":
        people += rows_of(2, 2)
    new = write(tmp_path / "new.csv", people)
    assert message in run("predict", fitted[1], new, code=2)


def test_a_missing_column_is_named(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    new = write(tmp_path / "new.csv", [{"age": 3, "town": "Rome"}])
    text = run("predict", fitted[1], new, code=2)
    assert "uses city, and there is no such column; there are age, town" in text


@pytest.mark.parametrize("missing", ["mean", "drop"])
def test_gaps_are_treated_as_in_the_fit(tmp_path: Path, missing: str) -> None:
    people = rows_of(0, 60)
    people[3]["age"] = people[8]["city"] = ""
    data = write(tmp_path / "people.csv", people)
    out = tmp_path / "o"
    run("solve", data, "--target", "pay", "--lam", 20, "--missing", missing, "--out", out)
    predicted = [row["pay"] for row in table(run("predict", out, data))]
    result = json.loads((out / "result.json").read_text())
    if missing == "drop":
        assert [place for place, cell in enumerate(predicted) if cell == ""] == [3, 8]
        known = [(float(p), row["pay"]) for p, row in zip(predicted, people, strict=True) if p]
    else:
        known = [(float(p), row["pay"]) for p, row in zip(predicted, people, strict=True)]
    loss = np.mean([(p - y) ** 2 for p, y in known])
    assert loss == pytest.approx(result["outcome"]["mean_loss"], rel=1e-9)
    if missing == "mean":
        assert "no mean is stored" not in run("predict", out, data)


def test_a_gap_in_a_column_that_had_none_is_an_error(tmp_path: Path) -> None:
    people = rows_of(0, 40)
    people[5]["city"] = ""
    data = write(tmp_path / "people.csv", people)
    run("solve", data, "--target", "pay", "--lam", 20, "--missing", "mean", "--out", tmp_path / "o")
    new = write(tmp_path / "new.csv", [{"age": "", "city": "Rome"}, {"age": 1, "city": "Rome"}])
    with pytest.raises(TableError, match="column 'age' are missing; it had no gaps"):
        predict(tmp_path / "o", new)


def test_two_classes_get_labels_and_probabilities(tmp_path: Path) -> None:
    people = [{**row, "rich": "yes" if row["pay"] > 200 else "no"} for row in rows_of(0, 80)]
    data = write(tmp_path / "people.csv", people)
    out = tmp_path / "o"
    run("solve", data, "--target", "rich", "--loss", "logistic", "--drop", "pay", "--standardise",
        "--lam", 0.05, "--out", out)  # fmt: skip
    found = table(run("predict", out, data))
    share = np.array([float(row["probability of yes"]) for row in found])
    assert [row["rich"] for row in found] == ["yes" if p > 0.5 else "no" for p in share]
    yes = np.array([row["rich"] == "yes" for row in people])
    loss = -np.log(np.where(yes, share, 1 - share)).mean()
    result = json.loads((out / "result.json").read_text())
    assert loss == pytest.approx(result["outcome"]["mean_loss"], rel=1e-9)


def test_arrays_without_a_target_and_many_outputs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    Y = np.column_stack([X[:, 0], X[:, 0] - X[:, 2]]) + 0.01 * rng.normal(size=(40, 2))
    np.savez(tmp_path / "own.npz", X=X, y=Y)
    np.savez(tmp_path / "new.npz", X=X[:5])
    run("solve", tmp_path / "own.npz", "--lam", 0.01, "--alpha", 0.01, "--out", tmp_path / "o")
    found = table(run("predict", tmp_path / "o", tmp_path / "new.npz"))
    assert list(found[0]) == ["y0", "y1"] and len(found) == 5
    values = np.array([[float(cell) for cell in row.values()] for row in found])
    assert np.allclose(values, Y[:5], atol=0.1)


def test_a_path_needs_a_choice(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = fitted
    run("solve", data, "--target", "pay", "--standardise", "--path", "1,0.1", "--out", tmp_path)
    assert "lambda-02" in run("predict", tmp_path, data, code=2)
    assert len(table(run("predict", tmp_path / "lambda-02", data))) == 60


def test_a_damaged_or_absent_result(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = fitted
    assert "no result of spr-or solve" in run("predict", tmp_path, data, code=2)
    for name in ("result.json", "weights.csv"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    text = (tmp_path / "weights.csv").read_text()
    (tmp_path / "weights.csv").write_text(text.rpartition("\n")[0].rpartition("\n")[0])
    assert "weights.csv is damaged" in run("predict", tmp_path, data, code=2)

"""Counts: the command, its check and predictions, and the estimators, with the Poisson loss."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize
from scipy.special import xlogy
from sklearn.metrics import mean_poisson_deviance
from typer.testing import CliRunner

import spr_or as so
from spr_or.cli import app


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def sample() -> tuple[np.ndarray, np.ndarray]:
    """Counts around 40; columns with other units than 1."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(50, 5)) * [1, 10, 0.1, 1, 1] + [0, 50, 0, 3, 0]
    y = rng.poisson(np.exp(3.5 + 0.5 * X[:, 0] - 0.03 * (X[:, 1] - 50)))
    return X, y.astype(float)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counts") / "counts.csv"
    X, y = sample()
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["a", "b", "c", "d", "e", "y"], *np.column_stack([X, y]).tolist()]
        )
    return path


@pytest.fixture(scope="module")
def folder(table: Path) -> Path:
    out = table.parent / "out"
    run(
        "solve",
        table,
        "--target",
        "y",
        "--loss",
        "poisson",
        "--standardise",
        "--lam",
        0.3,
        "--out",
        out,
    )
    return out


def best(lam: float, alpha: float) -> tuple[float, set[str], np.ndarray]:
    """The best objective over all supports by SciPy, its columns, and the rates it predicts."""
    X, y = sample()
    Z = np.column_stack([(X - X.mean(0)) / X.std(0), np.ones(len(y))])
    found: tuple = (np.inf, set(), None)
    for count in range(6):
        for support in itertools.combinations(range(5), count):
            A, ridge = Z[:, [*support, 5]], lam * alpha * np.append(np.ones(count), 0)

            def value(w: np.ndarray, A: np.ndarray = A, ridge: np.ndarray = ridge) -> tuple:
                f = A @ w
                loss = (np.exp(f) - y * f + xlogy(y, y) - y).mean()
                return loss + ridge @ w**2, A.T @ (np.exp(f) - y) / len(y) + 2 * ridge * w

            start = np.append(np.zeros(count), np.log(y.mean()))
            done = optimize.minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-9})
            price = lam * (1 - alpha) * count
            if done.fun + price < found[0]:
                found = done.fun + price, {"abcde"[j] for j in support}, np.exp(A @ done.x)
    return found


def test_the_command_finds_and_proves_the_best_model(table: Path, folder: Path) -> None:
    value, kept, rates = best(0.3, 0.1)
    result = json.loads((folder / "result.json").read_text())
    assert result["outcome"]["objective"] == pytest.approx(value, rel=2e-4)
    assert result["outcome"]["bound"] <= value and set(result["kept"]) == kept == {"a", "b"}
    assert "holds; objective" in run("check", folder) and "M proven" in run("check", folder)
    assert "mean poisson loss" in (folder / "report.html").read_text()
    run("predict", folder, table, "--out", folder / "rates.csv")
    with (folder / "rates.csv").open() as file:
        predicted = [float(row["y"]) for row in csv.DictReader(file)]
    assert predicted == pytest.approx(rates.tolist(), rel=0.02)


def test_rates_beyond_all_numbers_are_counted(table: Path, folder: Path, tmp_path: Path) -> None:
    with table.open() as file:
        rows = list(csv.reader(file))
    rows[1][0] = "1e9"  # a, whose weight is positive
    far = tmp_path / "far.csv"
    with far.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    said = run("predict", folder, far, "--out", tmp_path / "rates.csv")
    assert "the rates of 1 of" in said and "too large for a number" in said


def test_a_given_bound_and_a_path_with_a_choice(table: Path, tmp_path: Path) -> None:
    asked = ["solve", table, "--target", "y", "--loss", "poisson", "--standardise"]
    run(*asked, "--lam", 0.3, "--M", 2, "--out", tmp_path / "given")
    assert "M as given" in run("check", tmp_path / "given")
    run(*asked, "--path", 4, "--cv", 3, "--out", tmp_path / "path")
    choice = json.loads((tmp_path / "path" / "choice.json").read_text())
    assert choice["compared"][0]["kept"] == [] and set(choice["compared"][-1]["kept"]) >= {"a", "b"}
    run("check", tmp_path / "path")


def test_the_estimators_are_those_of_the_command(folder: Path) -> None:
    X, y = sample()
    model = so.GroupL0Regressor(lam=0.3, loss="poisson").fit(X, y)
    result = json.loads((folder / "result.json").read_text())
    assert model.objective_ == pytest.approx(result["outcome"]["objective"], rel=1e-6)
    assert model.groups_kept_ == ["x0", "x1"] and model.certificate_.check().ok
    scaled = 2 * float(model.certificate_.problem.loss_value(model.certificate_.weights))
    assert mean_poisson_deviance(y, model.predict(X)) == pytest.approx(scaled)
    chosen = so.GroupL0RegressorCV(lams=[3.0, 0.3], cv=3, loss="poisson").fit(X, y)
    assert chosen.groups_kept_ == ["x0", "x1"] and chosen.predict(X).min() > 0
    weight = np.r_[np.full(10, 2.0), np.ones(40)]
    twice = so.GroupL0Regressor(lam=0.3, loss="poisson").fit(
        np.vstack([X, X[:10]]), np.r_[y, y[:10]]
    )
    weighted = so.GroupL0Regressor(lam=0.3, loss="poisson").fit(X, y, sample_weight=weight)
    assert weighted.coef_ == pytest.approx(twice.coef_, rel=1e-4, abs=1e-8)


def test_what_is_no_count_is_refused(table: Path, tmp_path: Path) -> None:
    X, y = sample()
    with pytest.raises(ValueError, match="y must be at least 0 for the poisson loss"):
        so.GroupL0Regressor(loss="poisson").fit(X, y - 100)
    with pytest.raises(ValueError, match='loss must be "squared" or "poisson", got \'huber\''):
        so.GroupL0Regressor(loss="huber").fit(X, y)
    asked = ["--loss", "poisson", "--lam", 1, "--out", tmp_path / "o"]
    said = run("solve", table, "--target", "c", *asked, code=2)
    assert "the poisson loss takes a target of at least 0, c has -" in said
    assert "takes one target" in run("solve", table, "--target", "y,a", *asked, code=2)
    said = run("solve", table, "--target", "y", *asked, "--export", tmp_path / "m.nl", code=2)
    assert "do not take the poisson loss" in said

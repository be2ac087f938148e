"""`spr-or solve --alpha 0.05,0.5 --cv 3`: a path for each alpha, one choice, and what a check says of it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import KFold
from typer.testing import CliRunner

import spr_or as so
from spr_or.cli import app

ALPHAS = (0.05, 0.5)
FOLDERS = [f"alpha-{a:02d}/lambda-{n:02d}" for a in (1, 2) for n in (1, 2, 3, 4)]


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    X = rng.normal(size=(60, 5))
    return X, 2 * X[:, 0] - X[:, 1] + 0.4 * X[:, 2] + rng.normal(size=60)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alphas") / "own.csv"
    X, y = sample()
    np.savetxt(
        path, np.column_stack([X, y]), delimiter=",", fmt="%.17g", header="a,b,c,d,e,y", comments=""
    )
    return path


@pytest.fixture(scope="module")
def folder(table: Path) -> Path:
    """Two paths of four lambdas, chosen among by three folds."""
    out = table.parent / "out"
    run("solve", table, "--target", "y", "--standardise", "--alpha", "0.5,0.05", "--path", "4", "--cv", 3,
        "--out", out)  # fmt: skip
    return out


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "choice.json").read_text())


def test_the_choice_is_that_of_the_estimator(table: Path, folder: Path) -> None:
    X, y = sample()
    folds = KFold(3, shuffle=True, random_state=0)
    model = so.GroupL0RegressorCV(lams=4, alphas=ALPHAS, cv=folds).fit(X, y)
    choice = stored(folder)
    assert [row["alpha"] for row in choice["compared"]] == [0.05] * 4 + [0.5] * 4
    for one, row in zip(model.curve_, choice["compared"], strict=True):
        assert row["lam"] == pytest.approx(one.lam, rel=1e-9)
        assert row["held_out_loss"] == pytest.approx(one.loss, rel=1e-6)
    assert choice["chosen"] == FOLDERS[model.chosen_] and choice["lam"] == pytest.approx(model.lam_)
    result = json.loads((folder / choice["chosen"] / "result.json").read_text())
    assert result["alpha"] == model.alpha_
    assert sorted("abcde"[int(k[1:])] for k in model.groups_kept_) == sorted(result["kept"])


def test_predict_and_the_page_use_the_chosen_one(table: Path, folder: Path) -> None:
    choice = stored(folder)["chosen"]
    assert run("predict", folder, table) == run("predict", folder / choice, table)
    page = (folder / "report.html").read_text()
    assert f"({choice})" in page and f"spr-or check {folder / choice}" in page
    assert (folder / "alpha-01" / "report.html").exists()


def test_a_check_holds_and_the_command_can_be_resumed(table: Path, folder: Path) -> None:
    said = run("check", folder)
    assert said.count(": holds;") == 8
    again = run("solve", table, "--target", "y", "--standardise", "--alpha", "0.05,0.5", "--path", "4",
                "--ic", "bic", "--out", folder)  # fmt: skip
    assert again.count("(from before)") == 8 and "the least BIC" in again
    assert stored(folder)["criterion"] == "bic"
    run("check", folder)
    run("solve", table, "--target", "y", "--standardise", "--alpha", "0.05,0.5", "--path", "4",
        "--cv", 3, "--out", folder)  # fmt: skip


def other_place(choice: dict[str, Any]) -> None:
    choice["chosen"] = next(name for name in FOLDERS if name != choice["chosen"])


def other_curve(choice: dict[str, Any]) -> None:
    choice["compared"][7]["held_out_loss"] = choice["compared"][7]["standard_error"] = 0.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_place, "by the rule"),
        (other_curve, "by the rule alpha-02/lambda-08 would be chosen".replace("08", "04")),
        (
            lambda choice: choice["compared"][2].update(bic=0.0),
            "another BIC than alpha-01/lambda-03",
        ),
        (lambda choice: choice["compared"][5].update(kept=["e"]), "another choice of groups than"),
        (
            lambda choice: choice["compared"][5].update(lam=9.0),
            "another lambda than alpha-02/lambda-02",
        ),
        (
            lambda choice: choice["compared"][5].update(alpha=0.05),
            "another alpha than alpha-02/lambda-02",
        ),
        (lambda choice: choice.update(lam=9.0), "another lambda than alpha-"),
        (lambda choice: choice.update(chosen="../lambda-01"), "which is no lambda of the path"),
        (lambda choice: choice["compared"].pop(), "compares 7 lambdas, the folder holds 8"),
        (lambda choice: choice.update(rule=None), "has the rule None for the criterion cv"),
        (lambda choice: choice.update(criterion="aic"), "is damaged: criterion"),
        (lambda choice: choice["compared"][0].pop("standard_error"), "lacks held-out losses"),
    ],
)
def test_a_choice_that_was_changed_does_not_hold(
    folder: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    before = (folder / "choice.json").read_text()
    choice = json.loads(before)
    change(choice)
    try:
        (folder / "choice.json").write_text(json.dumps(choice))
        assert said in run("check", folder, code=1)
    finally:
        (folder / "choice.json").write_text(before)


def test_a_table_that_was_changed_does_not_hold(folder: Path) -> None:
    before = (folder / "choice.csv").read_text()
    rows = list(csv.reader(before.splitlines()))
    rows[3][-1], rows[4][-1] = "True", "True"
    try:
        with (folder / "choice.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        assert "choice.csv does not say what choice.json says" in run("check", folder, code=1)
    finally:
        (folder / "choice.csv").write_text(before)


def test_a_table_without_its_choice_does_not_hold(folder: Path) -> None:
    before = (folder / "choice.json").read_text()
    try:
        (folder / "choice.json").unlink()
        said = run("check", folder, code=1)
        assert "choice.csv is there, and choice.json, which says what was chosen, is not" in said
    finally:
        (folder / "choice.json").write_text(before)


def test_folders_of_other_questions_are_refused(table: Path, folder: Path) -> None:
    asked = ["solve", table, "--target", "y", "--standardise", "--out", folder]
    single = run(*asked, "--lam", 0.1, code=2)
    assert "holds the result of another problem (alpha-01: several values of alpha)" in single
    assert "another alpha" in run(*asked, "--alpha", "0.06,0.5", "--path", "4", "--cv", 3, code=2)
    assert "another path" in run(*asked, "--alpha", "0.05,0.5", "--path", "3", "--cv", 3, code=2)
    inside = ["solve", table, "--target", "y", "--standardise", "--out", folder / "alpha-01"]
    assert "a single alpha" in run(*inside, "--alpha", "0.05,0.5", "--cv", 3, code=2)


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        ("0.1,1.5", "alpha must lie in [0, 1], got 1.5"),
        ("nan", "alpha must"),
        ("a", "--alpha must be a number from 0 to 1 or a list of them, got 'a'"),
        ("", "--alpha must be a number from 0 to 1 or a list of them"),
    ],
)
def test_alpha_is_a_share_or_a_list_of_them(table: Path, alpha: str, said: str) -> None:
    asked = ["solve", table, "--target", "y", "--cv", 3, "--alpha", alpha]
    assert said in run(*asked, code=2)


def test_several_alphas_need_a_criterion(table: Path) -> None:
    said = run("solve", table, "--target", "y", "--lam", 1, "--alpha", "0.1,0.2", code=2)
    assert "give --cv or --ic" in said

"""report.html: what was asked, what was kept, the proof in words; nothing from outside, names escaped."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from spr_or.cli import app
from spr_or.tabular import solve_run

NASTY = 'a<b>"&'


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 4))
    y = 2 * X[:, 0] - X[:, 2] + 0.5 * rng.normal(size=50)
    path = tmp_path_factory.mktemp("page") / "own.npz"
    columns = np.array([NASTY, "b", "c_1", "c_2"])
    groups = np.array([NASTY, "b", "c", "c"])
    np.savez(path, X=X, y=y, columns=columns, groups=groups)
    return path


def weights_in(path: Path) -> dict[str, float]:
    with path.open() as file:
        return {row["column"]: float(row["weight"]) for row in csv.DictReader(file)}


@pytest.mark.pictures
def test_the_page_of_a_result(data: Path, tmp_path: Path) -> None:
    run(
        "solve",
        data,
        "--standardise",
        "--lam",
        0.05,
        "--pool",
        2,
        "--within",
        "200%",
        "--out",
        tmp_path,
    )
    page = (tmp_path / "report.html").read_text()
    assert NASTY not in page and "a&lt;b&gt;&quot;&amp;" in page
    outcome = json.loads((tmp_path / "result.json").read_text())["outcome"]
    assert f"has an objective below {outcome['bound']:.8g}: this is proven" in page
    assert "was derived from the data and excludes no optimum" in page
    assert "2 of 3" in page and "λ = 0.05 and α = 0.1" in page
    assert f"spr-or check {tmp_path}" in page
    assert "<h2>Alternatives</h2>" in page and "above the best" in page
    weights = weights_in(tmp_path / "weights.csv")
    bars = [name for name, kind in re.findall(r"<td>(.+?)<td>\S+<td><span.*?<i class=\"(\w+)\"", page)
            if kind == "negative"]  # fmt: skip
    assert bars == [name for name in ("c: c_1", "c: c_2") if weights[name[3:]] < 0] and bars
    assert "http" not in page and "prefers-color-scheme: dark" in page and "<script" not in page


def test_a_given_bound_that_is_touched_is_said(data: Path, tmp_path: Path) -> None:
    run("solve", data, "--lam", 0.3, "--M", 0.1, "--out", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "at most M = 0.1 in size, which was given. The solution touches M" in page


def test_a_search_that_ended_early_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(25, 30))
    np.savez(tmp_path / "wide.npz", X=X, y=X[:, 0] + rng.normal(size=25))
    asked = [
        "solve",
        tmp_path / "wide.npz",
        "--standardise",
        "--lam",
        0.02,
        "--out",
        tmp_path / "o",
    ]
    run(*asked, "--nodes", 1, code=1)
    page = (tmp_path / "o" / "report.html").read_text()
    assert "The search ended before it was done (node limit)" in page
    assert "a better one may exist" in page


@pytest.mark.pictures
@pytest.mark.parametrize(("seconds", "drawn"), [(2.5, False), (6.0, True)])
def test_only_a_search_that_took_a_while_has_a_picture(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, drawn: bool
) -> None:
    solve = solve_run.SolveRun.solve

    def took(*arguments: Any) -> solve_run.Answer:
        certificate, bound = solve(*arguments)
        return replace(certificate, seconds=seconds), bound

    monkeypatch.setattr(solve_run.SolveRun, "solve", took)
    (tmp_path / "gap.png").write_bytes(b"of an earlier result")
    run("solve", data, "--lam", 0.3, "--out", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert ("<h2>The search</h2>" in page) == drawn == ("data:image/png;base64," in page)
    assert (tmp_path / "gap.png").exists() == drawn
    if drawn:
        assert (tmp_path / "gap.png").read_bytes()[:4] == b"\x89PNG"


def test_an_empty_model_has_a_page(data: Path, tmp_path: Path) -> None:
    run("solve", data, "--standardise", "--lam", "1 max", "--out", tmp_path)
    assert "None: no group explains as much as it costs" in (tmp_path / "report.html").read_text()


def test_the_page_of_a_path_begins_with_the_choice(data: Path, tmp_path: Path) -> None:
    asked = ["solve", data, "--standardise", "--path", "1,0.1,0.01", "--out", tmp_path]
    run(*asked)
    page = (tmp_path / "report.html").read_text()
    assert "The path over λ" in page and "chosen" not in page and "The proof" not in page
    run(*asked, "--ic", "bic")
    page = (tmp_path / "report.html").read_text()
    choice = json.loads((tmp_path / "choice.json").read_text())
    assert f"({choice['chosen']}), the least BIC." in page
    assert f"spr-or check {tmp_path / choice['chosen']}" in page
    assert page.index("The proof") < page.index("The choice of λ") < page.index("The path over λ")
    assert page.count("data:image/png;base64,") == 2


def test_many_targets_have_a_column_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, 3))
    np.savez(tmp_path / "two.npz", X=X, y=np.column_stack([X[:, 0], X[:, 0] - X[:, 1]]))
    run("solve", tmp_path / "two.npz", "--lam", 0.05, "--out", tmp_path / "o")
    page = (tmp_path / "o" / "report.html").read_text()
    assert "<th>y0<th>y1" in page and "norms of the weights over all targets" in page

"""A path names its groups: in its tables, with correct quoting, and in its picture."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spr_or.certified_solver.lambda_path import PathPoint, follow
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.tabular import solve_figures
from spr_or.tabular.path_table import path_rows, write_path
from spr_or.tabular.prepare import OwnData, prepare

NASTY = 'a "b", c;d'


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> tuple[OwnData, list[PathPoint]]:
    """Three columns of rising weight, one with a name that needs quoting, at four lambdas."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3))
    y = X @ [0.3, 1.0, 3.0] + 0.1 * rng.standard_normal(60)
    path = tmp_path_factory.mktemp("path") / "own.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["small", NASTY, "large", "y"], *np.column_stack([X, y])])
    data = prepare(path, "y", None, "squared", None, False)
    problem = data.problem(1.0, 0.1, 10.0)
    points = follow(
        problem, [20.0, 3.0, 0.5, 0.01], lambda one, start: (branch_and_bound(one, 1e-6), None)
    )
    return data, list(points)


def test_each_row_names_what_is_kept_entered_and_left(
    solved: tuple[OwnData, list[PathPoint]],
) -> None:
    data, points = solved
    rows = path_rows(data, points)
    assert [row["kept"] for row in rows] == [
        [], ["large"], ["large", NASTY], ["large", NASTY, "small"],
    ]  # fmt: skip
    assert [row["entered"] for row in rows] == [[], ["large"], [NASTY], ["small"]]
    back = path_rows(data, points[::-1])
    assert [row["left"] for row in back] == [[], ["small"], [NASTY], ["large"]]


def test_names_survive_the_csv_file(
    solved: tuple[OwnData, list[PathPoint]], tmp_path: Path
) -> None:
    data, points = solved
    write_path(tmp_path, data, points)
    with (tmp_path / "path.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    rows = json.loads((tmp_path / "path.json").read_text())
    for row, line in zip(rows, table, strict=True):
        assert line.keys() == row.keys()
        for name in ("kept", "entered", "left"):
            assert json.loads(line[name]) == row[name]
        assert float(line["objective"]) == row["objective"]


@pytest.mark.pictures
def test_the_picture_names_the_groups_where_they_enter(
    solved: tuple[OwnData, list[PathPoint]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, points = solved
    assert solve_figures.entering(points) == [2, 1, 0]
    drawn = []
    monkeypatch.setattr(solve_figures, "save", lambda figure, path: drawn.append(figure))
    solve_figures.over_lambda(points, list(data.groups), tmp_path / "path.png")
    (figure,) = drawn
    top = figure.axes[0]
    assert [label.get_text() for label in top.get_yticklabels()] == ["large", NASTY, "small"]
    entries = [line for line in top.lines if line.get_markersize() == 7]
    assert [line.get_xdata()[0] for line in entries] == [3.0, 0.5, 0.01]
    assert [text.get_text() for text in top.texts][:4] == ["0", "1", "2", "3"]
    monkeypatch.undo()
    solve_figures.over_lambda(points[:1], list(data.groups), tmp_path / "path.png")  # nothing kept
    with Image.open(tmp_path / "path.png") as image:
        assert image.width > 500

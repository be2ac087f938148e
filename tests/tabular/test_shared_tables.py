"""Small awkward tables through `spr-or solve`: an answer whose check holds, or one line that helps."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from spr_or.cli import app

INDEX_BOM_WORDS = "\ufeff" + "\r\n".join([
    ",age,income,city,y", "0,31,2500,Rome,1.2", "1,45,1800,New York,0.7", "2,28,3100,Rome,1.9",
    "3,52,2700,San Jose,1.1", "4,39,2200,New York,0.9", "5,47,2950,Rome,1.6",
    "6,33,2050,San Jose,0.8", "7,58,3300,New York,1.3",
])  # fmt: skip
DECIMAL_COMMA = "a;b;y\n1,5;2;3,5\n2,25;1;4,0\n0,75;4;2,5\n3,0;3;6,1\n1,0;5;3,2\n2,0;2;4,4\n"
QUOTED_HEADER = """"size, m2";"price, EUR";y
50;100;1.0
60;120;1.3
80;150;1.7
75;160;1.6
90;170;2.0
40;90;0.8
"""
NO_HEADER = "1.5,2,3.1\n2.5,1,4.2\n0.5,3,2.0\n3.5,2,5.1\n2.0,4,3.9\n1.0,1,2.4\n"
DATE_LIKE_LABELS = (
    "a,b,y\n1,0,20240101\n2,1,20240102\n3,0,20240101\n4,1,20240102\n5,1,20240203\n6,0,20240203\n"
)
CONSTANT_TARGET = "a,b,y\n1,5,7\n2,3,7\n3,8,7\n4,1,7\n5,9,7\n6,2,7\n"
CONSTANT_COLUMN = "a,zero,b,y\n1,0,5,1.1\n2,0,3,2.3\n3,0,8,2.8\n4,0,1,4.2\n5,0,9,4.9\n6,0,2,6.1\n"
MISSING = "a,b,c,y\n1,2,NaN,1.0\n2,,3,2.1\n3,1,4,N/A\n4,3,5,4.2\n5,2,?,5.0\n6,4,8,5.9\n"
PREFIX_GROUPS = """city_New_York,city_San_Jose,city_Boston,income,income_log,y
1,0,0,2500,7.8,1.2
0,1,0,1800,7.5,0.7
0,0,1,3100,8.0,1.9
1,0,0,2700,7.9,1.3
0,1,0,2200,7.7,0.9
0,0,1,2950,8.0,1.7
"""
BOOLEANS_TINY_SCALE = (
    "flag,size,y\nTrue,1e-6,1.0\nFalse,2e-6,2.0\nTrue,4e-6,3.1\nTrue,3e-6,2.6\n"
    "False,6e-6,4.2\nFalse,5e-6,3.7\n"
)
CRASH = (
    "a,b,c,d,y\n-1.11,-0.288,-0.263,-0.237,-0.548\n1.119,0.133,0.359,0.006,-1.221\n"
    "-0.898,0.172,0.726,0.117,1.625\n"
)


def table_of(heads: list[str], *columns: np.ndarray) -> str:
    rows = np.column_stack(columns).tolist()
    return "\n".join(",".join(map(str, row)) for row in [heads, *rows]) + "\n"


def all_constant() -> str:
    y = np.random.default_rng(0).normal(size=50)
    return table_of(["a", "b", "y"], np.ones(50), np.full(50, 2.0), y)


def year() -> str:
    """A year and its square, which are almost collinear, and a target that needs both."""
    t = np.arange(1970.0, 2020.0)
    y = ((t - 1985) / 30) ** 2 + 0.1 * np.random.default_rng(0).normal(size=50)
    return table_of(["year", "year2", "y"], t, t**2, y)


def twin() -> str:
    """Two columns 1e-4 apart, whose difference matters."""
    rng = np.random.default_rng(0)
    s, z, noise = rng.normal(size=(3, 100))
    return table_of(["s1", "s2", "y"], s, s + 1e-4 * z, s + 0.2 * z + 0.3 * noise)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "250"})


def solved(folder: Path, content: str, *options: object, target: str = "y") -> tuple[str, Any]:
    """What the command says and its result, which the check confirms."""
    file, out = folder / "t.csv", folder / "o"
    file.write_text(content, encoding="utf-8", newline="")
    done = run("solve", file, "--target", target, *options, "--out", out)
    assert done.exit_code == 0, (done.output, done.exception)
    checked = run("check", out)
    assert checked.exit_code == 0, checked.output
    return done.output, json.loads((out / "result.json").read_text())


def own_weights(folder: Path) -> dict[str, float]:
    with (folder / "o" / "weights.csv").open(encoding="utf-8") as file:
        return {row["column"]: float(row["weight"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (DECIMAL_COMMA, (), ["'1,5'", "decimal comma", "--decimal ,"]),
        (NO_HEADER, (), ["the first row looks like data", "--no-header"]),
        (DATE_LIKE_LABELS, ("--loss", "logistic"), ["has 3: 20240101, 20240102, 20240203"]),
        (MISSING, (), ["b 1, c 2, y 1", "--missing drop"]),
    ],
)
def test_what_cannot_be_meant_is_one_line_that_helps(
    tmp_path: Path, content: str, options: tuple[str, ...], says: list[str]
) -> None:
    file = tmp_path / "t.csv"
    file.write_text(content)
    done = run("solve", file, "--target", "y", "--lam", 0.01, *options, "--out", tmp_path / "o")
    assert done.exit_code == 2 and not (tmp_path / "o").exists()
    (line,) = done.output.splitlines()
    assert line.startswith("error: ") and all(part in line for part in says)


@pytest.mark.parametrize(
    ("content", "options", "target", "size", "says", "kept"),
    [
        (INDEX_BOM_WORDS, ("--standardise",), "y", "8 rows, 4 columns in 3 groups",
         ["is a saved index", "(Rome, San Jose) in one group"], {"age", "income", "city"}),
        (DECIMAL_COMMA, ("--decimal", ","), "y", "6 rows, 2 columns in 2 groups", [], {"a", "b"}),
        (QUOTED_HEADER, ("--standardise",), "price, EUR", "6 rows, 2 columns in 2 groups",
         ["target price, EUR"], {"size, m2"}),
        (QUOTED_HEADER, ("--standardise",), "size, m2", "6 rows, 2 columns in 2 groups",
         ["target size, m2"], {"y"}),
        (NO_HEADER, ("--no-header",), "column3", "6 rows, 2 columns in 2 groups", [],
         {"column1", "column2"}),
        (CONSTANT_TARGET, (), "y", "6 rows, 2 columns", ["nothing to explain"], set()),
        (CONSTANT_COLUMN, ("--standardise",), "y", "6 rows, 2 columns",
         ["'zero' is set aside"], {"a"}),
        (MISSING, ("--missing", "drop"), "y", "2 rows, 3 columns",
         ["2 of 6 rows are used"], {"c"}),
        (all_constant(), (), "y", "50 rows, 2 columns", ["no column varies"], set()),
    ],
    ids=["index_bom_words", "decimal_comma", "quoted_header", "quoted_header_2", "no_header",
         "constant_target", "constant_column", "missing", "all_constant"],
)  # fmt: skip
def test_an_awkward_table_goes_to_an_answer_that_checks(
    tmp_path: Path,
    content: str,
    options: tuple[str, ...],
    target: str,
    size: str,
    says: list[str],
    kept: set[str],
) -> None:
    said, result = solved(tmp_path, content, *options, "--lam", 0.01, target=target)
    assert size in said and all(part in said for part in says)
    assert set(result["kept"]) == kept
    if not kept and content is CONSTANT_TARGET:
        assert result["outcome"]["objective"] == 0


@pytest.mark.parametrize(
    ("groups", "listed", "warns"),
    [
        ("_", ["city_New_York", "income, income_log"], True),
        ("auto", ["city_New_York, city_San_Jose, city_Boston"], False),
    ],
)
def test_groups_by_prefix_are_listed_and_odd_ones_are_warned_of(
    tmp_path: Path, groups: str, listed: list[str], warns: bool
) -> None:
    said, _ = solved(tmp_path, PREFIX_GROUPS, "--groups", groups, "--standardise", "--lam", 0.05)
    before = said[: said.index("group kept")]
    assert all(part in before for part in listed)
    for warning in ("'city_' are in several groups", "'income' is in one group with income_log"):
        assert (warning in before) is warns


def test_a_tiny_column_is_reported_in_its_own_scale(tmp_path: Path) -> None:
    said, result = solved(tmp_path, BOOLEANS_TINY_SCALE, "--standardise", "--lam", 0.001)
    assert "6 rows, 2 columns in 2 groups" in said and result["kept"] == ["size"]
    size, y = np.array([[1e-6, 1], [2e-6, 2], [4e-6, 3.1], [3e-6, 2.6], [6e-6, 4.2], [5e-6, 3.7]]).T
    correlation = np.corrcoef(size, y)[0, 1]
    best = correlation / (1 + 0.001 * 0.1) * y.std() / size.std()
    assert best > 5e5
    assert own_weights(tmp_path) == {
        "(intercept)": pytest.approx(y.mean() - best * size.mean(), rel=1e-3),
        "flag": 0.0,
        "size": pytest.approx(best, rel=1e-4),
    }


def test_a_node_without_a_group_left_is_solved(tmp_path: Path) -> None:
    options = ("--no-intercept", "--lam", 0.35, "--alpha", 0.1, "--M", 3.5)
    _, result = solved(tmp_path, CRASH, *options)
    assert result["kept"] == ["b", "a"]
    rows = np.array([line.split(",") for line in CRASH.split()[1:]], dtype=float)
    a = rows[:, :2]
    w = np.linalg.solve(a.T @ a / 3 + 0.035 * np.eye(2), a.T @ rows[:, 4] / 3)
    assert np.abs(w).max() < 3.5
    value = ((a @ w - rows[:, 4]) ** 2).mean() + 0.035 * (w @ w) + 2 * 0.35 * 0.9
    assert result["outcome"]["objective"] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("content", [year(), twin()], ids=["year", "twin"])
def test_almost_dependent_columns_get_the_best_model_and_its_proof(
    tmp_path: Path, content: str
) -> None:
    """Without a ridge the two weights are thousands of times those of one column."""
    _, result = solved(tmp_path, content, "--alpha", 0, "--lam", 0.001)
    rows = np.array([line.split(",") for line in content.split()[1:]], dtype=float)
    X, y = rows[:, :2] - rows[:, :2].mean(0), rows[:, 2] - rows[:, 2].mean()
    values = {}
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(range(2), size) for size in range(3)
    ):
        A = X[:, chosen]
        A = A / np.linalg.norm(A, axis=0)
        w = np.linalg.lstsq(A, y, rcond=None)[0]
        values[chosen] = float(((A @ w - y) ** 2).mean()) + 0.001 * len(chosen)
    assert min(values, key=values.__getitem__) == (0, 1)
    outcome = result["outcome"]
    assert outcome["objective"] == pytest.approx(values[0, 1], rel=1e-4)
    assert outcome["bound"] <= values[0, 1] * (1 + 1e-9)

"""Columns as they enter: nothing is lost without a word, and a check repeats what was done."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import spr_or as so
from spr_or.cli import app
from spr_or.tabular.groups import auto_labels, group_labels, oddities
from spr_or.tabular.preparation import Reading
from spr_or.tabular.prepare import prepare
from spr_or.tabular.read import Table, read_table
from spr_or.tabular.results import prepared, write_result
from spr_or.tabular.source import TableError
from spr_or.tabular.stored_result import read_result

WORDS = """,age,income,city,flat,half,twice,y
0,31,2500,Rome,7,True,31,1.2
1,45,1800,New York,7,False,45,0.7
2,28,,Rome,7,True,28,1.9
3,52,2700,San Jose,7,False,52,1.1
4,39,2200,New York,7,True,39,0.9
5,47,2950,Rome,7,True,47,1.6
6,33,2050,,7,False,33,0.8
"""


def cli(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "250"})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def table_of(path: Path, content: str, target: str = "y", **reading: object) -> Table:
    path.write_text(content)
    return read_table(path, target, None, "squared", Reading(**reading))


def test_what_is_done_is_noted_and_recorded(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t.csv", WORDS, missing="drop")
    assert table.columns == ["age", "income", "city=Rome", "city=San Jose", "half"]
    assert table.labels == ["age", "income", "city", "city", "half"]
    assert table.X[:, 2:].T.tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 0, 0], [1, 0, 0, 1, 1]]
    record = table.preparation
    assert record.rows_left_out == 2
    assert record.set_aside == {
        "(column 1)": "is a saved index", "flat": "does not vary", "twice": "equals column 'age'",
    }  # fmt: skip
    assert record.coded["city"].reference == "New York"
    said = " ".join(table.notes)
    for part in (
        "saved index",
        "'flat' is set aside",
        "against 'New York'",
        "5 of 7 rows are used",
    ):
        assert part in said


def test_means_fill_gaps_of_numbers_and_of_words(tmp_path: Path) -> None:
    table = table_of(tmp_path / "t.csv", WORDS, missing="mean")
    income = np.mean([2500, 1800, 2700, 2200, 2950, 2050])
    assert table.preparation.filled == {
        "income": pytest.approx(income), "city=Rome": 0.5, "city=San Jose": pytest.approx(1 / 6),
    }  # fmt: skip
    assert table.X[2, 1] == pytest.approx(income) and table.X[6, 2] == 0.5
    without = table_of(tmp_path / "t.csv", "a,b,y\n1,2,3\n2,1,\n4,4,1\n3,5,2\n", missing="mean")
    assert len(without.X) == 3 and without.preparation.rows_left_out == 1  # no target is made up


def test_missing_values_are_counted_by_column(tmp_path: Path) -> None:
    content = "a,b,c,y\n1,2,NaN,1.0\n2,,3,2.1\n3,1,4,N/A\n4,3,5,4.2\n5,2,?,5.0\n6,4,7,5.9\n"
    with pytest.raises(TableError, match="b 1, c 2, y 1; --missing drop uses the 2 of 6 rows"):
        table_of(tmp_path / "t.csv", content)
    assert len(table_of(tmp_path / "t.csv", content, drop="c", missing="drop").X) == 4
    with pytest.raises(TableError, match="no row is left"):
        table_of(tmp_path / "t.csv", "a,b,y\n1,,2\n,1,2\n", missing="drop")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["2020-01-31", "2020-02-01"], "is a date or time; give numbers instead"),
        (["31.01.2020", "01.02.2020"], "is a date"),
        (["12:30", "13:45"], "is a date or time"),
        (["1_000", "2"], "marks between thousands"),
        (["1 000", "2"], "marks between thousands"),
        (["12%", "30%"], "a number with a unit"),
        (["$5", "$6"], "a number with a unit"),
        (["1", "x"], "'x' is not a finite number, as 1 other values of the column are"),
        (["inf", "1"], "'inf' is not a finite number"),
        (["1e400", "1"], "'1e400' is not a finite number"),
    ],
)
def test_what_is_neither_number_nor_word_is_refused(
    tmp_path: Path, values: list[str], says: str
) -> None:
    rows = "".join(f"{value},{i}\n" for i, value in enumerate(values))
    with pytest.raises(TableError, match=rf"column 'a': .*{says}"):
        table_of(tmp_path / "t.csv", "a,y\n" + rows)


def test_an_index_is_only_what_looks_like_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for head, first, aside in (
        ("", ["5", "9", "7"], True), ("rownames", ["Fiat", "Opel", "BMW"], True),
        ("id", ["1", "2", "3"], True), ("id", ["1", "2", "4"], False),
        ("time", ["1", "2", "3"], False),
    ):  # fmt: skip
        rows = "".join(f"{value},{i * i},{i}\n" for i, value in enumerate(first))
        assert (
            (head or "(column 1)") in table_of(path, f"{head},a,y\n{rows}").preparation.set_aside
        ) is aside
    twice = table_of(path, ",rownames,id,a,y\n0,1,3,4,1\n1,2,1,1,2\n2,3,2,5,7\n")
    assert twice.columns == ["id", "a"] and len(twice.preparation.set_aside) == 2
    kept = table_of(path, "id,a,y\n1,4,1\n2,1,2\n3,5,7\n", columns="id,a")
    assert kept.columns == ["id", "a"]
    with pytest.raises(TableError, match="column 1 has no name"):
        table_of(path, ",a,y\n1,4,1\n1,1,2\n3,5,7\n")
    r_style = table_of(path, "a,y\nFiat,1,2\nOpel,2,5\nBMW,5,1\n")  # as write.table of R
    assert r_style.columns == ["a"] and r_style.X.tolist() == [[1], [2], [5]]
    with pytest.raises(TableError, match="line 2: 3 values, the header has 2"):
        table_of(path, "a,y\n7,1,2\n9,2,5\n8,5,1\n")  # a column that the header forgot


def test_a_spreadsheet_goes_to_an_answer_that_checks(tmp_path: Path) -> None:
    """A saved index without a name, a byte order mark, CRLF and words."""
    lines = [
        ",age,income,city,y", "0,31,2500,Rome,1.2", "1,45,1800,New York,0.7", "2,28,3100,Rome,1.9",
        "3,52,2700,San Jose,1.1", "4,39,2200,New York,0.9", "5,47,2950,Rome,1.6",
    ]  # fmt: skip
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    said = cli(
        "solve", path, "--target", "y", "--standardise", "--lam", 0.01, "--out", tmp_path / "o"
    )
    assert "6 rows, 4 columns in 3 groups" in said and "is a saved index" in said
    assert "2 columns of 0 and 1 (Rome, San Jose) in one group, against 'New York'" in said
    assert "city=San Jose,city," in (tmp_path / "o" / "weights.csv").read_text()
    cli("check", tmp_path / "o")


def test_constant_columns_stay_where_they_serve_as_an_intercept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("one,zero,a,y\n1,0,3,1\n1,0,1,2\n1,0,2,7\n")
    assert prepare(path, "y", None, "squared").table.columns == ["a"]
    assert prepare(path, "y", None, "squared", intercept=False).table.columns == ["one", "a"]


def test_equal_columns_of_other_groups_stay(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "a_1,a_2,b_1,b_2,c,y\n"
        + "".join(f"{i},{i % 3},{i},{i % 4},{i},{i % 5}\n" for i in range(20))
    )
    table = read_table(path, "y", "_", "squared")
    assert table.columns == ["a_1", "a_2", "b_1", "b_2"]
    assert table.preparation.kept_equal == ["b_1"]
    cli("solve", path, "--target", "y", "--groups", "_", "--lam", 0.5, "--out", tmp_path / "o")
    result = read_result(tmp_path / "o")
    assert prepared(result, None).table.columns == table.columns
    cli("check", tmp_path / "o")


def test_a_column_that_reproduces_the_target_is_said(tmp_path: Path) -> None:
    rows = "".join(f"{i % 3},{2 * i + 1},{i}\n" for i in range(8))
    (warning,) = table_of(tmp_path / "t.csv", "a,copy,y\n" + rows).warnings
    assert "'copy' reproduces the target 'y'" in warning and "--drop" in warning
    assert not table_of(tmp_path / "t.csv", "a,copy,y\n" + rows, drop="copy").warnings


def test_labels_are_compared_in_full(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for labels, found in (
        (["20240101", "20240102", "20240203"], None), (["0", "1.0", "0.0"], ["0", "1"]),
        (["01", "1", "01"], ["01", "1"]),
        (["1234567.1", "1234567.2", "1234567.1"], ["1234567.1", "1234567.2"]),
    ):  # fmt: skip
        path.write_text("a,y\n" + "".join(f"{i},{y}\n" for i, y in enumerate(labels)))
        if found is None:
            with pytest.raises(TableError, match="has 3: 20240101, 20240102, 20240203"):
                read_table(path, "y", None, "logistic")
        else:
            assert read_table(path, "y", None, "logistic").classes == found


def test_duplicate_names_are_refused_everywhere(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="'a' names 2 columns"):
        table_of(tmp_path / "t.csv", "a,a ,y\n1,2,3\n")
    with pytest.raises(TableError, match="'city=b' names 2 columns"):
        table_of(tmp_path / "t.csv", "city,city=b,y\na,2,3\nb,3,4\na,5,1\n")
    np.savez(tmp_path / "t.npz", X=np.eye(4), y=np.ones(4), columns=np.array(list("abac")))
    with pytest.raises(TableError, match="'a' names 2 columns"):
        read_table(tmp_path / "t.npz", None, None, "squared")


def test_odd_groups_are_said() -> None:
    names = ["city_New_York", "city_San_Jose", "city_Boston", "income", "income_log"]
    split, merged = oddities("_", names, group_labels("_", names))
    assert "'city_' are in several groups: city_New, city_San, city" in split
    assert "'income' is in one group with income_log" in merged
    assert oddities("5", list("abcdefghijkl"), []) == [
        "12 columns in groups of 5: the last group has 2"
    ]
    fine = ["age_1", "age_2", "height"]
    assert oddities("_", fine, group_labels("_", fine)) == oddities("3", fine, []) == []


def test_auto_groups_are_levels_of_one_variable() -> None:
    names = ["c_x", "c_y_z", "d_1", "d_2", "e_1", "e_2"]
    values = np.array([[1, 0, 1, 1, 0.5, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    assert auto_labels(names, values) == ["c", "c", "d_1", "d_2", "e_1", "e_2"]


def test_a_check_reads_the_data_in_the_same_way(tmp_path: Path) -> None:
    path, out = tmp_path / "t.csv", tmp_path / "o"
    path.write_text(WORDS.replace(",", ";").replace(".", ","))
    arguments = ("--target", "y", "--lam", 0.05, "--decimal", ",", "--missing", "mean", "--drop",
                 "age,twice", "--standardise", "--out", out)  # fmt: skip
    said = cli("solve", path, *arguments)
    assert "against 'New York'" in said and "is set aside" in said
    cli("check", out)
    file = out / "result.json"
    content = json.loads(file.read_text())
    assert content["preparation"]["coded"]["city"]["levels"] == ["Rome", "San Jose"]
    for key, value in (("rows_left_out", 1), ("set_aside", {}), ("filled", {"income": 1.0})):
        file.write_text(
            json.dumps({**content, "preparation": {**content["preparation"], key: value}})
        )
        assert "another preparation" in cli("check", out, code=1)
    file.write_text(json.dumps(content))
    said = cli("solve", path, *arguments[:7], "drop", *arguments[8:], code=2)
    assert "another preparation" in said


def test_a_result_without_a_preparation_is_checked_as_it_was(tmp_path: Path) -> None:
    """Results of before: every column entered as it stood, constant and equal ones as well."""
    path, out = tmp_path / "t.csv", tmp_path / "o"
    rows = "".join(f"{i},{i * i % 7},{i * i % 7},0.1,{i}\n" for i in range(9))
    path.write_text("id,a,b,c,y\n" + rows)
    data = prepare(path, "y", None, "squared", reading=Reading(as_is=True))
    assert data.table.columns == ["id", "a", "b", "c"]
    write_result(out, data, so.solve(data.problem(0.5, 0.1, 3.0)), None)
    content = json.loads((out / "result.json").read_text())
    del content["preparation"]
    (out / "result.json").write_text(json.dumps(content))
    cli("check", out)
    assert prepared(read_result(out), None).table.columns == ["id", "a", "b", "c"]


def test_a_constant_target_has_a_clear_answer(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + "".join(f"{i},{i * i % 7},0.1\n" for i in range(6)))
    for options in (("--lam", 0.1), ("--path", 3)):
        out = tmp_path / options[0]
        said = cli("solve", path, "--target", "y", *options, "--out", out)
        assert "nothing to explain" in said
        for file in out.rglob("result.json"):
            result = json.loads(file.read_text())
            assert result["kept"] == [] and result["outcome"]["objective"] == 0
        cli("check", out)


def test_groups_are_listed_before_the_solve(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("c_a_1,c_b,d,y\n" + "".join(f"{i % 3},{i % 4},{i % 5},{i}\n" for i in range(9)))
    said = cli("solve", path, "--target", "y", "--groups", "_", "--lam", 1, "--out", tmp_path / "o")
    assert (
        said.index("group  size  columns") < said.index("optimal")
        and "warning: columns that begin with 'c_'" in said
    )

"""Tables, group files and stored results from anywhere: read, or refused by one error that names them."""

import csv
import gzip
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from damaged import NASTY, damaged, within
from typer.testing import CliRunner

import spr_or as so
from spr_or.cli import app
from spr_or.tabular.prepare import prepare
from spr_or.tabular.read import read_table
from spr_or.tabular.recheck import recheck
from spr_or.tabular.results import write_result
from spr_or.tabular.source import TableError

pytestmark = pytest.mark.pictures  # strange names stand in them, too

HEADS = ["a", "b", "c", "y"]


def rows(seed: int = 0, n: int = 25, columns: int = 4) -> list[list[float]]:
    X = np.random.default_rng(seed).normal(size=(n, columns)).round(3)
    X[:, -1] += 2 * X[:, 0]
    return X.tolist()


def table_text(heads: list[str], body: list[list[float]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([heads, *body])
    return text.getvalue()


def refused(path: Path, says: str, target: str = "y", groups: str | None = None) -> None:
    with within(20), pytest.raises(TableError) as caught:
        prepare(path, target, groups, "squared")
    assert says in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,y\n1,2\n\xff,3\n", "not UTF-8"),
        (b"a,y\n1,2\n\0,3\n", "line 3: holds a NUL"),
        (b"a,y\n" + b"9" * 200_000 + b",3\n", "field larger than field limit"),
        (b'a,y\n"1,2\n', "line 2: 1 values, the header has 2"),
        (b"a,y\n1e400,2\n", "'1e400' is not a finite number"),
        (b"a,y\n1,2\n1e200,3\n", "1e+200 is too large"),
        (b"a,y\n1,1e160\n3,4\n", "column 'y': 1e+160 is too large"),
        (b"", "the file is empty"),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    refused(path, says)


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    for name in ("pipe.csv", "pipe.npz"):
        os.mkfifo(tmp_path / name)
        refused(tmp_path / name, "not a regular file")
    (tmp_path / "own.csv").write_text(table_text(HEADS, rows()))
    os.mkfifo(tmp_path / "groups.json")
    with within(20), pytest.raises(TableError, match="groups.json: not a regular file"):
        prepare(tmp_path / "own.csv", "y", str(tmp_path / "groups.json"), "squared")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": NaN}', "not a finite"),
        ("[" * 100_000, "nested too deeply"),
        ('["a"]', "must map columns"),
        ('{"a": "x"', "not JSON"),
        ('{"a": "\\ud800", "b": "x", "c": "x"}', "no text in Unicode"),
        ('{"a": "\\u0000", "b": "x", "c": "x"}', "NUL"),
    ],
)
def test_broken_group_files_are_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "own.csv").write_text(table_text(HEADS, rows()))
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(TableError, match=says):
        prepare(tmp_path / "own.csv", "y", str(tmp_path / "g.json"), "squared")


def test_arrays_of_other_kinds_are_named(tmp_path: Path) -> None:
    X = np.ones((3, 2))
    cases = [
        ({"X": X, "y": np.array(["a", "b", "c"])}, "takes targets of numbers, got y"),
        ({"X": X, "y": np.empty((3, 0))}, "y has shape (3, 0)"),
        ({"X": X * 1e200, "y": np.ones(3)}, "too large"),
        ({"X": X.astype(complex), "y": np.ones(3)}, "not numbers or text"),
        ({"X": X, "y": np.ones(3), "columns": np.array([["a", "b"]])}, "columns must have shape"),
        ({"X": X, "y": np.array([1, 2, None])}, "not numbers or text"),
    ]
    for arrays, says in cases:
        np.savez(tmp_path / "x.npz", **arrays)
        refused(tmp_path / "x.npz", says)


@pytest.mark.parametrize("kind", ["csv", "npz", "csv.gz", "parquet", "feather"])
def test_damaged_tables_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"own.{kind}"
    X = np.array(rows())
    columns = pa.table(dict(zip(HEADS, X.T, strict=True)))
    if kind == "csv":
        path.write_text(table_text(HEADS, rows()))
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(table_text(HEADS, rows()).encode()))
    elif kind == "parquet":
        pyarrow.parquet.write_table(columns, path)
    elif kind == "feather":
        pyarrow.feather.write_feather(columns, path)
    else:
        np.savez(path, X=X[:, :3], y=X[:, 3], columns=np.array(HEADS[:3]))
    with within(60):
        for content in damaged(path.read_bytes(), 300, seed=1):
            path.write_bytes(content)
            try:
                read_table(path, "y", None, "squared")
            except TableError as error:
                assert str(path) in str(error)


# --- what a solve left --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with a derived M, and its data beside it."""
    place = tmp_path_factory.mktemp("strange")
    (place / "own.csv").write_text(table_text(HEADS, rows()))
    done = CliRunner().invoke(
        app, ["solve", str(place / "own.csv"), "--target", "y", "--lam", "0.1", "--out",
              str(place / "o")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return place


@pytest.mark.parametrize("name", ["result.json", "certificate.json", "weights.csv", "groups.csv"])
def test_damaged_results_are_checked_or_refused(solved: Path, tmp_path: Path, name: str) -> None:
    """Nothing but a `TableError`, a list of what does not hold, or numbers that still hold."""
    folder = tmp_path / "o"
    shutil.copytree(solved / "o", folder)
    true = recheck(folder)
    assert true.ok
    count = 150 if name.endswith("json") else 60
    with within(120):
        for content in damaged((folder / name).read_bytes(), count, seed=2):
            (folder / name).write_bytes(content)
            try:
                found = recheck(folder)
            except TableError:
                continue
            if found.ok:
                assert found.bound <= true.objective * (1 + 1e-9)


@pytest.mark.parametrize("name", ["result.json", "certificate.json"])
@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "not JSON", '{"format": NaN}', "\0"])
def test_a_cut_file_is_named_with_exit_2(
    solved: Path, tmp_path: Path, name: str, content: str
) -> None:
    shutil.copytree(solved / "o", tmp_path / "o")
    (tmp_path / "o" / name).write_text(content)
    done = CliRunner().invoke(app, ["check", str(tmp_path / "o")], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and f"{tmp_path / 'o' / name}" in done.output
    assert "Traceback" not in done.output


def test_a_pipe_in_the_place_of_a_result_does_not_hang(solved: Path, tmp_path: Path) -> None:
    for name in ("result.json", "certificate.json", "weights.csv"):
        folder = tmp_path / name.partition(".")[0]
        shutil.copytree(solved / "o", folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with within(20):
            done = CliRunner().invoke(app, ["check", str(folder)])
        assert done.exit_code == (1 if name == "weights.csv" else 2), done.output
        if name != "weights.csv":
            with within(20), pytest.raises(ValueError, match="not a regular file"):
                so.load_certificate(folder)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(0, len(NASTY), 5))
def test_nasty_names_go_through_a_solve_and_its_check(tmp_path: Path, start: int) -> None:
    names = list(NASTY[start : start + 5])
    body = [[*row, 2 * sum(row)] for row in rows(3, 30, len(names))]  # every column is needed
    target = "y\x1b[2J[b]"
    file = tmp_path / "own [data]\x1b[2J$.csv"
    file.write_text(table_text([*names, target], body), newline="")
    mapping = tmp_path / "groups.json"
    mapping.write_text(json.dumps({name.strip(): f"{name}\u202e$" for name in names}))
    arguments = [str(file), "--target", target, "--groups", str(mapping), "--path", "0.2,0.01"]
    out = tmp_path / "out"
    for command in (["solve", *arguments, "--out", str(out)], ["check", str(out)]):
        done = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
        assert done.exit_code == 0, (done.output, done.exception)
        assert all(c.isprintable() or c == "\n" for c in done.output)
        assert not any(line.startswith("all claims hold") for line in done.output.splitlines())
    assert (out / "path.png").read_bytes()[:4] == b"\x89PNG"
    single = tmp_path / "single"
    done = CliRunner().invoke(
        app, ["solve", *arguments[:5], "--lam", "0.01", "--out", str(single)],
        env={"COLUMNS": "300"},
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for name in names:
        shown = "".join(c if c.isprintable() else "?" for c in name)
        assert shown in done.output
    with (single / "weights.csv").open(newline="", encoding="utf-8") as table:
        assert [row["column"] for row in csv.DictReader(table)][1:] == names
    assert so.check(single).ok


def test_errors_escape_names_too(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(table_text(["a\x1b[2J\nall claims hold", "b[/b]", "y"], [[1, 2, 3]]))
    for options in ([], ["--target", "z"], ["--target", "y", "--loss", "logistic"]):
        done = CliRunner().invoke(app, ["solve", str(file), "--lam", "1", *options])
        assert done.exit_code == 2 and "\x1b" not in done.output
        assert not any(line.startswith("all claims hold") for line in done.output.splitlines())


def test_a_result_is_never_half_of_another(solved: Path, tmp_path: Path, monkeypatch) -> None:
    """Cut off while it is written, a folder has no result; before that, it has the old one."""
    data = prepare(solved / "own.csv", "y", None, "squared")
    certificate = so.solve(data.problem(0.1, 0.1, 5.0))
    write_result(tmp_path / "o", data, certificate, None)
    assert so.check(tmp_path / "o").ok
    other = so.solve(data.problem(0.2, 0.1, 5.0))

    def full(path: Path, content: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("spr_or.tabular.results.write_json", full)
    with pytest.raises(OSError, match="no space"):
        write_result(tmp_path / "o", data, other, None)
    with pytest.raises(TableError, match="no result of spr-or solve there"):
        recheck(tmp_path / "o")

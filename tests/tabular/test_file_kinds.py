"""Tables as people export them: separators, marks, encodings, compression, Parquet, Feather."""

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from spr_or.tabular.preparation import Reading
from spr_or.tabular.prepare import prepare
from spr_or.tabular.read import Table, read_table
from spr_or.tabular.source import TableError

NAMES = ["a", "b", "y"]
ROWS = [[1.5, 2.0, 3.1], [2.5, 1.0, 4.2], [0.5, 3.0, 2.0], [-3.5, 2.0, 5.1]]


def text(separator: str = ",", decimal: str = ".", end: str = "\n") -> str:
    lines = [separator.join(NAMES)]
    lines += [separator.join(str(x).replace(".", decimal) for x in row) for row in ROWS]
    return end.join(lines) + end


def read(path: Path, target: str = "y", **reading: object) -> Table:
    return read_table(path, target, None, "squared", Reading(**reading))


def is_the_table(table: Table) -> None:
    assert table.columns == ["a", "b"] and table.targets == ["y"]
    assert np.column_stack([table.X, table.y]).tolist() == ROWS


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " ", "   ", ", ", " ; "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_separator_and_line_end(tmp_path: Path, separator: str, end: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(text(separator, end=end).encode())
    is_the_table(read(path))


@pytest.mark.parametrize("separator", [";", "\t", "|", " "])
def test_a_decimal_comma_is_read_only_when_it_is_said(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text(separator, decimal=","))
    is_the_table(read(path, decimal=","))
    with pytest.raises(TableError, match=r"line 2, column 'a': '1,5' .* --decimal ,"):
        read(path)
    path.write_text(text(";"))
    with pytest.raises(TableError, match="number with a point, but --decimal , was given"):
        read(path, decimal=",")
    path.write_text(text(separator, decimal=",").partition("\n")[2])
    table = read(path, "column3", decimal=",", header=False)
    assert np.column_stack([table.X, table.y]).tolist() == ROWS


def test_quotes_hide_separators_and_names_are_found_in_full(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('"x;y;z;w","a,b",a,b,y\n1,2,3,4,5\n2,5,4,3,1\n3,1,1,2,2\n')
    assert read(path).columns == ["x;y;z;w", "a,b", "a", "b"]
    assert read(path, "a,b").targets == ["a,b"]
    assert read(path, "b,a").targets == ["b", "a"]
    assert read(path, '"a,b",a').targets == ["a,b", "a"]
    assert read(path, drop='"a,b",b').columns == ["x;y;z;w", "a"]
    assert read(path, columns="a,b").columns == ["a,b"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text().replace("a,", "größe,", 1).encode(encoding))
    said = {"encoding": encoding} if encoding == "latin-1" else {}
    assert read(path, **said).columns == ["größe", "b"]
    if said:
        with pytest.raises(TableError, match="not UTF-8 text .* --encoding NAME"):
            read(path)
    with pytest.raises(TableError, match="--encoding nonsense: no encoding"):
        read(path, encoding="nonsense")


def test_comment_lines_and_trailing_separators(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = text().splitlines()
    path.write_text("\n".join(['# made by hand, with "care', *lines[:2], "# half", *lines[2:]]))
    is_the_table(read(path))
    path.write_text("\n".join(["# " + lines[0], *lines[1:]]))  # as numpy.savetxt writes a header
    table = read(path)
    is_the_table(table)
    assert any("named by the comment in line 1" in note for note in table.notes)
    for head in (lines[0], lines[0] + ","):
        path.write_text("\n".join([head, *(line + "," for line in lines[1:])]))
        is_the_table(read(path))
    path.write_text("\n".join([lines[0] + ",", *lines[1:]]))
    is_the_table(read(path))
    path.write_text('note,y\n"#1",2\n"a\n#b",3\n"#1",4\n')
    assert read(path).preparation.coded["note"].levels == ["a\n#b"]


def test_a_first_row_of_data_is_never_lost(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text().partition("\n")[2])
    for target in ("y", "2.0"):
        with pytest.raises(TableError, match=r"line 1: the first row looks like data.*--no-header"):
            read(path, target)
    table = read(path, "column3", header=False)
    assert len(table.X) == len(ROWS) and table.columns == ["column1", "column2"]
    assert len(read(path, "2.0", header=True).X) == len(ROWS) - 1
    path.write_text("Rome,1,2\nParis,3,4\n")
    with pytest.raises(TableError, match="looks like data"):
        read(path, "y")
    path.write_text("2019,2020,y\n1,2,3\n3,1,4\n")
    assert read(path).columns == ["2019", "2020"]


def test_compressed_tables(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text().encode()))
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.csv", text())
        archive.writestr("__MACOSX/._t.csv", "")
    for name in ("t.csv.gz", "t.zip"):
        is_the_table(read(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "t.zip", "a") as archive:
        archive.writestr("other.csv", text())
    with pytest.raises(TableError, match=r"t\.zip: .*holds 2 files"):
        read(tmp_path / "t.zip")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text().encode())[:-9])
    with pytest.raises(TableError, match=r"t\.csv\.gz: cannot be expanded"):
        read(tmp_path / "t.csv.gz")
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(bytes(2**28 + 1), 9))
    with pytest.raises(TableError, match="would expand to more"):
        read(tmp_path / "bomb.csv.gz")


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_parquet_and_feather(tmp_path: Path, kind: str) -> None:
    noted = {
        "index_columns": ["key"],
        "columns": [{"field_name": "code", "pandas_type": "categorical"}],
    }
    table = pa.table(
        {
            "a": pa.array([1, 2, 3, 4, 5], pa.int32()),
            "ok": [True, False, True, True, False],
            "city": pa.array(["Rome", "Paris", "Rome", "Oslo", "Oslo"]).dictionary_encode(),
            "code": pa.array([7, 9, 7, 9, 7]).dictionary_encode(),
            "y": [0.5, 1.5, None, 2.5, 3.5],
            "key": [11, 13, 12, 17, 15],
        }
    ).replace_schema_metadata({"pandas": json.dumps(noted)})
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, path)
    found = read(path, missing="drop")
    assert found.columns == ["a", "ok", "city=Paris", "city=Rome", "code=9"]
    assert found.labels == ["a", "ok", "city", "city", "code"]
    assert found.X[:, 2:].T.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]]
    assert found.X[:, :2].T.tolist() == [[1, 2, 4, 5], [1, 0, 1, 0]]
    assert found.preparation.set_aside == {"key": "is a saved index"}
    with pytest.raises(TableError, match="by column: y 1;"):
        read(path)
    classes = read_table(path, "ok", None, "logistic", Reading(missing="drop")).classes
    assert classes == ["False", "True"]


def test_other_columns_of_parquet_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(TableError, match=r"t\.parquet: not a Parquet or Feather file"):
        read(path)
    pyarrow.parquet.write_table(pa.table({"a": [[1], [2]], "y": [1.0, 2.0]}), path)
    with pytest.raises(TableError, match="column 'a' holds list"):
        read(path)
    days = pa.array([1, 2], pa.date32())
    pyarrow.parquet.write_table(pa.table({"a": days, "y": [1.0, 2.0]}), path)
    with pytest.raises(TableError, match=r"row 1 of the data, column 'a': '1970-01-02' is a date"):
        read(path)


def test_unknown_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"x")
    with pytest.raises(TableError, match=r"t\.xlsx: the name must end in"):
        prepare(tmp_path / "t.xlsx", "y", None, "squared")

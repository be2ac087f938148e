"""Files appear whole or not at all, durable or not, and a full disk is named."""

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spr_or.utils import files
from spr_or.utils.files import (
    DiskFull,
    write_aside,
    write_csv,
    write_durably,
    write_json,
    write_text,
)

Write = Callable[[Path, Callable[[Path], object]], None]


def fail(error: BaseException) -> Callable[[Path], object]:
    """What leaves half a file and raises."""

    def write(aside: Path) -> None:
        aside.write_text("half")
        raise error

    return write


@pytest.mark.parametrize("write", [write_aside, write_durably])
def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError, match="lost"):
        write(path, fail(KeyError("lost")))
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("write", [write_aside, write_durably])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("PytorchStreamWriter failed writing file: No space left on device"),
    ],
)
def test_a_full_disk_is_named_by_every_writer(
    tmp_path: Path, write: Write, error: Exception
) -> None:
    with pytest.raises(DiskFull, match="No space left: the disk is full, so b.bin was not written"):
        write(tmp_path / "b.bin", fail(error))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        write_aside(tmp_path / "c", fail(PermissionError(errno.EACCES, "no")))


def test_durable_bytes_are_flushed_before_the_file_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replace = files.os.fsync, files.os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (order.append("flush"), sync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    write_text(tmp_path / "d.txt", "text")
    assert order == ["flush", "replace", "flush"]  # the file, the swap, its folder


def test_text_is_utf8_without_translation(tmp_path: Path) -> None:
    write_text(tmp_path / "e.txt", "λ = 1\n")
    assert (tmp_path / "e.txt").read_bytes() == "λ = 1\n".encode()


def test_json_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"a": [1, 2.5]})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(path, {"a": bad})
    assert json.loads(path.read_text()) == {"a": [1, 2.5]}


def test_csv_quotes_and_fills(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"name": 'a,"b"\nc', "n": 1}, {"name": "d"}]
    write_csv(tmp_path / "g.csv", ["name", "n"], rows)
    with (tmp_path / "g.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream)) == [
            {"name": 'a,"b"\nc', "n": "1"},
            {"name": "d", "n": ""},
        ]

"""Readers of files from anywhere: limits hold before anything is expanded, and errors name the file."""

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from damaged import damaged, within

from spr_or.utils.untrusted import UnreadableFile, read_arrays, read_bytes, read_json, read_text


def refused(read, path: Path, says: str) -> None:
    with within(20), pytest.raises(UnreadableFile) as caught:
        read(path)
    assert str(path) in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": NaN}', "NaN is not a finite"),
        ('{"a": [1, -Infinity]}', "-Infinity is not a finite"),
        ('{"a": 1e400}', "1e400 is not a finite"),
        ('{"a": ' + "7" * 1_000_000 + "}", "77777777777777777777... is not a finite"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 50_000, "nested too deeply"),
        ('{"a": 1', "not JSON"),
        ("", "not JSON"),
        ("\0", "NUL"),
    ],
)
def test_json_is_finite_and_flat(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    refused(read_json, path, says)


def test_json_of_ours_is_read(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, "ü"], "b": {"c": -1e-300}, "big": 2**64}
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "x.json") == content


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused(read_bytes, pipe, "not a regular file")
    refused(read_bytes, tmp_path, "a folder")
    refused(read_bytes, tmp_path / "absent", "No such file")
    with pytest.raises(UnreadableFile, match="no name of a file"):
        read_bytes(Path("a\0b"))


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**40)  # no block of it is on the disk
    refused(read_text, tmp_path / "x", "1,099,511,627,776 bytes")


def test_text_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa\xc3\xbc")
    assert read_text(tmp_path / "x") == "aü"
    (tmp_path / "x").write_bytes(b"a\xff")
    refused(read_text, tmp_path / "x", "at byte 1")


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {
        "X": np.arange(6.0).reshape(2, 3), "F": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "names": np.array(["a", "bü"]), "flag": np.array(True), "none": np.empty((0, 3)),
    }  # fmt: skip
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = read_arrays(tmp_path / "x.npz")
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


def test_bombs_are_not_expanded(tmp_path: Path) -> None:
    zeros = tmp_path / "zeros.npz"
    with (
        zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("X.npy", "w", force_zip64=True) as member,
    ):
        block = bytes(2**20)
        for _ in range(300):
            member.write(block)
    assert zeros.stat().st_size < 2**20
    with within(20, mebibytes=100):
        refused(read_arrays, zeros, "would expand to 314,572,800")
    many = npz(tmp_path / "many.npz", **{f"a{i}": header("(0,)") for i in range(1001)})
    refused(read_arrays, many, "1001 arrays")
    promise = npz(tmp_path / "promise.npz", X=header("(1000000, 1000000)") + bytes(80))
    refused(read_arrays, promise, "does not have the size")
    negative = npz(tmp_path / "negative.npz", X=header("(-1, -10)") + bytes(80))
    refused(read_arrays, negative, "does not have the size")


class Evil:
    """Unpickling it would make a file."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (open, ("/tmp/spr-or-was-here", "w"))


def test_objects_and_other_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, X=np.array([Evil()], dtype=object))
    refused(read_arrays, path, "not numbers or text")
    assert not Path("/tmp/spr-or-was-here").exists()
    refused(read_arrays, npz(path, X=b"text"), "not an npz")
    refused(read_arrays, npz(path, X=header("(1,)", "[('a', '<f8')]") + bytes(8)), "not numbers")
    refused(read_arrays, npz(path, X=header("(" * 3000 + "1")), "not an npz")
    path.write_bytes(b"not a zip")
    refused(read_arrays, path, "not a zip file")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("X.npy", header("(1,)") + bytes(8))
    refused(read_arrays, path, "in another way")
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("X.npy", header("(1,)") + bytes(8))
        archive.writestr("X.npy", header("(1,)") + bytes(8))
    refused(read_arrays, path, "two arrays have one name")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_end_in_the_one_error(tmp_path: Path, save) -> None:
    stream = io.BytesIO()
    save(stream, X=np.arange(60.0).reshape(20, 3), y=np.arange(20), names=np.array(["a", "b"]))
    path, read = tmp_path / "x.npz", 0
    with within(60):
        for content in damaged(stream.getvalue(), 400):
            path.write_bytes(content)
            try:
                read_arrays(path)
                read += 1
            except UnreadableFile as error:
                assert str(path) in str(error)
    assert read < 200

"""Image sets from anywhere: bombs, lies in the footer, other types, and bytes damaged at random."""

import io
import json
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from damaged import damaged, within
from image_files import encoded, picture, write_split

from spr_or.training.data import cache, parquet
from spr_or.training.data.load import decode_split, load_data
from spr_or.training.data.parquet import DataError, decode, open_split
from spr_or.training.data.stream import StreamReader
from spr_or.training.recipe import DataRecipe

FILE = Path("train.parquet")


def png(width: int, height: int) -> bytes:
    """A valid picture in black, with rows as well compressed as they can be."""
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8193, 8192), (10_000, 10_000), (20_000, 20_000)])
def test_an_image_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    bomb = png(*size)
    assert len(bomb) < 2**16
    with within(20, mebibytes=100), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of the same kind
        with pytest.raises(DataError, match=r"train\.parquet row 3: .*(pixels|decompression bomb)"):
            decode(bomb, 0, FILE, 3)
    assert decode(png(64, 32), 0, FILE, 0).size == (64, 32)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_damaged_images_end_in_the_one_error(kind: str) -> None:
    stream = io.BytesIO()
    picture(0, (24, 24)).save(stream, format=kind)
    assert decode(stream.getvalue(), 0, FILE, 0).size == (24, 24)
    with within(60), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in damaged(stream.getvalue(), 250, seed=3):
            try:
                decode(content, 0, FILE, 7)
            except DataError as error:
                assert "train.parquet row 7" in str(error)


def test_a_document_is_no_image() -> None:
    """Pillow would hand PostScript to another program."""
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 0, FILE, 0)


@pytest.mark.parametrize("label", [None, -1, 3, 2**40, "cat", 1.5])
def test_a_label_is_one_of_the_classes(label: Any) -> None:
    with pytest.raises(DataError, match="row 2: label"):
        decode(encoded(picture(0)), label, FILE, 2, classes=3)


def image_set(place: Path, **columns: Any) -> Path:
    place.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), place / "train.parquet")
    return place


def test_columns_of_other_types_are_named(tmp_path: Path) -> None:
    images = [{"bytes": encoded(picture(i)), "path": ""} for i in range(3)]
    for columns in (
        {"img": ["a", "b", "c"], "label": [0, 1, 2]},
        {"img": images, "label": ["a", "b", "c"]},
        {"img": images, "label": [0.5, 1.5, 2.5]},
        {"img": images, "label": [0, None, 2]},
        {"img": [{"bytes": "text"}] * 3, "label": [0, 1, 2]},
        {"img": [{"path": "x"}] * 3, "label": [0, 1, 2]},
        {"img": [None, *images[1:]], "label": [0, 1, 2]},
    ):
        folder = image_set(tmp_path / "set", **columns)
        with pytest.raises(DataError, match=r"train\.parquet"):
            decode_split(open_split(folder, "train"), None)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (b"\xff", "huggingface|utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"info": NaN}', "not a finite"),
        (json.dumps({"info": {"features": {"label": {"names": [1, 2]}}}}).encode(), "no text"),
        (b'{"info": [1]}', None),
        (b'{"info": {"features": "x"}}', None),
    ],
)
def test_metadata_of_other_kinds(tmp_path: Path, metadata: bytes, says: str | None) -> None:
    images = [{"bytes": encoded(picture(i)), "path": ""} for i in range(3)]
    table = pa.table({"img": images, "label": [0, 1, 2]})
    table = table.replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "train.parquet")
    if says is None:
        assert open_split(tmp_path, "train").classes == ()
        return
    with pytest.raises(DataError, match=says):
        open_split(tmp_path, "train")


def test_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.parquet")
    with within(20), pytest.raises(DataError, match=r"train\.parquet.*not a regular file"):
        open_split(tmp_path, "train")


class Footer:
    """A footer that states what the file does not hold."""

    def __init__(self, metadata: Any, **stated: Any) -> None:
        self._metadata, self._stated = metadata, stated

    def __getattr__(self, name: str) -> Any:
        return self._stated.get(name, getattr(self._metadata, name))


class Group(Footer):
    """A row group that states another size."""


@pytest.mark.parametrize(
    ("stated", "group", "says"),
    [
        ({"num_rows": 10**12}, {}, "footer states rows that its row groups do not have"),
        ({"num_rows": -4}, {"num_rows": -4}, "footer states rows"),
        ({"num_rows": 10**12}, {"num_rows": 10**12}, "1,000,000,000,000 rows, more than"),
        ({}, {"total_byte_size": 2**40}, "a row group expands to 1,099,511,627,776 bytes"),
    ],
)
def test_a_footer_that_lies_is_refused(
    tmp_path: Path, stated: dict, group: dict, says: str
) -> None:
    write_split(tmp_path / "train.parquet", [encoded(picture(i)) for i in range(4)], [0] * 4)
    metadata = pq.ParquetFile(tmp_path / "train.parquet").metadata
    footer = Footer(metadata, row_group=lambda g: Group(metadata.row_group(g), **group), **stated)
    with pytest.raises(DataError, match=says):
        parquet._rows(tmp_path / "train.parquet", footer)


@pytest.mark.parametrize("rows", [3, 6])
def test_other_rows_than_stated_are_told(tmp_path: Path, rows: int) -> None:
    """Nothing is left uninitialised, nothing is written beyond."""
    write_split(tmp_path / "train.parquet", [encoded(picture(i)) for i in range(5)], [0] * 5)
    split = open_split(tmp_path, "train")
    lying = parquet.ParquetSplit(**{**split.__dict__, "rows": rows})
    with pytest.raises(DataError, match="footer states"):
        decode_split(lying, None)


def test_more_than_the_memory_holds_is_not_decoded(tmp_path: Path) -> None:
    write_split(tmp_path / "train.parquet", [encoded(picture(0, (64, 64)))], [0])
    split = open_split(tmp_path, "train")
    vast = parquet.ParquetSplit(**{**split.__dict__, "rows": 2**31})
    with within(20), pytest.raises(DataError, match="GiB decoded, this machine has"):
        decode_split(vast, None)


def test_damaged_parquet_ends_in_the_one_error(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_split(path, [encoded(picture(i)) for i in range(12)], [i % 3 for i in range(12)])
    with within(120, mebibytes=2048), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in damaged(path.read_bytes(), 300, seed=4):
            path.write_bytes(content)
            try:
                images, labels = decode_split(open_split(tmp_path, "train"), None)
                assert len(images) == len(labels)
            except DataError as error:
                assert str(tmp_path) in str(error)


def test_damaged_parquet_is_no_traceback_in_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_split(path, [encoded(picture(i)) for i in range(12)], [i % 3 for i in range(12)])
    with within(60, mebibytes=2048), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in damaged(path.read_bytes(), 60, seed=5):
            path.write_bytes(content)
            try:
                split = open_split(tmp_path, "train")
                reader = StreamReader(
                    split, 4, size=None, shuffle=False, augment=False, workers=0, pin=False
                )
                assert sum(len(labels) for _, labels in reader(0)) == split.rows
            except DataError as error:
                assert str(tmp_path) in str(error)


@pytest.mark.parametrize("name", ["meta.json", "images.npy", "labels.npy"])
def test_a_damaged_cache_says_what_to_remove(tmp_path: Path, name: str) -> None:
    images = np.arange(60, dtype=np.uint8).reshape(5, 3, 2, 2)
    arrays = images, np.arange(5)
    cache.cached(tmp_path, "key", {"files": []}, lambda: arrays)
    file = tmp_path / "key" / name
    content = file.read_bytes()
    with within(60):
        for changed in damaged(content, 150, seed=6):
            file.write_bytes(changed)
            try:
                found, labels = cache.cached(tmp_path, "key", {"files": []}, lambda: arrays)
                assert np.array_equal(found, images) and labels.tolist() == [0, 1, 2, 3, 4]
            except DataError as error:
                assert f"remove {tmp_path / 'key'}" in str(error)


def test_a_damaged_set_stops_a_run_with_our_error(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1" * 20)
    with pytest.raises(DataError, match="no readable Parquet file"):
        load_data(DataRecipe(source=str(tmp_path)), torch.device("cpu"))

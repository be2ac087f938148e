"""Image sets in the Parquet layout of the Hugging Face Hub, from a folder or from the Hub.

A split is one or more files ``{split}-00000-of-00005.parquet`` anywhere below the folder; an image
is a struct {bytes, path} with an encoded file in ``img`` or ``image``, its class an integer in
``label`` or ``fine_label``, and the class names stand in the schema's ``huggingface`` metadata.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from spr_or.utils.untrusted import UnreadableFile, check_regular, parse_json

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "coarse_label")
EVAL_SPLITS = ("valid", "validation", "val", "test")
MOST_PIXELS = 2**26  # of one image: 192 MiB decoded; Pillow itself warns at 89 million
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # decoders of plain pictures
_MOST_CLASSES = 2**31
_MOST_ROWS = 2**31
_LARGEST_GROUP = 2**33  # bytes
_FOOTER_LIMIT = 2**28  # bytes, and entries, of the metadata of one file
_BATCH_ROWS = 256
_ARROW_ERRORS = (OSError, ValueError, NotImplementedError, MemoryError, pa.ArrowException)
_FOOTER = 1 << 16  # bytes at the end of a file that hold its row counts, offsets and statistics


class DataError(ValueError):
    """A data set that cannot be read; the message names the file, the row and the way out."""


@dataclass(frozen=True)
class ParquetSplit:
    """One split of an image set: its files in order and where the columns are."""

    name: str
    files: tuple[Path, ...]
    image_column: str
    label_column: str
    classes: tuple[str, ...]
    rows: int

    def fingerprint(self) -> list[dict[str, str | int]]:
        """What identifies the source: name, size, rows and a hash of the footer of each file."""
        return [_fingerprint(file) for file in self.files]


def find_folder(source: str, revision: str | None = None) -> Path:
    """The folder that ``source`` names: a path, a folder in $SPR_OR_DATA, or a Hub id.

    A Hub id ("owner/name") is downloaded, Parquet files alone, into huggingface_hub's own cache,
    which shows its progress and takes up broken downloads. Raises `DataError`.
    """
    places = [Path(source).expanduser()]
    if root := os.environ.get("SPR_OR_DATA"):
        places.append(Path(root).expanduser() / source)
    for place in places:
        if place.is_dir():
            return place
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return _download(source, revision)
    looked = " and ".join(str(place) for place in places)
    raise DataError(
        f'data.source = "{source}": no folder at {looked}, and no Hub id of the form owner/name. '
        "The environment variable SPR_OR_DATA may name the folder that holds it"
    )


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(
            source, repo_type="dataset", revision=revision, allow_patterns="*.parquet"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DataError(
            f'data.source = "{source}" cannot be fetched from the Hub: {error}. '
            "Sets behind a licence need `hf auth login`; offline, name a folder"
        ) from error
    return Path(folder)


def open_split(folder: Path, split: str | None) -> ParquetSplit:
    """Find a split in a folder; None means the first of `EVAL_SPLITS` that is there.

    Raises `DataError` for a split without files, or files without image and label columns.
    """
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        files.setdefault(re.sub(r"-\d+-of-\d+(-\w+)?$", "", file.stem), []).append(file)
    wanted = EVAL_SPLITS if split is None else (split,)
    found = next((name for name in wanted if name in files), None)
    if found is None:
        raise DataError(
            f"{folder} holds no split {' or '.join(wanted)}; "
            + (f"it has {', '.join(files)}" if files else "there are no Parquet files in it")
        )
    parts = tuple(files[found])
    readers = [_open(file) for file in parts]
    names = readers[0].schema_arrow.names
    image = _column(parts[0], names, IMAGE_COLUMNS)
    label = _column(parts[0], names, LABEL_COLUMNS)
    rows = sum(_rows(file, reader.metadata) for file, reader in zip(parts, readers, strict=True))
    if rows == 0:
        raise DataError(f"split {found} of {folder} is empty")
    return ParquetSplit(found, parts, image, label, _classes(parts[0], readers[0], label), rows)


def _open(file: Path) -> pq.ParquetFile:
    try:
        check_regular(file)
        return pq.ParquetFile(
            file, thrift_string_size_limit=_FOOTER_LIMIT, thrift_container_size_limit=_FOOTER_LIMIT
        )
    except (*_ARROW_ERRORS, UnreadableFile) as error:
        raise DataError(f"{file} is no readable Parquet file: {error}") from error


def _rows(file: Path, metadata: Any) -> int:
    """The rows that a file says it has, where that can be true."""
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    counts = [group.num_rows for group in groups]
    if any(count < 0 for count in counts) or sum(counts) != metadata.num_rows:
        raise DataError(f"{file}: its footer states rows that its row groups do not have")
    if metadata.num_rows > _MOST_ROWS:
        raise DataError(f"{file}: {metadata.num_rows:,} rows, more than {_MOST_ROWS:,} in one file")
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > _LARGEST_GROUP:
        raise DataError(
            f"{file}: a row group expands to {largest:,} bytes, more than {_LARGEST_GROUP:,}; write "
            "it with smaller row groups"
        )
    return int(metadata.num_rows)


def _column(file: Path, names: list[str], candidates: tuple[str, ...]) -> str:
    for name in candidates:
        if name in names:
            return name
    raise DataError(f"{file} has no column {' or '.join(candidates)}; it has {', '.join(names)}")


def _classes(file: Path, reader: pq.ParquetFile, label: str) -> tuple[str, ...]:
    """The class names in the metadata, if there are any."""
    stored = (reader.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    where = f"{file}: the metadata named huggingface"
    try:
        found = parse_json(stored.decode("utf-8"), where)
    except (UnreadableFile, UnicodeDecodeError) as error:
        raise DataError(str(error)) from None
    for key in ("info", "features", label, "names"):
        found = found.get(key) if isinstance(found, dict) else None
    names = found if isinstance(found, list) else []
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: a class name is no text")
    return tuple(names)


def _fingerprint(file: Path) -> dict[str, str | int]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(max(0, size - _FOOTER))
        footer = hashlib.sha256(stream.read()).hexdigest()
    rows = _open(file).metadata.num_rows
    return {"file": file.name, "bytes": size, "rows": rows, "footer_sha256": footer}


def row_groups(split: ParquetSplit) -> list[tuple[Path, int, int]]:
    """(file, row group, rows) of all row groups of a split, in order."""
    groups = []
    for file in split.files:
        metadata = _open(file).metadata
        groups += [
            (file, g, metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups)
        ]
    return groups


def read_group(split: ParquetSplit, file: Path, group: int) -> Iterator[tuple[bytes | None, int]]:
    """The encoded images and labels of one row group; memory stays at one batch of rows."""
    columns = [split.image_column, split.label_column]
    reader = _open(file)
    try:
        for batch in reader.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
            images = batch.column(split.image_column).field("bytes")
            labels = batch.column(split.label_column)
            for image, label in zip(images, labels, strict=True):
                yield image.as_py(), label.as_py()
    except (*_ARROW_ERRORS, KeyError, IndexError, AttributeError, TypeError) as error:
        raise DataError(
            f"{file}, row group {group}: no images with bytes and labels ({error})"
        ) from error


def decode(
    data: bytes | None, label: int | None, file: Path, row: int | str, classes: int = 0
) -> Image.Image:
    """Decode one image to RGB; raises `DataError` naming file and row for a damaged or huge one.

    ``classes``: how many there are, where that is known; a label beyond them is refused.
    """
    where = f"{file} row {row}"
    if not isinstance(label, int) or not 0 <= label < (classes or _MOST_CLASSES):
        raise DataError(f"{where}: label {label!r}; this split cannot be trained on")
    if not isinstance(data, bytes):
        raise DataError(f"{where}: the image cannot be decoded (there are no bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height <= MOST_PIXELS:
                return image.convert("RGB")
    # A decoder that meets damaged bytes raises whatever it stumbles over.
    except Exception as error:
        raise DataError(f"{where}: the image cannot be decoded ({error})") from error
    raise DataError(f"{where}: {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}")


def to_array(image: Image.Image) -> np.ndarray:
    """RGB image to uint8 (3, H, W)."""
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to size · 256/224 for larger images (to size for smaller), then the centre.

    256 and 224 are the usual pair of ImageNet evaluation.
    """
    target = round(size * 256 / 224) if min(image.size) > size else size
    scale = target / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))

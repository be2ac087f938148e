"""Decoded images kept between runs: a folder with ``images.npy``, ``labels.npy``, ``meta.json``.

The folder says which files it was decoded from and what its bytes sum to, and both are checked
each time it is reused. It is written aside and put in place by one rename.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import tokenize
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spr_or.training.data.parquet import DataError
from spr_or.utils.files import disk_full_explained
from spr_or.utils.untrusted import check_regular, read_json

Arrays = tuple[np.ndarray, np.ndarray]
_FORMAT = 1


def cached(folder: Path, key: str, source: dict[str, Any], decode: Callable[[], Arrays]) -> Arrays:
    """``decode()``, or what it returned the last time for this key and source.

    ``decode`` gives images uint8 (N, C, H, W) and labels int64 (N,). ``source`` is what identifies
    the origin (JSON values). Raises `DataError` if the kept arrays stem from another source or are
    damaged, naming the folder to remove; `DiskFull` if they cannot be kept.
    """
    place = folder / re.sub(r"[^\w.-]+", "-", key).strip("-")
    source = json.loads(json.dumps(source))
    if place.is_dir():
        return _load(place, source)
    arrays = decode()
    _store(place, source, arrays)
    return arrays


def _load(place: Path, source: dict[str, Any]) -> Arrays:
    remedy = f"remove {place} to have the images decoded again"
    try:
        meta = read_json(place / "meta.json")
        images, labels = (_array(place / f"{name}.npy") for name in ("images", "labels"))
    except (
        OSError, ValueError, EOFError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError,
    ) as error:  # fmt: skip
        raise DataError(f"the cache {place} is damaged ({error}); {remedy}") from error
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise DataError(f"the cache {place} was written by another version; {remedy}")
    if not isinstance(meta.get("source"), dict):
        raise DataError(f"the cache {place} is damaged (it names no source); {remedy}")
    if meta["source"] != source:
        raise DataError(
            f"the cache {place} does not match its source ({_difference(meta['source'], source)})"
            f"; {remedy}"
        )
    if meta.get("crc32") != _checksum(images, labels):
        raise DataError(f"the cache {place} is damaged (its checksum is wrong); {remedy}")
    return images, labels


def _array(path: Path) -> np.ndarray:
    """One array of numbers, not larger than its file."""
    check_regular(path)
    stored = np.load(path, mmap_mode="r", allow_pickle=False)  # maps no more than there is
    return np.array(stored)


def _store(place: Path, source: dict[str, Any], arrays: Arrays) -> None:
    images, labels = arrays
    meta = {"format": _FORMAT, "source": source, "crc32": _checksum(images, labels)}
    with disk_full_explained(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        try:
            np.save(aside / "images.npy", images)
            np.save(aside / "labels.npy", labels)
            (aside / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            aside.rename(place)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            if not place.is_dir():  # otherwise another run was faster; its arrays are as good
                raise


def _checksum(images: np.ndarray, labels: np.ndarray) -> int:
    return zlib.crc32(labels.tobytes(), zlib.crc32(np.ascontiguousarray(images).data))


def _difference(kept: dict[str, Any], now: dict[str, Any]) -> str:
    for key in sorted(kept.keys() | now.keys()):
        if kept.get(key) != now.get(key):
            return f"{key}: kept {kept.get(key)}, now {now.get(key)}"
    return "no difference"

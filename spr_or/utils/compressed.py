"""Compressed files: gzip and zip with a single file, expanded within the limits of `untrusted`."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

from spr_or.utils.untrusted import UnreadableFile, most_expanded


def expanded(path: Path, content: bytes) -> bytes:
    """``content``, expanded if it is gzip or zip; ``path`` names it in an `UnreadableFile`.

    >>> import gzip
    >>> expanded(Path("a.csv.gz"), gzip.compress(b"a,b")), expanded(Path("a.csv"), b"a,b")
    (b'a,b', b'a,b')
    """
    most = most_expanded(len(content))
    try:
        if content.startswith(b"\x1f\x8b"):
            return _gunzip(content, most)
        if content.startswith(b"PK\x03\x04"):
            return _unzip(content, most)
    except (
        ValueError, OSError, EOFError, RuntimeError, NotImplementedError, MemoryError,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise UnreadableFile(f"{path}: cannot be expanded ({error})") from None
    return content


def _gunzip(content: bytes, most: int) -> bytes:
    """All members, one after the other, as gzip reads them."""
    parts: list[bytes] = []
    size = 0
    while content:
        stream = zlib.decompressobj(wbits=31)
        parts.append(stream.decompress(content, most - size + 1))
        size += len(parts[-1])
        if size > most:
            raise ValueError(f"it would expand to more than {most:,} bytes")
        if not stream.eof:
            raise ValueError("it ends too early")
        content = stream.unused_data.lstrip(b"\0")
    return b"".join(parts)


def _unzip(content: bytes, most: int) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = [
            m for m in archive.infolist()
            if not m.is_dir() and not m.filename.startswith("__MACOSX/")
        ]  # fmt: skip
        if len(files) != 1:
            raise ValueError(f"it holds {len(files)} files, one is needed")
        if files[0].file_size > most:
            raise ValueError(f"it would expand to more than {most:,} bytes")
        return archive.read(files[0])

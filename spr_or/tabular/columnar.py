"""Parquet and Feather files as columns, read by pyarrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from spr_or.tabular.source import Column, Source, TableError
from spr_or.utils.untrusted import LARGEST_ARRAYS, UnreadableFile, read_bytes

PARQUET = (".parquet", ".pq")
FEATHER = (".feather", ".arrow")


def read_columnar(path: Path) -> Source:
    """The columns of a Parquet or Feather file; raises `TableError`."""
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    try:
        content = pa.BufferReader(read_bytes(path))
        if path.suffix.lower() in PARQUET:
            promised = pyarrow.parquet.read_metadata(content)
            if 8 * promised.num_rows * promised.num_columns > LARGEST_ARRAYS:
                raise UnreadableFile(f"{path}: more than {LARGEST_ARRAYS:,} bytes of numbers")
            table = pyarrow.parquet.read_table(content)
        else:
            table = pyarrow.feather.read_table(content)
        row_names, categories = _pandas(table.schema.metadata)
        columns = [
            _column(path, name, table.column(j), name in categories)
            for j, name in enumerate(table.column_names)
        ]
    except UnreadableFile as error:
        raise TableError(str(error)) from None
    except (pa.ArrowException, OSError, MemoryError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TableError(
            f"{path}: not a Parquet or Feather file that can be read ({first})"
        ) from None
    if not columns or table.num_rows == 0:
        raise TableError(f"{path}: the file holds no data")
    return Source(columns, row_names=row_names)


def _column(path: Path, name: str, values: Any, category: bool) -> Column:
    """Numbers as float64, everything else as words."""
    import pyarrow as pa
    import pyarrow.types as kinds

    kind = values.type
    numeric = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind)
    if numeric and not category:
        if kinds.is_float16(kind):  # which pyarrow does not cast everywhere
            plain = values.to_numpy().astype(np.float64)
        else:
            plain = values.cast(pa.float64(), safe=False).to_numpy()
        return Column(name, np.array(plain, dtype=np.float64))
    if kinds.is_null(kind):
        return Column(name, np.full(len(values), np.nan))
    inner = kind.value_type if kinds.is_dictionary(kind) else kind
    if kinds.is_nested(inner) or kinds.is_binary(inner) or kinds.is_large_binary(inner):
        raise TableError(
            f"{path}: column {name!r} holds {kind}, not numbers or words; drop it there"
        )
    words = [None if value is None else str(value) for value in values.to_pylist()]
    return Column(name, words, category or kinds.is_dictionary(kind))


def _pandas(metadata: dict[bytes, bytes] | None) -> tuple[str | None, set[str]]:
    """What pandas noted in a file: the column that was its index, and the categorical columns."""
    try:
        noted = json.loads((metadata or {})[b"pandas"])
        kinds = {str(c["field_name"]): c["pandas_type"] for c in noted.get("columns", [])}
        names = noted.get("index_columns", [])
        index = names[0] if len(names) == 1 and isinstance(names[0], str) else None
        return index, {name for name, kind in kinds.items() if kind == "categorical"}
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return None, set()

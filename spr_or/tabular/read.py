"""One's own data: a table (CSV) or arrays (npz) as X, y, column names and groups.

CSV: a header row, then numbers; the delimiter is the most frequent of comma, semicolon and tab in the
header.  npz: arrays ``X`` (n, p) and ``y`` (n,) or (n, q), and optionally ``columns`` (p,) names and
``groups`` (p,) labels.  Every fault is a `TableError` that names the file, the row and the column.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.utils.printable import one_line
from spr_or.utils.untrusted import UnreadableFile, parse_json, read_arrays, read_text

Array = NDArray[np.float64]

_LARGEST = 1e150  # of a value: its square is still a float


class TableError(ValueError):
    """What is wrong with a file or its use, where, and what would help."""


class Table(NamedTuple):
    """X (n, p) and y (n, q) in float64, their names, and the group label of each column.

    ``classes`` are the two labels of a logistic target, first -1, then +1; empty for the squared loss.
    """

    X: Array
    y: Array
    columns: list[str]
    targets: list[str]
    labels: list[str]
    classes: list[str]


def read_table(path: Path, target: str | None, groups: str | None, loss: str) -> Table:
    """Read a CSV or npz file.

    Parameters
    ----------
    path : ends in .csv, .tsv, .txt or .npz
    target : name of the target column, or several with commas between; npz: of the array, default "y"
    groups : see `group_labels`; None: the file's own groups (npz), else one a column
    loss : "squared" (numbers) or "logistic" (two labels)

    Raises `TableError`.
    """
    if not path.is_file():
        what = "not a regular file" if path.exists() and not path.is_dir() else "no such file"
        raise TableError(f"{path}: {what}")
    if path.suffix.lower() == ".npz":
        columns, X, targets, raw, stored = _read_npz(path, target)
    elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
        columns, X, targets, raw = _read_csv(path, target, loss)
        stored = None
    else:
        raise TableError(f"{path}: the name must end in .csv or .npz, to say what it is")
    if loss == "logistic":
        if len(targets) != 1:
            raise TableError(f"the logistic loss takes one target, got {', '.join(targets)}")
        y, classes = two_classes(raw[0], targets[0])
    else:
        y, classes = _target_numbers(path, raw, targets), []
    labels = stored if groups is None and stored is not None else group_labels(groups, columns)
    _check_sizes(path, np.column_stack([X, y]), [*columns, *targets])
    for name in (*columns, *targets, *labels, *classes):
        _check_name(path, name)
    return Table(X, y, columns, targets, labels, classes)


def _target_numbers(path: Path, raw: list[list[Any]], targets: list[str]) -> Array:
    try:
        return np.column_stack(raw).astype(np.float64)
    except ValueError:
        shown = _listed(targets) or "none"
        raise TableError(
            f"{path}: the squared loss takes targets of numbers, got {shown}"
        ) from None


def _check_sizes(path: Path, values: Array, names: Sequence[str]) -> None:
    """Sums of squares have to be finite, too; ``not`` and ``<=`` so that a NaN is refused."""
    large = ~(np.abs(values) <= _LARGEST)
    if large.any():
        row, column = (int(i) for i in np.argwhere(large)[0])
        raise TableError(
            f"{path}, row {row + 1} of the data, column {names[column]!r}: {values[row, column]:g} "
            f"is too large, {_LARGEST:g} is the most; give the column in another unit"
        )


def _check_name(path: Path, name: str) -> None:
    """A name is written into files in UTF-8 and read back."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise TableError(f"{path}: the name {name!r} is no text in Unicode") from None
    if "\0" in name:
        raise TableError(f"{path}: the name {name!r} holds a NUL character")


def entities_of(labels: Sequence[str]) -> dict[str, list[int]]:
    """The columns of each group, in the order in which the groups first occur.

    >>> entities_of(["age", "colour", "age"])
    {'age': [0, 2], 'colour': [1]}
    """
    found: dict[str, list[int]] = {}
    for column, label in enumerate(labels):
        found.setdefault(label, []).append(column)
    return found


def group_labels(spec: str | None, columns: Sequence[str]) -> list[str]:
    """The group of each column, as the user asked for them.

    ``spec``: None, each column its own; a number, so many consecutive columns a group; a JSON file
    {column: group}; a CSV file with rows column,group; or a separator, then a group is what stands
    before its last occurrence in the name.  Raises `TableError`.

    >>> group_labels("_", ["age", "colour_red", "colour_blue"])
    ['age', 'colour', 'colour']
    >>> group_labels("2", ["a", "b", "c"])
    ['a..b', 'a..b', 'c']
    """
    if spec is None:
        return list(columns)
    if spec.lstrip("-").isdigit():
        size = int(spec)
        if size < 1:
            raise TableError(f"--groups {spec}: a group has at least one column")
        blocks = [columns[start : start + size] for start in range(0, len(columns), size)]
        return [_span(block) for block in blocks for _ in block]
    if Path(spec).suffix.lower() in (".json", ".csv"):
        return _mapped(Path(spec), columns)
    if spec and not any(c.isalnum() for c in spec):
        if not any(spec in name for name in columns):
            raise TableError(f"--groups {spec!r}: no column has this separator in its name")
        return [name.rpartition(spec)[0] or name for name in columns]
    raise TableError(
        f"--groups {spec!r}: give a number, a separator such as _, or a .json or .csv file"
    )


def two_classes(values: Sequence[Any], name: str) -> tuple[Array, list[str]]:
    """A target of two labels as -1/+1, (n, 1), and the labels; 0/1 and -1/+1 keep their order.

    >>> two_classes(["no", "yes", "no"], "ill")[1]
    ['no', 'yes']
    """
    plain = [_tidy(value) for value in values]
    labels = sorted(set(plain), key=lambda label: (_as_number(label), label))
    if "" in labels or "nan" in (label.lower() for label in labels):
        row = next(i for i, label in enumerate(plain) if label.lower() in ("", "nan"))
        raise TableError(f"target {name!r} has no value in row {row + 1} of the data")
    if len(labels) != 2:
        shown = ", ".join(map(one_line, labels[:5])) + (", ..." if len(labels) > 5 else "")
        raise TableError(
            f"the logistic loss needs a target of exactly two labels; {name!r} has {len(labels)}: {shown}"
        )
    return np.where(np.array(plain) == labels[1], 1.0, -1.0)[:, None], labels


def _tidy(value: Any) -> str:
    """A label as text; numbers that mean the same read the same (1, 1.0)."""
    text = str(value).strip()
    number = _as_number(text)
    return f"{number:g}" if math.isfinite(number) else text


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _span(block: Sequence[str]) -> str:
    return block[0] if len(block) == 1 else f"{block[0]}..{block[-1]}"


def _mapped(path: Path, columns: Sequence[str]) -> list[str]:
    try:
        text = read_text(path)
        if path.suffix.lower() == ".json":
            mapping = parse_json(text, str(path))
        else:
            rows = csv.reader(io.StringIO(text, newline=""))
            mapping = {row[0].strip(): row[1].strip() for row in rows if row}
    except UnreadableFile as error:
        raise TableError(f"--groups {error}") from None
    except (csv.Error, IndexError):
        raise TableError(f"--groups {path}: every entry must be a column and its group") from None
    if not isinstance(mapping, dict):
        raise TableError(f"--groups {path}: must map columns to groups, as {{column: group}}")
    missing = [name for name in columns if name not in mapping]
    if missing:
        raise TableError(f"--groups {path}: column {missing[0]!r} has no group{_more(missing)}")
    unknown = [name for name in mapping if name not in columns and name != "column"]
    if unknown:
        raise TableError(f"--groups {path}: {unknown[0]!r} is no column of X{_more(unknown)}")
    return [str(mapping[name]) for name in columns]


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _chosen(target: str | None, header: Sequence[str], path: Path) -> list[int]:
    if not target:
        raise TableError(f"--target is missing: which of {_listed(header)} is it?")
    names = [name.strip() for name in target.split(",")]
    for name in names:
        if name not in header:
            raise TableError(f"{path}: no column is called {name!r}; there are {_listed(header)}")
    if len(set(names)) < len(names):
        raise TableError(f"--target {target}: names a column twice")
    if len(names) == len(header):
        raise TableError(f"{path}: no column is left beside the target")
    return [header.index(name) for name in names]


def _listed(names: Sequence[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(one_line, names[:most])) + rest


def _read_csv(
    path: Path, target: str | None, loss: str
) -> tuple[list[str], Array, list[str], list[list[Any]]]:
    try:
        text = read_text(path)
    except UnreadableFile as error:
        raise TableError(str(error)) from None
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        read = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num}: {error}") from None
    if not read:
        raise TableError(f"{path}: the file is empty")
    header = [name.strip() for name in read[0][1]]
    for name, count in Counter(header).items():
        if not name or count > 1:
            what = f"{name!r} names {count} columns" if name else "a column has no name"
            raise TableError(f"{path}: {what}")
    at = _chosen(target, header, path)
    lines, rows = [line for line, _ in read[1:]], [row for _, row in read[1:]]
    if not rows:
        raise TableError(f"{path}: there is a header but no data")
    for line, row in read[1:]:
        if len(row) != len(header):
            raise TableError(
                f"{path}, line {line}: {len(row)} values, the header has {len(header)}"
            )
    inside = [j for j in range(len(header)) if j not in at]
    X = _numbers(path, rows, lines, header, inside)
    if loss == "logistic":
        raw: list[list[Any]] = [[row[j] for row in rows] for j in at]
    else:
        raw = [list(column) for column in _numbers(path, rows, lines, header, at).T]
    return [header[j] for j in inside], X, [header[j] for j in at], raw


def _numbers(
    path: Path, rows: list[list[str]], lines: list[int], header: list[str], at: list[int]
) -> Array:
    """Some columns as numbers, or an error that names the first cell that is none."""
    found = np.empty((len(rows), len(at)))
    try:
        for i, row in enumerate(rows):
            found[i] = [float(row[j]) for j in at]
        if np.isfinite(found).all():
            return found
    except ValueError:
        pass
    for row, line in zip(rows, lines, strict=True):
        for j in at:
            if not math.isfinite(_as_number(row[j])):
                where = f"{path}, line {line}, column {header[j]!r}"
                if row[j].strip().lower() in ("", "na", "nan", "null", "none"):
                    raise TableError(
                        f"{where}: the value is missing; fill it in, or leave out the row or the column"
                    )
                raise TableError(
                    f"{where}: {row[j]!r} is not a finite number; encode categories as columns of 0 "
                    "and 1, or leave the column out"
                )
    raise AssertionError("a cell that is no finite number was just seen")


def _read_npz(
    path: Path, target: str | None
) -> tuple[list[str], Array, list[str], list[list[Any]], list[str] | None]:
    try:
        arrays = read_arrays(path)
    except UnreadableFile as error:
        raise TableError(str(error)) from None
    name = target or "y"
    for needed in ("X", name):
        if needed not in arrays:
            raise TableError(f"{path}: no array {needed!r}; there are {_listed(list(arrays))}")
    X, y = arrays["X"], arrays[name]
    if X.ndim != 2 or X.size == 0 or X.dtype.kind not in "fiub":
        raise TableError(f"{path}: X must be numbers of shape (n, p), got {X.dtype} {X.shape}")
    X = X.astype(np.float64)
    if not np.isfinite(X).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(X))[0])
        raise TableError(f"{path}: X[{row}, {column}] is {X[row, column]}, not a finite number")
    if y.ndim not in (1, 2) or len(y) != len(X) or y.size == 0:
        raise TableError(f"{path}: {name} has shape {y.shape}, X has {len(X)} rows")
    y = y.reshape(len(y), -1)
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        row = int(np.argwhere(~np.isfinite(y))[0, 0])
        raise TableError(f"{path}: {name}[{row}] is not a finite number")
    p, q = X.shape[1], y.shape[1]
    columns = _names(path, arrays, "columns", p) or [f"x{j}" for j in range(p)]
    targets = [name] if q == 1 else [f"{name}{o}" for o in range(q)]
    return columns, X, targets, [list(column) for column in y.T], _names(path, arrays, "groups", p)


def _names(path: Path, arrays: dict[str, Any], name: str, count: int) -> list[str] | None:
    if name not in arrays:
        return None
    if arrays[name].shape != (count,):
        raise TableError(
            f"{path}: {name} must have shape ({count},), one for each column of X, "
            f"got {arrays[name].shape}"
        )
    try:
        return [str(value) for value in arrays[name].tolist()]
    except ValueError as error:  # text that is none
        raise TableError(f"{path}: {name}: {error}") from None

"""One's own data as X, y, column names and groups, from any kind of file.

`separated` reads text tables, `columnar` Parquet and Feather, `arrays` npz; `variables` turns columns
into those of X.  Every fault is a `TableError` that names the file, the row and the column.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spr_or.tabular.arrays import read_npz
from spr_or.tabular.columnar import FEATHER, PARQUET, read_columnar
from spr_or.tabular.groups import group_labels, oddities
from spr_or.tabular.preparation import Preparation, Reading
from spr_or.tabular.separated import read_separated
from spr_or.tabular.source import Array, Column, Source, TableError, listed
from spr_or.tabular.variables import (
    Done,
    Variable,
    check_names,
    coded,
    constant,
    fill,
    informative,
    is_index,
    reproductions,
    variable,
    without_words_for_rows,
)
from spr_or.utils.printable import one_line

_LARGEST = 1e150  # of a value: its square is still a float
_TEXT = (".csv", ".tsv", ".txt", ".dat", ".data")
_AS_THEY_STAND = Reading()


class Table(NamedTuple):
    """X (n, p) and y (n, q) in float64, their names, and the group label of each column.

    ``classes`` are the two labels of a logistic target, first -1, then +1; empty for other losses.
    ``weight`` (n,) are the weights of the rows, positive, or None.
    ``notes`` say what was done with the columns, ``warnings`` what looks unintended.
    """

    X: Array
    y: Array
    columns: list[str]
    targets: list[str]
    labels: list[str]
    classes: list[str]
    preparation: Preparation
    notes: list[str]
    warnings: list[str]
    weight: Array | None = None


def read_table(
    path: Path,
    target: str | None,
    groups: str | None,
    loss: str,
    reading: Reading = _AS_THEY_STAND,
    intercept: bool = True,
    kept_equal: Collection[str] | None = None,
    weight: str | None = None,
) -> Table:
    """Read a file.

    Parameters
    ----------
    path : a text table (.csv, .tsv, .txt, .dat, .data; also .gz, .zip), .parquet, .feather or .npz
    target : name of the target column, or several with commas between; npz: of the array, default "y"
    groups : see `group_labels`; None: the file's own groups (npz), else one a column
    loss : "squared" (numbers), "logistic" (two labels) or "poisson" (numbers of at least 0)
    reading : what the user says about the file
    intercept : whether a constant column is of no use
    kept_equal : as `Preparation` has it from an earlier reading; None: decided from the groups
    weight : the column of the weights of the rows, or None; rows of weight 0 are left out

    Raises `TableError`.
    """
    source = read_source(path, target, reading)
    columns, targets, others = _split(path, source, target, reading)
    done = Done(notes=list(source.notes))
    sizes, columns, source = _weights(path, source, columns, weight, reading)
    columns, stored = _used(path, source, columns, reading, done)
    if not columns:
        raise TableError(f"{path}: no column is left beside the target")
    variables = [variable(column, reading.decimal, source.place, path) for column in columns]
    if loss != "squared" and len(targets) != 1:
        raise TableError(
            f"the {loss} loss takes one target, got {listed([t.name for t in targets])}"
        )
    goals = [_goal(path, column, loss, source, reading) for column in targets]
    rows = _complete(path, variables, goals, reading, done)
    if sizes is not None:
        rows &= _weighted(path, sizes, weight, rows, source, done)
        sizes = sizes[rows]
    variables, goals = [v.keep(rows) for v in variables], [g.keep(rows) for g in goals]
    if reading.missing == "mean":
        fill(variables, done)
    if not reading.as_is:
        stay = without_words_for_rows(variables, done)
        if stored is not None:
            stored = [g for v, g in zip(variables, stored, strict=True) if v in stay]
        variables = stay
        if not variables:
            raise TableError(f"{path}: no column is left beside the target")
    names, own = [v.name for v in variables], stored
    if groups is not None or own is None:
        own = group_labels(groups, names, others, _numeric(variables))
    warnings = oddities(groups, names, own)
    names, labels, values = coded(variables, own, done)
    X = np.column_stack(values)
    y, classes = _target(goals, loss)
    if not reading.as_is:
        check_names(path, names)
    known = [g.name for g in goals]
    _check_sizes(path, np.column_stack([X, y]), [*names, *known], source, rows)
    if reading.as_is and source.by_columns:  # older results hash sums in this order
        X = np.asfortranarray(X)
    if not reading.as_is:
        at = informative(names, labels, X, intercept, kept_equal, done)
        X = np.ascontiguousarray(X[:, at])
        names, labels = [names[j] for j in at], [labels[j] for j in at]
    for name in (*names, *known, *labels, *classes):
        _check_name(path, name)
    if intercept and constant(y).all():
        done.notes.append(
            "the target does not vary: there is nothing to explain, and no group is kept"
        )
    warnings += reproductions(names, X, known, y)
    record = Preparation(
        asked=reading, rows_left_out=int((~rows).sum()), set_aside=done.set_aside,
        coded=done.coded, filled=done.filled, kept_equal=done.kept_equal,
    )  # fmt: skip
    return Table(X, y, names, known, labels, classes, record, done.notes, warnings, sizes)


def read_source(
    path: Path, target: str | None, reading: Reading, with_target: bool = True
) -> Source:
    """The columns of a file of any kind; raises `TableError`.

    ``target`` names the array of the target in an npz file, which needs one unless ``with_target`` is false.
    """
    if not path.is_file():
        what = "not a regular file" if path.exists() and not path.is_dir() else "no such file"
        raise TableError(f"{path}: {what}")
    inner = path.name.lower().removesuffix(".gz").removesuffix(".zip")
    kind = Path(inner).suffix
    if inner == path.name.lower() and kind == ".npz":
        return read_npz(path, target, with_target)
    if inner == path.name.lower() and kind in (*PARQUET, *FEATHER):
        return read_columnar(path)
    if kind in _TEXT or (inner != path.name.lower() and not kind):
        return read_separated(path, reading, target)
    raise TableError(
        f"{path}: the name must end in .csv, .tsv, .txt (also with .gz or .zip), .parquet, .feather "
        "or .npz, to say what it is"
    )


def _split(
    path: Path, source: Source, target: str | None, reading: Reading
) -> tuple[list[Column], list[Column], list[str]]:
    """Columns, targets, and the names of all columns."""
    header = [column.name for column in source.columns]
    if not reading.as_is:
        check_names(path, [name for name in header if name])
    if source.targets is not None:
        return source.columns, source.targets, header
    if not target:
        raise TableError(f"--target is missing: which of {listed([n for n in header if n])} is it?")
    named = _named(target, header, "--target", path)
    if len(set(named)) < len(named):
        raise TableError(f"--target {target}: names a column twice")
    at = [header.index(name) for name in named]
    left = [column for j, column in enumerate(source.columns) if j not in at]
    return left, [source.columns[j] for j in at], header


def _weights(
    path: Path, source: Source, columns: list[Column], weight: str | None, reading: Reading
) -> tuple[Array | None, list[Column], Source]:
    """The numbers of the column ``weight`` (n,), and the columns and the source without it."""
    if weight is None:
        return None, columns, source
    names = [column.name for column in columns]
    (name,) = _named(weight, names, "--weights", path)[:1]
    at = names.index(name)
    found = variable(columns[at], reading.decimal, source.place, path)
    if found.numbers is None:
        raise TableError(f"{path}: --weights {one_line(name)}: the weights of rows must be numbers")
    left = columns[:at] + columns[at + 1 :]
    if source.groups is not None:
        source = source._replace(groups=source.groups[:at] + source.groups[at + 1 :])
    return found.numbers, left, source


def _weighted(
    path: Path, sizes: Array, name: str | None, rows: np.ndarray, source: Source, done: Done
) -> np.ndarray:
    """The rows with a positive weight, (n,); a note says how many have none."""
    wrong = rows & ~((sizes >= 0) & (sizes <= _LARGEST))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise TableError(
            f"{path}, {source.place(row)}: --weights {one_line(str(name))}: a weight must be 0 or positive, "
            f"got {sizes[row]:g}"
        )
    none = rows & (sizes == 0)
    if none.any():
        done.notes.append(f"{int(none.sum())} rows of weight 0 are left out")
    if none.sum() == rows.sum():
        raise TableError(f"{path}: --weights {one_line(str(name))}: every row has weight 0")
    return ~none


def _named(text: str, header: Sequence[str], option: str, path: Path) -> list[str]:
    """The columns that an option names: one whose name this is in full, or a list with commas, in
    which a name with a comma stands in quotes."""
    if text in header:
        return [text]
    try:
        parts = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise TableError(f"{option} {text!r}: {error}") from None
    names = [text.strip()] if text.strip() in header else [part.strip() for part in parts]
    for name in names:
        if not name or name not in header:
            shown = listed([known for known in header if known])
            raise TableError(f"{path}: {option}: no column is called {name!r}; there are {shown}")
    return names


def _used(
    path: Path, source: Source, columns: list[Column], reading: Reading, done: Done
) -> tuple[list[Column], list[str] | None]:
    """The columns that may enter, with their stored groups; a saved index and empty columns go."""
    header = [column.name for column in columns]
    wanted = None
    if reading.columns is not None:
        wanted = _named(reading.columns, header, "--columns", path)
    dropped = [] if reading.drop is None else _named(reading.drop, header, "--drop", path)
    left, groups = [], []
    indices = 0  # a frame that was saved, read and saved again has two
    for j, column in enumerate(columns):
        if column.name in dropped or (wanted is not None and column.name not in wanted):
            continue
        shown = column._replace(name=column.name or f"(column {j + 1})")
        if not reading.as_is and wanted is None:
            first = source.targets is None and column is source.columns[indices]
            declared = source.row_names is not None and column.name == source.row_names
            if is_index(column, first, declared):
                done.aside(shown.name, "is a saved index")
                indices += 1
                continue
        if not reading.as_is and all(v is None or v != v for v in column.values):
            done.aside(shown.name, "has no values")
            continue
        if not column.name:
            raise TableError(f"{path}: column {j + 1} has no name; give it one in the file")
        left.append(column)
        if source.groups is not None:
            groups.append(source.groups[j])
    return left, groups if source.groups is not None else None


def _goal(path: Path, column: Column, loss: str, source: Source, reading: Reading) -> Variable:
    """A target: numbers, or for the logistic loss labels."""
    if loss == "logistic":
        return Variable(column.name, None, [_label(value) for value in column.values])
    goal = variable(column, reading.decimal, source.place, path)
    if goal.numbers is None:
        raise TableError(
            f"{path}: the {loss} loss takes targets of numbers, got {one_line(column.name)}"
        )
    if loss == "poisson" and bool((goal.numbers < 0).any()):
        least = float(np.nanmin(goal.numbers))
        raise TableError(
            f"{path}: the poisson loss takes a target of at least 0, {one_line(column.name)} has {least:g}"
        )
    return goal


def _complete(
    path: Path, variables: list[Variable], goals: list[Variable], reading: Reading, done: Done
) -> np.ndarray:
    """The rows that are used, (n,); an error where a value is missing and nobody said what to do."""
    gaps = {one.name: one.gaps for one in (*variables, *goals)}
    holes = {name: int(where.sum()) for name, where in gaps.items() if where.any()}
    considered = goals if reading.missing == "mean" else [*variables, *goals]
    used = ~np.any([gaps[one.name] for one in considered], axis=0)
    n, left = len(used), int(used.sum())
    if holes and reading.missing is None:
        shown = ", ".join(f"{one_line(name)} {count}" for name, count in list(holes.items())[:20])
        more = f" and {len(holes) - 20} more columns" if len(holes) > 20 else ""
        raise TableError(
            f"{path}: values are missing, by column: {shown}{more}; --missing drop uses the {left} "
            f"of {n} rows without gaps, --missing mean puts the mean of its column in each gap"
        )
    if left == 0:
        raise TableError(f"{path}: no row is left, each one has a missing value")
    if left < n:
        what = "target" if reading.missing == "mean" else "value"
        done.notes.append(f"{left} of {n} rows are used, the others have a missing {what}")
    return used


def _numeric(variables: list[Variable]) -> Array:
    """The variables of numbers as columns, NaN for words."""
    rows = len(variables[0].gaps)
    words = np.full(rows, np.nan)
    return np.column_stack([words if v.numbers is None else v.numbers for v in variables])


def _target(goals: list[Variable], loss: str) -> tuple[Array, list[str]]:
    if loss == "logistic":
        return two_classes([str(word) for word in goals[0].words], goals[0].name)
    return np.column_stack([goal.numbers for goal in goals if goal.numbers is not None]), []


def two_classes(labels: Sequence[str], name: str) -> tuple[Array, list[str]]:
    """A target of two labels as -1/+1, (n, 1), and the labels; 0/1 and -1/+1 keep their order.

    >>> two_classes(["no", "yes", "no"], "ill")[1]
    ['no', 'yes']
    """
    found = sorted(set(labels), key=lambda label: (_as_number(label), label))
    if len(found) != 2:
        raise TableError(
            f"the logistic loss needs a target of exactly two labels; {name!r} has {len(found)}: "
            f"{listed(found)}"
        )
    return np.where(np.array(labels, dtype=object) == found[1], 1.0, -1.0)[:, None], found


def _label(value: str | float | None) -> str | None:
    """A label as text in full; whole numbers that mean the same read the same (1, 1.0)."""
    if value is None or value != value:
        return None
    text = str(value) if isinstance(value, str) else f"{float(value)!r}"
    whole = re.fullmatch(r"[+]?(-?(?:0|[1-9]\d*))(?:\.0*)?", text)
    return whole[1] if whole else text


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _check_sizes(
    path: Path, values: Array, names: Sequence[str], source: Source, rows: np.ndarray
) -> None:
    """Sums of squares have to be finite, too; ``not`` and ``<=`` so that a NaN is refused."""
    large = ~(np.abs(values) <= _LARGEST)
    if large.any():
        row, column = (int(i) for i in np.argwhere(large)[0])
        raise TableError(
            f"{path}, {source.place(int(np.flatnonzero(rows)[row]))}, column {names[column]!r}: "
            f"{values[row, column]:g} is too large, {_LARGEST:g} is the most; give the column in "
            "another unit"
        )


def _check_name(path: Path, name: str) -> None:
    """A name is written into files in UTF-8 and read back."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise TableError(f"{path}: the name {name!r} is no text in Unicode") from None
    if "\0" in name:
        raise TableError(f"{path}: the name {name!r} holds a NUL character")

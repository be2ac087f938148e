"""The groups of columns, as the user asks for them, and what is odd about them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from spr_or.tabular.source import Array, TableError, listed
from spr_or.utils.untrusted import UnreadableFile, parse_json, read_text


def entities_of(labels: Sequence[str]) -> dict[str, list[int]]:
    """The columns of each group, in the order in which the groups first occur.

    >>> entities_of(["age", "colour", "age"])
    {'age': [0, 2], 'colour': [1]}
    """
    found: dict[str, list[int]] = {}
    for column, label in enumerate(labels):
        found.setdefault(label, []).append(column)
    return found


def group_labels(
    spec: str | None,
    columns: Sequence[str],
    others: Sequence[str] = (),
    values: Array | None = None,
) -> list[str]:
    """The group of each column, as the user asked for them.

    Parameters
    ----------
    spec : None, each column its own; a number, so many consecutive columns a group; a JSON file
        {column: group}; a CSV file with rows column,group; a separator, then a group is what stands
        before its last occurrence in the name; or "auto", see `auto_labels`
    columns : names (p,)
    others : names that a file of groups may hold as well, of columns that are not used
    values : (n, p), for "auto"

    Raises `TableError`.

    >>> group_labels("_", ["age", "colour_red", "colour_blue"])
    ['age', 'colour', 'colour']
    >>> group_labels("2", ["a", "b", "c"])
    ['a..b', 'a..b', 'c']
    """
    if spec is None:
        return list(columns)
    if spec == "auto" and values is not None:
        return auto_labels(columns, values)
    if spec.lstrip("-").isdigit():
        size = int(spec)
        if size < 1:
            raise TableError(f"--groups {spec}: a group has at least one column")
        blocks = [columns[start : start + size] for start in range(0, len(columns), size)]
        return [_span(block) for block in blocks for _ in block]
    if Path(spec).suffix.lower() in (".json", ".csv"):
        return _mapped(Path(spec), columns, others)
    if _is_separator(spec):
        if not any(spec in name for name in columns):
            raise TableError(f"--groups {spec!r}: no column has this separator in its name")
        return [name.rpartition(spec)[0] or name for name in columns]
    raise TableError(
        f"--groups {spec!r}: give a number, a separator such as _, auto, or a .json or .csv file"
    )


def auto_labels(columns: Sequence[str], values: Array) -> list[str]:
    """Columns of 0 and 1 whose names begin alike, and of which a row has at most one 1, are the levels
    of one variable and form a group; every other column is its own.

    >>> import numpy as np
    >>> auto_labels(["city_Rome", "city_New_York", "age_1"], np.array([[1, 0, 3.0], [0, 1, 4.0]]))
    ['city', 'city', 'age_1']
    """
    labels = list(columns)
    indicator = ((values == 0) | (values == 1)).all(0)
    begins: dict[str, list[int]] = {}
    for j, name in enumerate(columns):
        start = re.match(r"(.+?)[_=.:]", name)
        if start and indicator[j]:
            begins.setdefault(start[1], []).append(j)
    for start_of, members in begins.items():
        if len(members) > 1 and (values[:, members].sum(1) <= 1).all():
            label = start_of if start_of not in columns else f"{start_of}*"
            for j in members:
                labels[j] = label
    return labels


def oddities(spec: str | None, columns: Sequence[str], labels: Sequence[str]) -> list[str]:
    """What looks unintended about groups from a number or a separator, in sentences.

    >>> oddities("_", ["city_Rome", "city_New_York", "income", "income_log"],
    ...          ["city", "city_New", "income", "income"])
    ["columns that begin with 'city_' are in several groups: city, city_New", \
"column 'income' is in one group with income_log"]
    """
    if spec is None:
        return []
    if spec.isdigit():
        size, rest = int(spec), len(columns) % int(spec)
        what = f"{len(columns)} columns in groups of {size}: the last group has {rest}"
        return [what] if rest else []
    if not _is_separator(spec):
        return []
    found = []
    begins: dict[str, list[str]] = {}
    for name, label in zip(columns, labels, strict=True):
        start, mark, _ = name.partition(spec)
        if mark and start and label not in begins.setdefault(start, []):
            begins[start].append(label)
    for start, several in begins.items():
        if len(several) > 1:
            found.append(
                f"columns that begin with {start + spec!r} are in several groups: {listed(several)}"
            )
    groups = entities_of(labels)
    for name in columns:
        same = [columns[j] for j in groups.get(name, []) if columns[j] != name]
        if spec not in name.strip(spec) and same:
            found.append(f"column {name!r} is in one group with {listed(same)}")
    return found


def _is_separator(spec: str) -> bool:
    return bool(spec) and not any(c.isalnum() for c in spec)


def _span(block: Sequence[str]) -> str:
    return block[0] if len(block) == 1 else f"{block[0]}..{block[-1]}"


def _mapped(path: Path, columns: Sequence[str], others: Sequence[str]) -> list[str]:
    try:
        text = read_text(path)
        if path.suffix.lower() == ".json":
            mapping = parse_json(text, str(path))
        else:
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
            mapping = {row[0].strip(): row[1].strip() for row in rows}
            if len(mapping) < len(rows):
                raise TableError(f"--groups {path}: a column is named twice")
    except UnreadableFile as error:
        raise TableError(f"--groups {error}") from None
    except (csv.Error, IndexError):
        raise TableError(f"--groups {path}: every entry must be a column and its group") from None
    if not isinstance(mapping, dict):
        raise TableError(f"--groups {path}: must map columns to groups, as {{column: group}}")
    missing = [name for name in columns if name not in mapping]
    if missing:
        raise TableError(f"--groups {path}: column {missing[0]!r} has no group{_more(missing)}")
    known = {*columns, *others, "column"}
    unknown = [name for name in mapping if name not in known]
    if unknown:
        raise TableError(f"--groups {path}: {unknown[0]!r} is no column of X{_more(unknown)}")
    return [str(mapping[name]) for name in columns]


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""

"""What the estimators are given, in the form that `posed` takes: groups and their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from spr_or.formulations.checked_input import finite_number
from spr_or.tabular.groups import group_labels

_WORDS: dict[str, Callable[[int], float]] = {
    "uniform": lambda size: 1.0,
    "size": float,
    "root": math.sqrt,
}


def groups_of(groups: Any, names: Sequence[str] | None, p: int) -> dict[Hashable, list[int]]:
    """The columns of each group, by label, in the order in which the labels first occur.

    Parameters
    ----------
    groups : None, each column a group by its name; a number k, k consecutive columns a group; a label for
        each column; or a mapping from columns (names, or numbers where there are none) to labels, in
        which a column without an entry is a group of its own
    names : of the p columns, if they have any

    Raises ``ValueError``.

    >>> groups_of({"red": "colour", "blue": "colour"}, ["age", "red", "blue"], 3)
    {'age': [0], 'colour': [1, 2]}
    >>> groups_of([7, 7, 8], None, 3)
    {7: [0, 1], 8: [2]}
    >>> groups_of(2, None, 3)
    {'x0..x1': [0, 1], 'x2': [2]}
    """
    own: Sequence[Hashable] = [f"x{j}" for j in range(p)] if names is None else names
    if groups is None:
        labels = list(own)
    elif isinstance(groups, Mapping):
        keys: Sequence[Hashable] = range(p) if names is None else names
        unknown = [key for key in groups if key not in keys]
        if unknown:
            what = f"the columns are {p} without names" if names is None else "X has no such column"
            raise ValueError(f"groups names a column {unknown[0]!r}: {what}")
        labels = [groups.get(key, name) for key, name in zip(keys, own, strict=True)]
    elif isinstance(groups, Integral) and not isinstance(groups, bool) and int(groups) > 0:
        labels = list(group_labels(str(int(groups)), [str(name) for name in own]))
    elif isinstance(groups, str) or not np.iterable(groups) or len(labels := _plain(groups)) != p:
        raise ValueError(
            f"groups must be None, a number of consecutive columns, {p} labels (one for each column) or a "
            f"mapping of columns to labels, got {groups!r}"
        )
    found: dict[Hashable, list[int]] = {}
    for column, label in enumerate(labels):
        found.setdefault(label, []).append(column)
    return found


def _plain(labels: Any) -> list[Hashable]:
    """Labels as plain values: 0-dimensional NumPy values compare, but print otherwise."""
    return list(np.asarray(labels, dtype=object).tolist())


def weights_of(group_weights: Any, groups: Mapping[Hashable, Sequence[int]]) -> list[float]:
    """The weight u of each group: at least 0, in the order of ``groups``.

    Parameters
    ----------
    group_weights : "uniform" (1), "size" (its number of columns), "root" (the root of that), a number for
        each group, or a mapping from labels to numbers (1 where it has no entry)

    Raises ``ValueError``.

    >>> weights_of("size", {"a": [0], "b": [1, 2]}), weights_of({"b": 0}, {"a": [0], "b": [1, 2]})
    ([1.0, 2.0], [1.0, 0.0])
    """
    if isinstance(group_weights, Mapping):
        unknown = [label for label in group_weights if label not in groups]
        if unknown:
            raise ValueError(f"group_weights names a group {unknown[0]!r}, and there is none")
        found = [group_weights.get(label, 1.0) for label in groups]
    elif isinstance(group_weights, str):
        if group_weights not in _WORDS:
            raise ValueError(
                f"group_weights must be {', '.join(_WORDS)}, numbers or a mapping, got {group_weights!r}"
            )
        found = [_WORDS[group_weights](len(own)) for own in groups.values()]
    elif isinstance(group_weights, Iterable):
        found = list(group_weights)
    else:
        raise ValueError(
            f"group_weights must be {', '.join(_WORDS)}, a number for each group or a mapping, got "
            f"{group_weights!r}"
        )
    if len(found) != len(groups):
        raise ValueError(
            f"group_weights has {len(found)} numbers, and there are {len(groups)} groups"
        )
    numbers = [finite_number(value, "group_weights") for value in found]
    if min(numbers) < 0 or max(numbers) == 0:
        raise ValueError(f"group_weights must not be negative, and not all may be 0, got {numbers}")
    return numbers

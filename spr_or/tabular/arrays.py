"""An npz file as columns: arrays ``X`` (n, p) and ``y`` (n,) or (n, q), and optionally ``columns`` (p,)
names and ``groups`` (p,) labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spr_or.tabular.source import Column, Source, TableError, listed
from spr_or.utils.untrusted import UnreadableFile, read_arrays


def read_npz(path: Path, target: str | None, with_target: bool = True) -> Source:
    """The columns of an npz file; ``target`` names the array of the target, if it is read.

    Raises `TableError`.
    """
    try:
        arrays = read_arrays(path)
    except UnreadableFile as error:
        raise TableError(str(error)) from None
    name = target or "y"
    for needed in ("X", name) if with_target else ("X",):
        if needed not in arrays:
            raise TableError(f"{path}: no array {needed!r}; there are {listed(list(arrays))}")
    X = arrays["X"]
    if X.ndim != 2 or X.size == 0 or X.dtype.kind not in "fiub":
        raise TableError(f"{path}: X must be numbers of shape (n, p), got {X.dtype} {X.shape}")
    p = X.shape[1]
    names = _names(path, arrays, "columns", p) or [f"x{j}" for j in range(p)]
    columns = [Column(n, x) for n, x in zip(names, X.astype(np.float64).T, strict=True)]
    if not with_target:
        return Source(columns)
    y = arrays[name]
    if y.ndim not in (1, 2) or len(y) != len(X) or y.size == 0:
        raise TableError(f"{path}: {name} has shape {y.shape}, X has {len(X)} rows")
    y = y.reshape(len(y), -1)
    q = y.shape[1]
    named = [name] if q == 1 else [f"{name}{o}" for o in range(q)]
    targets = [_target(n, values) for n, values in zip(named, y.T, strict=True)]
    groups = _names(path, arrays, "groups", p)
    by_columns = X.flags.f_contiguous and not X.flags.c_contiguous
    return Source(columns, targets=targets, groups=groups, by_columns=by_columns)


def _target(name: str, values: Any) -> Column:
    if values.dtype.kind in "fiu":
        return Column(name, values.astype(np.float64))
    return Column(name, [str(value) for value in values.tolist()])


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

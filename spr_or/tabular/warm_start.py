"""Weights to begin a search with, from a stored result for the same columns, or for some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from spr_or.tabular.predictions import read_model, result_in
from spr_or.tabular.prepare import OwnData
from spr_or.tabular.source import TableError, listed
from spr_or.tabular.stored_result import read_result


def start_from(folder: Path, data: OwnData) -> Tensor:
    """The weights of the result in ``folder`` as weights (P,) of the problem of ``data``.

    Columns are matched by name; those that the result does not have begin with zero.  Raises `TableError`
    where there is no result, or it shares no column or has another number of targets.
    """
    folder = result_in(folder)
    model = read_model(folder, read_result(folder))
    q = data.table.y.shape[1]
    if model.weights.shape[1] != q:
        raise TableError(
            f"--warm-start {folder}: the result has {model.weights.shape[1]} targets, the data have {q}"
        )
    known = dict(zip(model.columns, model.weights, strict=True))
    columns = data.table.columns
    if not any(name in known for name in columns):
        raise TableError(
            f"--warm-start {folder}: the result has none of the columns {listed(columns)}"
        )
    W = np.array([known.get(name, np.zeros(q)) for name in columns])
    return data.scaling.theta(W, model.intercept if data.free_intercept else None)

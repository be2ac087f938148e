"""One's own data as a sparse training problem, and its weights back in terms of the columns.

An intercept that is not penalised is exact for the squared loss: the best one is
mean(y) - mean(x) W, which leaves the problem without an intercept on centred columns and targets.
The logistic loss has no such form, and gets no intercept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.tabular.groups import entities_of
from spr_or.tabular.preparation import Reading
from spr_or.tabular.read import Table, read_table
from spr_or.tabular.source import Array, TableError
from spr_or.tabular.variables import constant

_AS_THEY_STAND = Reading()


@dataclass(frozen=True, eq=False)
class OwnData:
    """A table, and how its columns enter the problem: (x - centre) / scale, y - y_centre.

    centre, scale : (p,); y_centre : (q,); zeros and ones where nothing is done
    """

    path: Path
    target: str | None
    sha256: str
    table: Table
    loss: str
    intercept: bool
    standardise: bool
    centre: Array
    scale: Array
    y_centre: Array

    @property
    def groups(self) -> dict[str, list[int]]:
        """The columns of each group; entity i of the problem is the i-th of them."""
        return entities_of(self.table.labels)

    def problem(self, lam: float, alpha: float, M: Any) -> SparseTrainingProblem:
        """The problem on centred and scaled data; raises ``ValueError`` as `linear` does."""
        X = (self.table.X - self.centre) / self.scale
        return SparseTrainingProblem.linear(
            X, self.table.y - self.y_centre, self.groups.values(), self.loss,
            lam=lam, alpha=alpha, M=M, name=self.path.stem,
        )  # fmt: skip

    def weights(self, theta: Tensor) -> tuple[Array, Array]:
        """theta (P,) of the problem as weights (p, q) of the columns as they are, and intercepts (q,)."""
        W = theta.numpy().reshape(len(self.scale), -1) / self.scale[:, None]
        return W, self.y_centre - self.centre @ W


def prepare(
    path: Path,
    target: str | None,
    groups: str | list[str] | None,
    loss: str,
    intercept: bool | None = None,
    standardise: bool = False,
    reading: Reading = _AS_THEY_STAND,
    kept_equal: Collection[str] | None = None,
) -> OwnData:
    """Read a file and decide how its columns enter the problem.

    Parameters
    ----------
    groups : as `spr_or.tabular.groups.group_labels` takes it, or the label of each column
    loss : "squared" or "logistic"
    intercept : None: with the squared loss, not with the logistic
    standardise : divide each column by its root mean square (after centring: its standard deviation)
    reading, kept_equal : see `spr_or.tabular.read.read_table`

    Raises `TableError`.
    """
    if loss not in ("squared", "logistic"):
        raise TableError(f"--loss must be squared or logistic, got {loss!r}")
    if intercept and loss == "logistic":
        raise TableError(
            "--intercept: only the squared loss can take one without a penalty; for the logistic "
            "loss add a column of ones, which is penalised as any other"
        )
    centred = loss == "squared" if intercept is None else intercept
    table = read_table(
        path,
        target,
        groups if isinstance(groups, str) else None,
        loss,
        reading,
        centred,
        kept_equal,
    )
    if isinstance(groups, list):
        if len(groups) != len(table.columns):
            raise TableError(
                f"{path}: {len(table.columns)} columns, but {len(groups)} group labels"
            )
        table = table._replace(labels=groups)
    X, y = table.X, table.y
    centre, scale, y_centre = np.zeros(X.shape[1]), np.ones(X.shape[1]), np.zeros(y.shape[1])
    if centred:
        centre, y_centre = X.mean(0), y.mean(0)
    if centred and not reading.as_is:  # what does not vary is exactly zero then
        centre = np.where(constant(X), X[0], centre)
        y_centre = np.where(constant(y), y[0], y_centre)
    if standardise:
        scale = np.sqrt(np.square(X - centre).mean(0))
        scale[scale == 0] = 1.0  # only where no column varies are such columns left
    digest = file_hash(path)
    return OwnData(path, target, digest, table, loss, centred, standardise, centre, scale, y_centre)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def r_squared(data: OwnData, problem: SparseTrainingProblem, theta: Tensor) -> float:
    """1 - loss / loss of the best constant prediction, with the squared loss and an intercept."""
    zero = float(problem.loss_value(torch.zeros_like(theta)))
    return 1 - float(problem.loss_value(theta)) / zero if zero > 0 else 0.0

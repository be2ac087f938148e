"""One's own data as a sparse training problem, and its weights back in terms of the columns.

An intercept that is not penalised is exact for the squared loss by centring: the best one is
mean(y) - mean(x) W, which leaves the problem without an intercept on centred columns and targets.  With
weights of rows the means are weighted.  For the other losses it is a free column of ones.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.data import LOSSES
from spr_or.proof.weight_bounds import intercept_bound
from spr_or.tabular.groups import entities_of
from spr_or.tabular.model_rules import Entities, ModelRules, entities_under
from spr_or.tabular.preparation import Reading
from spr_or.tabular.read import Table, read_table
from spr_or.tabular.scaling import Scaling, scaling
from spr_or.tabular.source import Array, TableError
from spr_or.utils.files import file_hash

_AS_THEY_STAND = Reading()
_NO_RULES = ModelRules()


@dataclass(frozen=True, eq=False)
class OwnData:
    """A table, and how its columns enter the problem: (x - centre) / scale, (y - y_centre) / y_scale.

    centre, scale : (p,); y_centre, y_scale : (q,); zeros and ones where nothing is done
    """

    path: Path
    target: str | None
    sha256: str
    table: Table
    loss: str
    intercept: bool
    standardise: bool
    scaling: Scaling
    rules: ModelRules = _NO_RULES
    scale_target: bool = True

    @cached_property
    def entities(self) -> Entities:
        """How the groups enter; entity i of the problem is the i-th penalised group."""
        return entities_under(self.rules, entities_of(self.table.labels), self.table.columns)

    @property
    def groups(self) -> dict[str, list[int]]:
        """The columns of each penalised group."""
        return self.entities.groups

    @property
    def free_intercept(self) -> bool:
        """Whether the intercept is a free column of ones, the last of the problem's."""
        return self.intercept and self.loss != "squared"

    def problem(
        self, lam: float, alpha: float, M: Any, M_free: float | None = None
    ) -> SparseTrainingProblem:
        """The problem on centred and scaled data; raises ``ValueError`` as `linear` does.

        ``M_free`` None: an intercept gets a bound that cuts off none for this M, free groups the largest M.
        """
        how = self.scaling
        X, y = how.entered(self.table.X, self.table.y, self.free_intercept)
        free = list(self.entities.free)
        if self.free_intercept:
            p = len(how.scale)
            free.append(p)
            if M_free is None:
                reach = np.abs(X[:, :p]).sum(1) * np.max(M)
                bound = intercept_bound(reach, y, self.table.weight, loss=self.loss)
                M_free = max(float(np.max(M)), bound)
        return SparseTrainingProblem.linear(
            X, y, self.groups.values(), self.loss, lam=lam, alpha=alpha, M=M, M_free=M_free, free=free,
            sample_weight=self.table.weight, name=self.path.stem, **self.entities.settings,
        )  # fmt: skip

    def weights(self, theta: Tensor) -> tuple[Array, Array]:
        """theta (P,) of the problem as weights (p, q) of the columns as they are, and intercepts (q,)."""
        return self.scaling.weights(theta)


def prepare(
    path: Path,
    target: str | None,
    groups: str | list[str] | None,
    loss: str,
    intercept: bool = True,
    standardise: bool = False,
    reading: Reading = _AS_THEY_STAND,
    kept_equal: Collection[str] | None = None,
    rules: ModelRules = _NO_RULES,
    scale_target: bool = True,
) -> OwnData:
    """Read a file and decide how its columns enter the problem.

    Parameters
    ----------
    groups : as `spr_or.tabular.groups.group_labels` takes it, or the label of each column
    loss : one of `LOSSES`
    intercept : one that is not penalised
    standardise : divide each column by its root mean square (after centring: its standard deviation), and
        with ``scale_target`` the target of a squared loss as well
    reading, kept_equal : see `spr_or.tabular.read.read_table`
    rules : what is asked of the model beside its penalty

    Raises `TableError`.
    """
    if loss not in LOSSES:
        raise TableError(f"--loss must be squared, logistic or poisson, got {loss!r}")
    table = read_table(
        path,
        target,
        groups if isinstance(groups, str) else None,
        loss,
        reading,
        intercept,
        kept_equal,
        rules.sample_weight,
    )
    if isinstance(groups, list):
        if len(groups) != len(table.columns):
            raise TableError(
                f"{path}: {len(table.columns)} columns, but {len(groups)} group labels"
            )
        table = table._replace(labels=groups)
    how = scaling(
        table.X, table.y, table.weight, centred=intercept, standardise=standardise,
        squared=loss == "squared", scale_target=scale_target, exact_zeros=not reading.as_is,
    )  # fmt: skip
    digest = file_hash(path)
    data = OwnData(
        path, target, digest, table, loss, intercept, standardise, how, rules, scale_target
    )
    _ = data.entities  # refuses names that there are not
    return data


def r_squared(data: OwnData, problem: SparseTrainingProblem, theta: Tensor) -> float:
    """1 - loss / loss of the best constant prediction, with the squared loss and an intercept."""
    zero = float(problem.loss_value(torch.zeros_like(theta)))
    return 1 - float(problem.loss_value(theta)) / zero if zero > 0 else 0.0

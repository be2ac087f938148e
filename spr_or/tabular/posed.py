"""Arrays as a sparse training problem: centred, scaled and weighted; and its weights back.

`Model` says what is asked apart from lambda.  The estimators and cross-validation pose their problems here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from spr_or.certified_solver.derived_m import solve_without_bounds
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import ProofCertificate
from spr_or.tabular.scaling import Scaling, scaling
from spr_or.tabular.source import Array


@dataclass(frozen=True)
class Model:
    """What is asked of a model, apart from data and lambda.

    loss : "squared", "logistic" or "poisson"
    groups : the columns of each penalised group, by label
    free : the columns of the others
    settings : u, max_entities and nonnegative, as `SparseTrainingProblem.linear` takes them
    intercept, standardise : as for `posed`
    gap, time_limit : of each solve
    """

    loss: str
    groups: Mapping[Any, list[int]]
    free: list[int] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    alpha: float = 0.1
    intercept: bool = True
    standardise: bool = True
    gap: float = 1e-4
    time_limit: float | None = None


class Posed(NamedTuple):
    """A problem (its lambda is 1), and how the data enter it."""

    problem: SparseTrainingProblem
    scaling: Scaling


def posed(X: Array, y: Array, model: Model, sample_weight: Array | None = None) -> Posed:
    """The problem of a model on data.

    Parameters
    ----------
    X, y : (n, p) and (n, q); y is -1 or +1 with the logistic loss, at least 0 with the Poisson
    sample_weight : (n,), at least 0; rows of weight 0 are left out.  All means and spreads are weighted

    An intercept comes from centring columns and targets with the squared loss, and is a free column of
    ones, the last one, with the others.  ``model.standardise`` divides the columns, and the targets of the
    squared loss, by their root mean square: lambda is then in units of the target's variance.  Raises
    ``ValueError`` as `SparseTrainingProblem.linear` does.

    >>> X, y = np.array([[1.0], [3.0]]), np.array([[10.0], [30.0]])
    >>> posed(X, y, Model("squared", {"x": [0]})).problem.X.tolist()
    [[-1.0], [1.0]]
    """
    weight = np.ones(len(X)) if sample_weight is None else sample_weight
    if not weight.all():
        X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
    if not len(X):
        raise ValueError("sample_weight is 0 everywhere: there is no sample to fit")
    shares = weight if np.ptp(weight) > 0 else None
    squared = model.loss == "squared"
    how = scaling(
        X, y, shares, centred=model.intercept, standardise=model.standardise, squared=squared
    )
    free_intercept = model.intercept and not squared
    A, b = how.entered(X, y, free_intercept)
    free = [*model.free, X.shape[1]] if free_intercept else model.free
    problem = SparseTrainingProblem.linear(
        A, b, model.groups.values(), model.loss, lam=1.0,
        alpha=model.alpha, M=1.0, free=free, sample_weight=shares, **model.settings,
    )  # fmt: skip
    return Posed(problem, how)


def solved(
    problem: SparseTrainingProblem, lam: float, model: Model, start: Tensor | None = None
) -> ProofCertificate:
    """The problem at lambda, with an M that cuts off no optimum.

    Ctrl-C ends the search and is raised again.
    """
    at = dataclasses.replace(problem, lam=lam)
    certificate, _ = solve_without_bounds(at, model.gap, model.time_limit, start=start)
    if certificate.status == "interrupted":
        raise KeyboardInterrupt
    return certificate

"""lambda and alpha chosen by cross-validation or an information criterion, along certified paths.

The whole data and every fold get a path over lambda, largest first, each solution the start of the next.
Every fold is centred and scaled by itself, so that lambda means the same in all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spr_or.formulations.losses import LOSSES
from spr_or.proof.certificate import ProofCertificate
from spr_or.tabular.choice_rule import criteria
from spr_or.tabular.lambda_values import lambdas
from spr_or.tabular.posed import Model, Posed, posed, solved
from spr_or.tabular.results import outcome
from spr_or.tabular.source import Array
from spr_or.utils.files import write_csv

Rows = NDArray[np.int64]


class Candidate(NamedTuple):
    """One lambda and alpha: the certificate on the whole data, and what speaks for it.

    losses : held-out mean losses (folds,), in units of the data; empty without cross-validation
    bic, ebic : information criteria on the whole data
    """

    lam: float
    alpha: float
    certificate: ProofCertificate
    losses: Array
    bic: float
    ebic: float

    @property
    def loss(self) -> float:
        """Mean over the folds."""
        return float(self.losses.mean())

    @property
    def spread(self) -> float:
        """Standard error of `loss`."""
        return float(self.losses.std(ddof=1)) / math.sqrt(len(self.losses))


def path_of(stated: Posed, lams: Sequence[float], model: Model) -> list[ProofCertificate]:
    """A certificate for each lambda, each solution the start of the next."""
    made: list[ProofCertificate] = []
    start: Tensor | None = None
    for lam in lams:
        made.append(solved(stated.problem, lam, model, start))
        start = made[-1].weights
    return made


def held_out(
    X: Array,
    y: Array,
    weight: Array | None,
    model: Model,
    lams: Sequence[float],
    fold: tuple[Rows, Rows],
) -> Array:
    """Mean losses (lams,) on the second rows of ``fold``, of models fitted on the first."""
    fitted_on, tested_on = fold
    inside = None if weight is None else weight[fitted_on]
    stated = posed(X[fitted_on], y[fitted_on], model, inside)
    losses = []
    for certificate in path_of(stated, lams, model):
        W, intercept = stated.scaling.weights(certificate.weights)
        f = torch.from_numpy(X[tested_on] @ W + intercept)
        values = LOSSES[model.loss].value(f, torch.from_numpy(y[tested_on])).numpy()
        losses.append(np.average(values, weights=None if weight is None else weight[tested_on]))
    return np.array(losses)


def candidates(
    X: Array,
    y: Array,
    weight: Array | None,
    models: Sequence[Model],
    lams: int | Sequence[float],
    folds: Sequence[tuple[Rows, Rows]],
    n_jobs: int | None = None,
) -> tuple[list[Candidate], list[Posed]]:
    """All candidates of each model (an alpha each), largest lambda first, and each model's problem.

    Parameters
    ----------
    X, y : (n, p) and (n, q); weight : (n,), positive, or None
    folds : rows to fit on and rows to test on; empty: no cross-validation
    n_jobs : processes that work on paths, as joblib counts them
    """
    from sklearn.utils.parallel import Parallel, delayed

    if not models:
        raise ValueError("alphas is empty: give at least one value")
    whole = [posed(X, y, model, weight) for model in models]
    grids = [lambdas(lams, stated.problem) for stated in whole]
    paths = Parallel(n_jobs=n_jobs)(
        delayed(path_of)(stated, own, model)
        for stated, own, model in zip(whole, grids, models, strict=True)
    )
    losses = fold_losses(X, y, weight, models, grids, folds, n_jobs)
    found = [
        candidate(model, one, held)
        for model, path, own in zip(models, paths, losses, strict=True)
        for one, held in zip(path, own.T, strict=True)
    ]
    return found, whole


def fold_losses(
    X: Array,
    y: Array,
    weight: Array | None,
    models: Sequence[Model],
    grids: Sequence[Sequence[float]],
    folds: Sequence[tuple[Rows, Rows]],
    n_jobs: int | None = None,
) -> list[Array]:
    """Held-out losses (folds, lams) of each model over the lambdas of its grid."""
    from sklearn.utils.parallel import Parallel, delayed

    done = Parallel(n_jobs=n_jobs)(
        delayed(held_out)(X, y, weight, model, own, fold)
        for model, own in zip(models, grids, strict=True)
        for fold in folds
    )
    count = len(folds)
    return [
        np.array(done[i * count : (i + 1) * count]).reshape(count, len(own))
        for i, own in enumerate(grids)
    ]


def candidate(model: Model, certificate: ProofCertificate, losses: Array) -> Candidate:
    """A certificate of the whole data with what speaks for it."""
    bic, ebic = criteria(certificate)
    lam = certificate.problem.lam
    return Candidate(lam, model.alpha, certificate, losses, bic, ebic)


def write_choice(
    path: Path, found: Sequence[Candidate], place: int, labels: Sequence[str], criterion: str
) -> None:
    """Write the candidates as a table (``.csv``), or those of the chosen alpha as a picture.

    ``labels`` are the names of the groups, in the order of the problem.  Raises ``ValueError`` for another
    kind of file.
    """
    if path.suffix.lower() == ".csv":
        rows = [row(one, labels) | {"chosen": i == place} for i, one in enumerate(found)]
        for one in rows:  # a list of names as JSON, so that any name survives
            one["kept"] = json.dumps(one["kept"], ensure_ascii=False)
        write_csv(path, list(rows[0]), rows)
    elif path.suffix.lower() == ".png":
        from spr_or.tabular.choice_figure import choice_over_lambda

        own = [one for one in found if one.alpha == found[place].alpha]
        choice_over_lambda(own, own.index(found[place]), labels, criterion, path)
    else:
        raise ValueError(f"{path}: the name must end in .csv or .png")


def row(one: Candidate, labels: Sequence[str]) -> dict[str, Any]:
    """A candidate in plain values; ``kept`` names groups."""
    used = one.certificate.indicators.bool().tolist()
    kept = [label for label, on in zip(labels, used, strict=True) if on]
    held = {"held_out_loss": one.loss, "standard_error": one.spread} if len(one.losses) else {}
    return {
        "alpha": one.alpha,
        "lam": one.lam,
        "groups_kept": len(kept),
        **held,
        "bic": one.bic,
        "ebic": one.ebic,
        "gap": outcome(one.certificate)["gap"],
        "kept": kept,
    }

"""Estimators that choose lambda and alpha: `GroupL0RegressorCV`, `GroupL0ClassifierCV`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.model_selection import check_cv
from sklearn.utils.validation import check_is_fitted

from spr_or.tabular.choice import candidates, write_choice
from spr_or.tabular.choice_rule import RULES, check_words, chosen
from spr_or.tabular.estimators import Array, Classification, GroupL0, Regression


class _ByChoice(GroupL0):
    """Estimators that choose among the lambdas of a path for each alpha."""

    def __init__(
        self,
        lams: int | Sequence[float] = 20,
        alphas: Sequence[float] = (0.1,),
        *,
        cv: Any = 5,
        criterion: str = "cv",
        rule: str = RULES[0],
        groups: Any = None,
        group_weights: Any = "uniform",
        standardise: bool = True,
        fit_intercept: bool = True,
        max_groups: int | None = None,
        nonnegative: bool = False,
        gap: float = 1e-4,
        time_limit: float | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.lams = lams
        self.alphas = alphas
        self.cv = cv
        self.criterion = criterion
        self.rule = rule
        self.groups = groups
        self.group_weights = group_weights
        self.standardise = standardise
        self.fit_intercept = fit_intercept
        self.max_groups = max_groups
        self.nonnegative = nonnegative
        self.gap = gap
        self.time_limit = time_limit
        self.n_jobs = n_jobs

    def _fit(self, X: Array, y: Array, sample_weight: Array | None) -> tuple[Array, Array]:
        """Solve along the paths and choose; weights (p, q) and intercepts (q,) of the columns as they are."""
        check_words(self.criterion, self.rule)
        if sample_weight is not None:
            rows = sample_weight > 0
            X, y, sample_weight = X[rows], y[rows], sample_weight[rows]
        if not np.iterable(self.alphas) or len(self.alphas) == 0:
            raise ValueError(f"alphas must be a sequence of numbers, got {self.alphas!r}")
        models = [self._model(alpha) for alpha in self.alphas]
        folds = []
        if self.criterion == "cv":
            splitter = check_cv(self.cv, y[:, 0], classifier=is_classifier(self))
            folds = list(splitter.split(X, y[:, 0]))
        self.curve_, stated = candidates(X, y, sample_weight, models, self.lams, folds, self.n_jobs)
        self.chosen_ = chosen(self.curve_, self.criterion, self.rule)
        best = self.curve_[self.chosen_]
        self.alpha_ = best.alpha
        at = list(self.alphas).index(best.alpha)
        return self._keep(models[at], stated[at], best.certificate)

    def save_curve(self, path: str | Path) -> None:
        """Write what was compared, with the groups that each lambda keeps: to a ``.csv`` or a ``.png`` file.

        The picture shows the path of the chosen alpha.
        """
        check_is_fitted(self)
        labels = [str(label) for label in self._model(self.alpha_).groups]
        write_choice(Path(path), self.curve_, self.chosen_, labels, self.criterion)


class GroupL0RegressorCV(Regression, _ByChoice):
    """`GroupL0Regressor` with lambda and alpha chosen along certified paths.

    Parameters (the others as of `GroupL0Regressor`)
    ----------
    lams : int or sequence
        A number of values, from a lambda that empties the model down to a hundredth of it, or the values.
    alphas : sequence
        The values of alpha to compare.
    cv : int, splitter or iterable
        The folds, as everywhere in scikit-learn.
    criterion : str
        ``"cv"``: mean loss on the held-out folds, summed over outputs.  ``"bic"``, ``"ebic"``: the
        least information criterion on the whole data (`spr_or.tabular.choice_rule.criteria`), without folds.
    rule : str
        For ``"cv"``: ``"one standard error"``, the largest lambda whose error is within one standard error
        of the least; or ``"least"``.
    n_jobs : int or None
        Processes that solve the paths of folds.

    Attributes beyond those of `GroupL0Regressor`
    ----------
    alpha_, lam_ : floats, what was chosen
    curve_ : list of `spr_or.tabular.choice.Candidate`, of all alphas and lambdas, each with its certificate
    chosen_ : int, the place of the chosen one in ``curve_``

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 4))
    >>> y = 3 * X[:, 0] + X[:, 2] + 0.5 * rng.normal(size=60)
    >>> model = GroupL0RegressorCV(lams=6, cv=3).fit(X, y)
    >>> model.groups_kept_, len(model.curve_), model.certificate_.check().ok
    (['x0', 'x2'], 6, True)
    """

    def __init__(
        self,
        lams: int | Sequence[float] = 20,
        alphas: Sequence[float] = (0.1,),
        *,
        loss: str = "squared",
        cv: Any = 5,
        criterion: str = "cv",
        rule: str = RULES[0],
        groups: Any = None,
        group_weights: Any = "uniform",
        standardise: bool = True,
        fit_intercept: bool = True,
        max_groups: int | None = None,
        nonnegative: bool = False,
        gap: float = 1e-4,
        time_limit: float | None = None,
        n_jobs: int | None = None,
    ) -> None:
        super().__init__(
            lams, alphas, cv=cv, criterion=criterion, rule=rule, groups=groups,
            group_weights=group_weights, standardise=standardise, fit_intercept=fit_intercept,
            max_groups=max_groups, nonnegative=nonnegative, gap=gap, time_limit=time_limit,
            n_jobs=n_jobs,
        )  # fmt: skip
        self.loss = loss


class GroupL0ClassifierCV(Classification, _ByChoice):
    """`GroupL0Classifier` with lambda and alpha chosen along certified paths.

    Parameters and attributes as of `GroupL0RegressorCV`; ``"cv"`` compares the mean logistic loss on the
    held-out folds, which are stratified.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(90, 3))
    >>> y = X[:, 1] + 0.3 * rng.normal(size=90) > 0
    >>> GroupL0ClassifierCV(lams=[0.3, 0.1, 0.03], criterion="bic").fit(X, y).groups_kept_
    ['x1']
    """

"""Certified group selection with the interface of scikit-learn: `GroupL0Regressor`, `GroupL0Classifier`."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from spr_or.proof.certificate import ProofCertificate
from spr_or.tabular.estimator_input import groups_of, weights_of
from spr_or.tabular.lambda_values import lam_of
from spr_or.tabular.posed import Model, Posed, posed, solved

Array = NDArray[np.float64]


class GroupL0(BaseEstimator):
    """What the estimators share: what their parameters ask for, and what is kept of a solve."""

    _loss: str

    def _model(self, alpha: float) -> Model:
        """What the parameters ask of a model with the columns seen in `fit`."""
        for name in ("standardise", "fit_intercept", "nonnegative"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        most = self.max_groups
        if most is not None and (
            isinstance(most, bool) or not isinstance(most, Integral) or most < 0
        ):
            raise ValueError(
                f"max_groups must be None or a whole number of at least 0, got {most!r}"
            )
        names = getattr(self, "feature_names_in_", None)
        every = groups_of(
            self.groups, None if names is None else names.tolist(), self.n_features_in_
        )
        u = dict(zip(every, weights_of(self.group_weights, every), strict=True))
        groups = {label: own for label, own in every.items() if u[label] > 0}
        return Model(
            loss=self._loss,
            groups=groups,
            free=[j for label, own in every.items() if u[label] == 0 for j in own],
            settings={
                "u": [u[label] for label in groups],
                "max_entities": None if most is None else int(most),
                "nonnegative": range(self.n_features_in_) if self.nonnegative else (),
            },
            alpha=alpha,
            intercept=self.fit_intercept,
            standardise=self.standardise,
            gap=self.gap,
            time_limit=self.time_limit,
        )

    def _keep(
        self, model: Model, stated: Posed, certificate: ProofCertificate
    ) -> tuple[Array, Array]:
        """Set the attributes that say what was proven."""
        self.certificate_ = certificate
        self.lam_ = certificate.problem.lam
        self.objective_, self.bound_ = certificate.objective, certificate.bound
        self.gap_ = certificate.gap
        used = certificate.indicators.bool().tolist()
        self.groups_kept_ = [label for label, on in zip(model.groups, used, strict=True) if on]
        if certificate.status != "optimal":
            advice = (
                "arithmetic allows no more: raise gap, or scale the columns"
                if certificate.status == "inexact"
                else "raise time_limit or gap"
            )
            warnings.warn(
                f"the search ended ({certificate.status}) with a gap of {certificate.gap:.3g}, "
                f"{model.gap:g} was asked for: a better choice of groups may exist; {advice}",
                ConvergenceWarning,
                stacklevel=4,
            )
        return stated.scaling.weights(certificate.weights)

    def _linear(self, X: Any) -> Array:
        """X W + intercepts, (n, q)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        W = np.reshape(self.coef_, (-1, self.n_features_in_))
        return np.asarray(X @ W.T + self.intercept_)


class Regression(RegressorMixin, GroupL0):
    """Fitting and predicting numbers."""

    loss: str

    @property
    def _loss(self) -> str:  # type: ignore[override]
        if self.loss not in ("squared", "poisson"):
            raise ValueError(f'loss must be "squared" or "poisson", got {self.loss!r}')
        return self.loss

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Choose groups and weights for X (n, p) and y (n,) or (n, q); sample_weight (n,), at least 0."""
        several = self._loss != "poisson"
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=several, y_numeric=True)
        target = np.asarray(y, dtype=np.float64)
        W, intercept = self._fit(X, target.reshape(len(X), -1), _weights(sample_weight, X))
        single = target.ndim == 1
        self.coef_ = W[:, 0] if single else W.T
        self.intercept_ = float(intercept[0]) if single else intercept
        return self

    def predict(self, X: Any) -> Array:
        """Predictions (n,), or (n, q) if y had two dimensions; rates with the Poisson loss."""
        found = np.exp(self._linear(X)) if self.loss == "poisson" else self._linear(X)
        return found[:, 0] if self.coef_.ndim == 1 else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = self.loss != "poisson"
        tags.target_tags.positive_only = self.loss == "poisson"
        return tags


class Classification(ClassifierMixin, GroupL0):
    """Fitting and predicting two classes."""

    _loss = "logistic"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Choose groups and weights for X (n, p) and labels y (n,); sample_weight (n,), at least 0."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        if kind != "binary":
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {kind}."
            )
        weight = _weights(sample_weight, X)
        if weight is not None:
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) != 2:
            shown = ", ".join(map(repr, self.classes_.tolist())) or "none"
            raise ValueError(f"a classifier needs samples of two classes; y has one class: {shown}")
        W, intercept = self._fit(X, np.where(index == 1, 1.0, -1.0)[:, None], weight)
        self.coef_, self.intercept_ = W.T, intercept
        return self

    def decision_function(self, X: Any) -> Array:
        """Log-odds of the second class, (n,)."""
        return self._linear(X)[:, 0]

    def predict(self, X: Any) -> NDArray[Any]:
        """The likelier class of each row, (n,)."""
        second = self.decision_function(X) > 0
        return np.asarray(self.classes_[second.astype(int)])

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of both classes, (n, 2)."""
        from scipy.special import expit

        odds = self.decision_function(X)
        return np.column_stack([expit(-odds), expit(odds)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


class _AtOneLambda(GroupL0):
    """Estimators of which lambda and alpha are parameters."""

    def __init__(
        self,
        lam: float | str = 0.05,
        alpha: float = 0.1,
        *,
        groups: Any = None,
        group_weights: Any = "uniform",
        standardise: bool = True,
        fit_intercept: bool = True,
        max_groups: int | None = None,
        nonnegative: bool = False,
        gap: float = 1e-4,
        time_limit: float | None = None,
    ) -> None:
        self.lam = lam
        self.alpha = alpha
        self.groups = groups
        self.group_weights = group_weights
        self.standardise = standardise
        self.fit_intercept = fit_intercept
        self.max_groups = max_groups
        self.nonnegative = nonnegative
        self.gap = gap
        self.time_limit = time_limit

    def _fit(self, X: Array, y: Array, sample_weight: Array | None) -> tuple[Array, Array]:
        """Solve for y (n, q); weights (p, q) and intercepts (q,) of the columns as they are."""
        model = self._model(self.alpha)
        stated = posed(X, y, model, sample_weight)
        certificate = solved(stated.problem, lam_of(self.lam, stated.problem), model)
        return self._keep(model, stated, certificate)


class GroupL0Regressor(Regression, _AtOneLambda):
    r"""Linear regression on the best groups of columns, with a proof.

    Minimises mean squared error + lam * sum over groups of
    u [alpha * (squared weights) + (1 - alpha) * (1 if the group is used)] over weights and groups at once,
    to a proven gap.  No bound on the weights is assumed.

    Parameters
    ----------
    lam : float or str
        Strength of the penalty, in units of the target's variance with ``standardise``: with alpha = 0.1
        and lam = 0.05 a group is used if it explains more than 4.5 % of it.  ``"0.1 max"`` is a share of a
        lambda that empties the model.
    alpha : float
        Share of the penalty on squared weights, 0 to 1.
    loss : str
        ``"squared"``, or ``"poisson"`` for counts: half the deviance of a rate exp(intercept + x coef), which
        is what is predicted.  y then is (n,), at least 0, and never divided by anything.
    groups : None, int, sequence or mapping
        None: each column is a group.  A number k: k consecutive columns are.  A label for each column,
        or a mapping from column names (numbers, if X has no names) to labels, in which a column without
        an entry is its own group.
    group_weights : str, sequence or mapping
        u of each group: ``"uniform"`` (1), ``"size"`` (its number of columns), ``"root"`` (the root of
        that), numbers in the order of the groups, or a mapping from labels to numbers (1 where it has no
        entry).  A group of weight 0 is free: always used and never penalised.
    standardise : bool
        Divide columns and target by their standard deviation.  ``coef_`` is always in units of the data.
    fit_intercept : bool
        With an intercept, which is not penalised.
    max_groups : int or None
        At most so many groups, free ones not counted.
    nonnegative : bool
        No weight is negative.
    gap : float
        Relative gap to prove.
    time_limit : float or None
        Seconds.  If it ends the search, the best weights so far are kept with their proven gap, and a
        ``ConvergenceWarning`` says so.

    Attributes
    ----------
    coef_ : ndarray (p,), or (q, p) for y (n, q)
    intercept_ : float, or ndarray (q,)
    groups_kept_ : list of labels, without free groups
    objective_, bound_, gap_ : floats, of the scaled problem
    lam_ : float, lambda as a number
    certificate_ : `spr_or.proof.certificate.ProofCertificate`, whose ``check()`` repeats the proof
    n_features_in_, feature_names_in_ : as everywhere in scikit-learn

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(50, 4))
    >>> y = 3 * X[:, 0] + 0.1 * rng.normal(size=50)
    >>> model = GroupL0Regressor(lam=0.1, groups=["a", "a", "b", "b"]).fit(X, y)
    >>> model.groups_kept_, model.gap_ <= 1e-4, model.certificate_.check().ok
    (['a'], True, True)
    """

    def __init__(
        self,
        lam: float | str = 0.05,
        alpha: float = 0.1,
        *,
        loss: str = "squared",
        groups: Any = None,
        group_weights: Any = "uniform",
        standardise: bool = True,
        fit_intercept: bool = True,
        max_groups: int | None = None,
        nonnegative: bool = False,
        gap: float = 1e-4,
        time_limit: float | None = None,
    ) -> None:
        super().__init__(
            lam, alpha, groups=groups, group_weights=group_weights, standardise=standardise,
            fit_intercept=fit_intercept, max_groups=max_groups, nonnegative=nonnegative, gap=gap,
            time_limit=time_limit,
        )  # fmt: skip
        self.loss = loss


class GroupL0Classifier(Classification, _AtOneLambda):
    r"""Logistic regression for two classes on the best groups of columns, with a proof.

    As `GroupL0Regressor`, with the mean logistic loss, of which no part is divided by anything:
    ``standardise`` divides the columns only.

    Attributes beyond those of `GroupL0Regressor`: ``classes_``, two labels, of which the second is scored.
    ``coef_`` is (1, p) and ``intercept_`` (1,), as of scikit-learn's LogisticRegression.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 3))
    >>> y = np.where(X[:, 1] + 0.3 * rng.normal(size=60) > 0, "yes", "no")
    >>> model = GroupL0Classifier(lam=0.05).fit(X, y)
    >>> model.groups_kept_, model.predict(X[:2]).tolist(), model.predict_proba(X).shape
    (['x1'], ['no', 'no'], (60, 2))
    """


def _weights(sample_weight: Any, X: Array) -> Array | None:
    if sample_weight is None:
        return None
    found: Array = _check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    return found

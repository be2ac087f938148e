"""lambda and alpha chosen by cross-validation and information criteria: curve, rules, estimators."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import KFold

import spr_or as so
from spr_or.tabular.choice import Candidate
from spr_or.tabular.choice_rule import chosen


def sample(n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of eight matter, one of them little."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(n, 8)) * [1, 5, 1, 1, 1, 1, 1, 1] + 4
    y = 10 * (X[:, 0] + 0.1 * X[:, 1]) + 5 * rng.normal(size=n)
    return X, y


@pytest.fixture(scope="module")
def fitted() -> Any:
    X, y = sample()
    return so.GroupL0RegressorCV(lams=6, alphas=[0.1, 0.5], cv=KFold(4)).fit(X, y)


def test_the_curve_is_what_single_fits_on_the_folds_give(fitted: Any) -> None:
    X, y = sample()
    assert len(fitted.curve_) == 12
    for place in (2, 5, 10):
        one = fitted.curve_[place]
        errors = []
        for inside, outside in KFold(4).split(X):
            alone = so.GroupL0Regressor(lam=one.lam, alpha=one.alpha).fit(X[inside], y[inside])
            errors.append(np.mean((alone.predict(X[outside]) - y[outside]) ** 2))
        assert one.losses == pytest.approx(errors, rel=1e-5)
        assert one.loss == pytest.approx(np.mean(errors), rel=1e-5)
        assert one.spread == pytest.approx(np.std(errors, ddof=1) / 2, rel=1e-4)


def test_the_chosen_one_is_fitted_on_all_data(fitted: Any) -> None:
    X, y = sample()
    same = so.GroupL0Regressor(lam=fitted.lam_, alpha=fitted.alpha_).fit(X, y)
    assert fitted.groups_kept_ == same.groups_kept_ == ["x0", "x1"]
    assert fitted.coef_ == pytest.approx(same.coef_, rel=1e-6)
    assert fitted.certificate_.check().ok
    assert fitted.curve_[fitted.chosen_].certificate is fitted.certificate_


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_n_jobs_changes_nothing(backend: str) -> None:
    X, y = sample()
    one, two = (so.GroupL0RegressorCV(lams=[0.3, 0.1, 0.03], cv=3, n_jobs=jobs) for jobs in (1, 2))
    one.fit(X, y)
    with joblib.parallel_config(backend):
        two.fit(X, y)
    assert np.allclose(one.coef_, two.coef_, rtol=1e-8) and one.chosen_ == two.chosen_
    for a, b in zip(one.curve_, two.curve_, strict=True):
        assert np.allclose(a.losses, b.losses, rtol=1e-8)


def candidate(lam: float, alpha: float, losses: list[float], bic: float = 0.0) -> Candidate:
    return Candidate(lam, alpha, None, np.array(losses), bic, bic)  # type: ignore[arg-type]


def test_the_rules_of_choice() -> None:
    found = [
        candidate(3, 0.1, [9, 9.2], 5.0),
        candidate(2, 0.1, [4, 5.2], 2.0),
        candidate(1, 0.1, [3, 5.0], 1.0),
        candidate(0.5, 0.1, [3, 5.1], 1.0),
        candidate(3, 0.5, [4, 4.1], 1.5),
    ]
    # The least mean is 4, its standard error 1: 4.6 is within it, 4.05 has another alpha.
    assert chosen(found, "cv", "least") == 2
    assert chosen(found, "cv", "one standard error") == 1
    assert chosen(found, "bic") == 2
    with pytest.raises(ValueError, match="criterion must be one of cv, bic, ebic"):
        chosen(found, "aic")
    with pytest.raises(ValueError, match="rule must be one of"):
        chosen(found, "cv", "2se")


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_information_criteria_are_those_of_the_books(loss: str) -> None:
    X, y = sample()
    groups = ["a", "a", "b", "b", "c", "c", "d", "d"]
    settings: dict[str, Any] = {"lams": [0.2, 0.02], "criterion": "ebic", "groups": groups}
    if loss == "squared":
        model = so.GroupL0RegressorCV(**settings).fit(X, y)
        deviance = 80 * np.log(np.mean((y - model.predict(X)) ** 2) / y.var())
    else:
        model = so.GroupL0ClassifierCV(**settings).fit(X, y > y.mean())
        deviance = (
            -2 * np.log(model.predict_proba(X)[np.arange(80), (y > y.mean()).astype(int)]).sum()
        )
    kept = len(model.groups_kept_)
    best = model.curve_[model.chosen_]
    assert "a" in model.groups_kept_ and kept < 4
    assert best.bic == pytest.approx(deviance + (2 * kept + 1) * math.log(80), rel=1e-5)
    assert best.ebic == pytest.approx(best.bic + 2 * math.log(math.comb(4, kept)))
    assert best.ebic == min(one.ebic for one in model.curve_)


def test_the_classifier_chooses_by_held_out_loss() -> None:
    X, y = sample()
    model = so.GroupL0ClassifierCV(lams=[1, 0.1, 0.05], cv=3, rule="least").fit(X, y > np.median(y))
    assert "x0" in model.groups_kept_ and model.score(X, y > np.median(y)) > 0.8
    assert model.curve_[0].loss == pytest.approx(np.log(2), rel=0.02)


def test_weights_of_zero_leave_rows_out() -> None:
    X, y = sample()
    weight = np.r_[np.ones(60), np.zeros(20)]
    some = so.GroupL0RegressorCV(lams=[0.5, 0.1, 0.03], cv=3).fit(X, y, sample_weight=weight)
    same = so.GroupL0RegressorCV(lams=[0.5, 0.1, 0.03], cv=3).fit(X[:60], y[:60])
    assert np.allclose(some.coef_, same.coef_) and some.chosen_ == same.chosen_


def test_a_constant_target_is_chosen_without_a_group() -> None:
    X, _ = sample()
    model = so.GroupL0RegressorCV(lams=3, cv=3).fit(X, np.full(80, 2.0))
    assert model.groups_kept_ == [] and model.intercept_ == 2.0 and model.chosen_ == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lams": 1}, "at least 2 values"),
        ({"lams": [0.1, -1]}, "positive values"),
        ({"alphas": []}, "alphas"),
        ({"criterion": "aic"}, "criterion"),
    ],
)
def test_errors_name_the_parameter(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        so.GroupL0RegressorCV(**settings).fit(*sample(20))


@pytest.mark.pictures
def test_the_curve_as_a_table_and_a_picture(fitted: Any, tmp_path: Path) -> None:
    fitted.save_curve(tmp_path / "curve.csv")
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and [row["chosen"] for row in rows].count("True") == 1
    assert json.loads(rows[fitted.chosen_]["kept"]) == fitted.groups_kept_
    assert float(rows[3]["held_out_loss"]) == fitted.curve_[3].loss
    fitted.save_curve(tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size[0] > 500
    with pytest.raises(ValueError, match=r"\.csv or \.png"):
        fitted.save_curve(tmp_path / "curve.txt")

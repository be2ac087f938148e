"""The estimators: scikit-learn's own checks, and answers that enumeration in the user's units confirms."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.utils.estimator_checks import check_supervised_y_2d, parametrize_with_checks

import spr_or as so
from spr_or.proof.certificate import fingerprint
from spr_or.tabular.model_rules import ModelRules
from spr_or.tabular.posed import Model, posed
from spr_or.tabular.prepare import prepare

LABELS = ["a", "a", "b", "c", "c", "d"]


def sample(seed: int = 0, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Columns of unlike scales and offsets, a target with an intercept far from zero."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)) * [1, 20, 0.3, 1, 2, 5] + [0, 100, 3, 0, -7, 1]
    y = 500 + 30 * X[:, 0] + 2 * X[:, 1] + 90 * X[:, 2] + 25 * rng.normal(size=n)
    return X, y


def best(
    X: np.ndarray, y: np.ndarray, w: np.ndarray, lam: float, alpha: float
) -> tuple[list[str], np.ndarray, float]:
    """All supports by NumPy: kept labels, weights and intercept of the standardised, weighted problem."""
    scale = np.sqrt(np.average((X - np.average(X, axis=0, weights=w)) ** 2, axis=0, weights=w))
    variance = np.average((y - np.average(y, weights=w)) ** 2, weights=w)
    share = w / w.sum()
    found: tuple[float, list[str], np.ndarray, float] = (np.inf, [], np.zeros(6), 0.0)
    for size in range(5):
        for kept in itertools.combinations("abcd", size):
            at = [j for j, label in enumerate(LABELS) if label in kept]
            A = np.column_stack([np.ones(len(y)), X[:, at]])
            ridge = lam * alpha * np.append(0.0, scale[at] ** 2)
            hessian = A.T @ (A * share[:, None]) + np.diag(ridge)
            b = np.linalg.solve(hessian, A.T @ (share * y))
            value = share @ (A @ b - y) ** 2 + ridge @ b**2
            value = value / variance + lam * (1 - alpha) * size
            if value < found[0]:
                weights = np.zeros(6)
                weights[at] = b[1:]
                found = (value, list(kept), weights, b[0])
    return found[1:]


@parametrize_with_checks([so.GroupL0Regressor(lam=0.2), so.GroupL0Classifier(lam=0.2)])
def test_scikit_learn_accepts_them(estimator: Any, check: Any) -> None:
    check(estimator)


def test_a_column_of_counts_is_taken_with_a_warning() -> None:
    check_supervised_y_2d("GroupL0Regressor", so.GroupL0Regressor(lam=0.2, loss="poisson"))


@pytest.mark.parametrize("lam", [0.003, 0.03, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_regressor_finds_the_best_groups_in_the_users_units(lam: float, weighted: bool) -> None:
    X, y = sample()
    w = np.random.default_rng(1).uniform(0.2, 3, len(y)) if weighted else np.ones(len(y))
    kept, weights, intercept = best(X, y, w, lam, 0.1)
    model = so.GroupL0Regressor(lam=lam, groups=LABELS, gap=1e-7)
    model.fit(X, y, sample_weight=w if weighted else None)
    assert model.groups_kept_ == kept
    assert np.allclose(model.coef_, weights, rtol=1e-5, atol=1e-8)
    assert model.intercept_ == pytest.approx(intercept, rel=1e-6)
    assert model.certificate_.check().ok and model.gap_ <= 1e-7
    assert model.bound_ <= model.objective_


def test_the_answer_does_not_depend_on_units() -> None:
    X, y = sample()
    plain = so.GroupL0Regressor(lam=0.05).fit(X, y)
    scaled = so.GroupL0Regressor(lam=0.05).fit(X * 1e3, 1e-4 * y)
    assert plain.groups_kept_ == scaled.groups_kept_ != []
    assert np.allclose(scaled.coef_, plain.coef_ * 1e-7, rtol=1e-6)


def test_without_standardising_the_penalty_is_in_the_units_of_the_data() -> None:
    X, y = sample()
    variance, scale = y.var(), X.std(0)
    divided = so.GroupL0Regressor(lam=0.05, alpha=0.1).fit(X, y)
    # The loss and the price of a group in the target's variance; squared weights have it in them.
    ridge, price = 0.05 * 0.1, 0.05 * 0.9 * variance
    lam = ridge + price
    raw = so.GroupL0Regressor(lam=lam, alpha=ridge / lam, standardise=False).fit(X / scale, y)
    assert raw.groups_kept_ == divided.groups_kept_ != []
    assert raw.objective_ == pytest.approx(variance * divided.objective_, rel=1e-6)
    assert raw.coef_ == pytest.approx(divided.coef_ * scale, rel=1e-5)


def test_groups_as_labels_and_as_mappings() -> None:
    X, y = sample()
    as_list = so.GroupL0Regressor(lam=0.1, groups=LABELS).fit(X, y)
    mapping = {0: "a", 1: "a", 2: "b", 3: "c", 4: "c"}
    as_mapping = so.GroupL0Regressor(lam=0.1, groups=mapping).fit(X, y)
    assert as_list.groups_kept_ == as_mapping.groups_kept_ == ["a", "b"]
    assert np.array_equal(as_list.coef_, as_mapping.coef_)
    assert so.GroupL0Regressor(lam=0.1).fit(X, y).groups_kept_ == ["x0", "x1", "x2"]


def test_groups_as_a_number_of_consecutive_columns() -> None:
    X, y = sample()
    pairs = so.GroupL0Regressor(lam=0.1, groups=np.int64(2)).fit(X, y)
    labels = [f"x{2 * g}..x{2 * g + 1}" for g in range(X.shape[1] // 2) for _ in range(2)]
    labels += [f"x{j}" for j in range(len(labels), X.shape[1])]
    assert np.array_equal(pairs.coef_, so.GroupL0Regressor(lam=0.1, groups=labels).fit(X, y).coef_)
    assert set(pairs.groups_kept_) <= set(labels)


@pytest.mark.parametrize("groups", [0, -2, True, 2.5, object(), "a", [1, 2]])
def test_other_groups_are_told_what_groups_can_be(groups: object) -> None:
    X, y = sample()
    with pytest.raises(ValueError, match=r"a number of consecutive columns, \d labels"):
        so.GroupL0Regressor(lam=0.1, groups=groups).fit(X, y)


@pytest.mark.parametrize(
    "setting",
    [
        {"lam": "auto"}, {"lam": "0.1"}, {"lam": [0.1]}, {"alpha": [0.1]}, {"max_groups": 2.5},
        {"max_groups": "two"}, {"max_groups": True}, {"nonnegative": [0, 1]}, {"standardise": "no"},
        {"fit_intercept": 1},
    ],
)  # fmt: skip
def test_a_setting_that_means_nothing_is_named(setting: dict[str, object]) -> None:
    X, y = sample()
    (name,) = setting
    with pytest.raises(ValueError, match=f"^{name} must be") as error:
        so.GroupL0Regressor(**setting).fit(X, y)
    assert "auto" not in str(error.value).split("got")[0]


@pytest.mark.parametrize(
    "setting", [{"lams": 0.5}, {"lams": "abc"}, {"lams": True}, {"alphas": 0.1}, {"alphas": ()}]
)
def test_a_path_that_means_nothing_is_named(setting: dict[str, object]) -> None:
    X, y = sample()
    (name,) = setting
    with pytest.raises(ValueError, match=f"^{name} must be"):
        so.GroupL0RegressorCV(**setting).fit(X, y)


def test_numbers_of_numpy_are_numbers() -> None:
    X, y = sample()
    assert len(so.GroupL0Regressor(lam=0.01, max_groups=np.int64(1)).fit(X, y).groups_kept_) == 1


def test_group_weights_make_groups_dearer() -> None:
    X, y = sample()
    dear = so.GroupL0Regressor(lam=0.1, groups=LABELS, group_weights={"a": 50.0}).fit(X, y)
    assert "a" not in dear.groups_kept_
    same = so.GroupL0Regressor(lam=0.1, groups=LABELS, group_weights=[50.0, 1, 1, 1]).fit(X, y)
    assert dear.groups_kept_ == same.groups_kept_


def test_a_group_of_weight_zero_is_always_used() -> None:
    X, y = sample()
    model = so.GroupL0Regressor(lam="1 max", groups=LABELS, group_weights={"c": 0}).fit(X, y)
    assert model.groups_kept_ == [] and model.coef_[[3, 4]].all()
    A = np.column_stack([np.ones(len(y)), X[:, [3, 4]]])
    assert model.coef_[[3, 4]] == pytest.approx(np.linalg.lstsq(A, y)[0][1:], rel=1e-4)


def test_at_most_so_many_groups() -> None:
    X, y = sample()
    kept = so.GroupL0Regressor(lam=0.003, max_groups=1).fit(X, y).groups_kept_
    every = [so.GroupL0Regressor(lam=0.003).fit(X[:, [j]], y).score(X[:, [j]], y) for j in range(6)]
    assert kept == [f"x{np.argmax(every)}"]


def test_weights_that_must_not_be_negative() -> None:
    X, y = sample()
    free = so.GroupL0Regressor(lam=0.001).fit(X, -y)
    signed = so.GroupL0Regressor(lam=0.001, nonnegative=True).fit(X, -y)
    assert free.coef_.min() < -1 and signed.coef_.min() >= 0
    assert signed.certificate_.check().ok


def test_the_intercept_of_the_classifier_is_not_penalised() -> None:
    """Without a group the score is the log-odds of the classes, weighted or repeated."""
    X = np.random.default_rng(0).normal(size=(40, 2))
    y = np.arange(40) % 4 == 0
    alone = so.GroupL0Classifier(lam=10.0).fit(X, y)
    assert alone.groups_kept_ == [] and alone.intercept_[0] == pytest.approx(
        np.log(1 / 3), rel=1e-4
    )
    weight = np.where(y, 3.0, 1.0)
    weighted = so.GroupL0Classifier(lam=10.0).fit(X, y, sample_weight=weight)
    assert weighted.intercept_[0] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": ["a", "b"]}, "6 labels"),
        ({"groups": "auto"}, "6 labels"),
        ({"groups": {9: "a"}}, "names a column 9"),
        ({"group_weights": {"q": 2.0}}, "names a group 'q'"),
        ({"group_weights": "half"}, "uniform, size, root"),
        ({"group_weights": [1.0]}, "1 numbers, and there are 6"),
        ({"group_weights": 0.0}, "a number for each group or a mapping, got 0.0"),
        ({"group_weights": {"x1": -1}}, "must not be negative"),
        ({"max_groups": 1.5}, "whole number"),
        ({"lam": "auto"}, 'share such as "0.1 max"'),
        ({"lam": "max"}, "a share such as"),
        ({"lam": 0.0}, "lam must be positive"),
        ({"alpha": 1.5}, "alpha must lie"),
        ({"gap": -1.0}, "gap must be"),
    ],
)
def test_errors_name_the_parameter(settings: dict[str, Any], message: str) -> None:
    X, y = sample()
    with pytest.raises(ValueError, match=message):
        so.GroupL0Regressor(**settings).fit(X, y)


def test_lambda_as_a_share_of_what_empties_the_model() -> None:
    X, y = sample()
    assert so.GroupL0Regressor(lam="1 max").fit(X, y).groups_kept_ == []
    part = so.GroupL0Regressor(lam="0.1 max").fit(X, y)
    same = so.GroupL0Regressor(lam=part.lam_).fit(X, y)
    assert part.groups_kept_ and np.array_equal(part.coef_, same.coef_)


@pytest.mark.parametrize("lam", [0.01, "0.1 max"])
def test_a_constant_target_keeps_nothing(lam: float | str) -> None:
    X, _ = sample()
    model = so.GroupL0Regressor(lam=lam).fit(X, np.full(len(X), 7.0))
    assert model.groups_kept_ == [] and model.intercept_ == 7.0 and model.gap_ == 0
    assert np.array_equal(model.predict(X[:3]), [7.0, 7.0, 7.0])


def test_many_outputs_share_their_groups() -> None:
    X, y = sample()
    Y = np.column_stack([y, X[:, 3] - 0.5 * X[:, 4]])
    model = so.GroupL0Regressor(lam=0.05, groups=LABELS).fit(X, Y)
    assert model.coef_.shape == (2, 6) and model.intercept_.shape == (2,)
    assert model.predict(X).shape == Y.shape and model.score(X, Y) > 0.9
    assert {"a", "c"} <= set(model.groups_kept_)


def test_the_time_limit_warns_and_keeps_a_proven_gap() -> None:
    X, y = sample(n=30)
    X = np.hstack([X, np.random.default_rng(5).normal(size=(30, 60))])
    with pytest.warns(ConvergenceWarning, match="time_limit"):
        model = so.GroupL0Regressor(lam=0.001, time_limit=0).fit(X, y)
    assert model.gap_ > 1e-4 and model.bound_ <= model.objective_
    assert model.certificate_.check().ok


def test_ctrl_c_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    from spr_or.certified_solver import solver

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solver, "_solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        so.GroupL0Regressor().fit(*sample())


def test_a_pickle_keeps_the_proof() -> None:
    X, y = sample()
    model = so.GroupL0Regressor(lam=0.05).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(X), model.predict(X)) and again.certificate_.check().ok


def test_the_classifier_scores_the_second_class() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4)) * [1, 10, 1, 1]
    y = np.where(X[:, 1] / 10 - X[:, 2] + 0.5 * rng.normal(size=200) > 0, "yes", "no")
    model = so.GroupL0Classifier(lam=0.03).fit(X, y)
    assert model.groups_kept_ == ["x1", "x2"] and model.classes_.tolist() == ["no", "yes"]
    assert model.coef_.shape == (1, 4) and model.intercept_.shape == (1,)
    probability = model.predict_proba(X)
    assert np.allclose(probability.sum(1), 1)
    assert np.array_equal(model.predict(X) == "yes", probability[:, 1] > 0.5)
    assert model.score(X, y) > 0.8 and model.certificate_.check().ok
    with pytest.raises(ValueError, match="Only binary"):
        so.GroupL0Classifier().fit(X, np.arange(200) % 3)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_give_their_names(library: str) -> None:
    frames = pytest.importorskip(library)
    X, y = sample()
    names = ["age", "dose", "ph", "c_1", "c_2", "day"]
    frame = frames.DataFrame(dict(zip(names, X.T, strict=True)))
    model = so.GroupL0Regressor(lam=0.1, groups={"c_1": "c", "c_2": "c"}).fit(frame, y)
    assert model.feature_names_in_.tolist() == names
    assert model.groups_kept_ == ["age", "dose", "ph"]
    assert model.predict(frame) == pytest.approx(X @ model.coef_ + model.intercept_)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[names[::-1]])
    with pytest.raises(ValueError, match="no such column"):
        so.GroupL0Regressor(groups={"c_3": "c"}).fit(frame, y)


def test_in_a_pipeline_the_names_of_made_columns_are_kept() -> None:
    X, y = sample()
    steps = make_pipeline(
        PolynomialFeatures(2, include_bias=False), StandardScaler(), so.GroupL0Regressor(lam=0.1)
    )
    assert steps.fit(X, y).score(X, y) > 0.7
    assert steps[-1].groups_kept_


def test_grid_search_over_lambda_and_alpha() -> None:
    X, y = load_diabetes(return_X_y=True)
    grid = {"lam": ["0.1 max", "0.02 max"], "alpha": [0.01, 0.3]}
    search = GridSearchCV(so.GroupL0Regressor(), grid, cv=3).fit(X, y)
    assert search.best_score_ > 0.4 and len(search.best_estimator_.groups_kept_) < 8
    assert search.best_params_["lam"] == "0.02 max"


@pytest.mark.slow
def test_grid_searches_choose_models_that_predict() -> None:
    X, y = load_diabetes(return_X_y=True)
    grid = {"lam": ["0.3 max", "0.1 max", "0.03 max", "0.01 max"], "alpha": [0.01, 0.1, 0.3]}
    assert GridSearchCV(so.GroupL0Regressor(), grid).fit(X, y).best_score_ > 0.45
    X, y = load_breast_cancer(return_X_y=True)
    grid = {"lam": ["0.3 max", "0.1 max", "0.03 max"], "alpha": [0.01, 0.1, 0.3]}
    search = GridSearchCV(so.GroupL0Classifier(), grid, cv=3).fit(X, y)
    assert search.best_score_ > 0.94


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_command_and_the_estimators_pose_the_same_problem(loss: str, tmp_path: Path) -> None:
    X, y = sample()
    target = y if loss == "squared" else np.where(y > np.median(y), 1.0, -1.0)
    weight = np.random.default_rng(2).uniform(0.5, 2, 40)
    np.savetxt(tmp_path / "own.csv", np.column_stack([X, target, weight]), delimiter=",", fmt="%.17g",
               header="a,b,c,d,e,f,y,w", comments="")  # fmt: skip
    rules = ModelRules(sample_weight="w", group_weights={"b": 0.0, "c": 2.0}, max_groups=3)
    data = prepare(tmp_path / "own.csv", "y", None, loss, standardise=True, rules=rules)
    asked = data.problem(1.0, 0.1, 1.0, M_free=1.0)
    model = Model(loss, data.groups, data.entities.free, data.entities.settings)
    stated = posed(data.table.X, data.table.y, model, data.table.weight)
    assert fingerprint(stated.problem) == fingerprint(asked)
    theta = torch.arange(asked.entities.n_parameters, dtype=torch.float64)
    for one, two in zip(stated.scaling.weights(theta), data.weights(theta), strict=True):
        assert np.array_equal(one, two)

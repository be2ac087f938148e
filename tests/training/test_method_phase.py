"""[method]: any method's phase in a run; the same cut, fine-tuning, removal and report for all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_identical, no_pictures_in, stopped_at, tiny_recipe

from spr_or.pruning.compaction.api import load_compact
from spr_or.training import checkpoint
from spr_or.training.method import Method, PruningPlan, cut_by_score, find_method, shipped_methods
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import Recipe, RecipeError
from spr_or.training.runner import run_recipe
from spr_or.training.seed_run import RunError

OWN = "plugged_methods:METHOD"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


def recipe_of(name: str, spr: dict[str, Any] | None = None, **keys: Any) -> Recipe:
    budget = {"target_removed_pct": 50, "start": "dense"} | (spr or {})
    return tiny_recipe(spr=budget, method={"name": name, **keys})


def phases(folder: Path) -> list[str]:
    return [record["phase"] for record in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("shrink", [False, True])
def test_a_score_meets_the_budget_and_its_epochs_are_fine_tuned(shrink, tmp_path):
    summary = run_recipe(recipe_of("pffec", {"shrink": shrink}), tmp_path)
    assert summary["removed_params_pct"] == pytest.approx(50, abs=2)
    assert summary["accuracy"] > 15 and summary["spr_step_overhead"] is None
    assert phases(tmp_path) == ["dense"] * 2 + ["finetune"] * 5
    smaller = load_compact(tmp_path / "compact.safetensors")
    total = summary["parameters"] - summary["removed_params"]
    assert sum(p.numel() for p in smaller.parameters()) == total
    assert summary["max_abs_logit_diff"] < 1e-3


def test_the_learning_rate_is_one_schedule_whether_or_not_the_phase_trains(tmp_path):
    rates = []
    for name in ("pffec", OWN):
        run_recipe(recipe_of(name, {"schedule": "cosine"}), tmp_path / name)
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        rates.append([r["lr"] for r in records if r["phase"] != "dense"])
    assert len(rates[0]) == 5 and rates[0] == rates[1]


@pytest.mark.parametrize(
    "restart", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["restart", "goes on"]
)
def test_a_run_stopped_anywhere_ends_with_the_same_weights(restart, tmp_path):
    recipe = recipe_of(OWN, restart=restart)
    whole = run_recipe(recipe, tmp_path / "whole")
    assert phases(tmp_path / "whole").count("finetune") == (4 if restart else 2)
    stops = [("spr", 1), ("spr", 2), ("finetune", 1)]
    for phase, epoch in stops:
        place = tmp_path / f"{phase}-{epoch}"
        with pytest.raises(KeyboardInterrupt), stopped_at(phase, epoch):
            run_recipe(recipe, place)
        again = run_recipe(recipe, place, resume=True)
        one, two = (
            checkpoint.load(folder / "checkpoints" / checkpoint.LAST)
            for folder in (tmp_path / "whole", place)
        )
        for state in (one, two):
            del state["budget"]["scoring_seconds"]  # by the clock
        assert_identical(one, two, f"{phase}-{epoch}")
        assert again["accuracy"] == whole["accuracy"]


def test_a_stopped_one_shot_method_goes_on_in_fine_tuning_without_a_warning(tmp_path):
    recipe = recipe_of("pffec")
    with pytest.raises(KeyboardInterrupt), stopped_at("finetune", 3):
        run_recipe(recipe, tmp_path)
    run_recipe(recipe, tmp_path, resume=True)
    assert phases(tmp_path) == ["dense"] * 2 + ["finetune"] * 5


def test_what_a_method_trains_beside_the_network_moves_and_is_recorded(tmp_path):
    run_recipe(recipe_of(OWN), tmp_path)
    scales = [
        r["largest_scale"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["phase"] == "spr"
    ]
    assert len(scales) == 3 and 1.0 > scales[0] > scales[1] > scales[2]


def test_new_weights_are_those_of_the_seed(tmp_path):
    """A restarted network shares nothing with the dense one but what its masks keep."""
    with pytest.raises(KeyboardInterrupt), stopped_at("finetune", 0):
        run_recipe(recipe_of(OWN, {"lr": 1e-9}, restart=True), tmp_path)
    # No epoch of fine-tuning was kept, so only the masks can tell: the run must go on from scratch.
    summary = run_recipe(recipe_of(OWN, {"lr": 1e-9}, restart=True), tmp_path, resume=True)
    assert summary["accuracy_before_finetune"] < 30


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("plugged_methods:NO_NUMBER", "scores of layer .* are not finite"),
        ("plugged_methods:DIVERGING", "the loss became"),
        ("plugged_methods:DIVERGING", "Look at spr.lr and .method. in the recipe"),
        (
            "plugged_methods:REFUSING",
            "method plugged_methods:REFUSING on models.toy:convnet: it takes only",
        ),
        (
            "plugged_methods:BROKEN",
            "plugged_methods:BROKEN on models.toy:convnet: KeyError: 'no such thing'",
        ),
        ("plugged_methods:NO_PLAN", "its plan returned a NoneType, not a PruningPlan"),
        ("plugged_methods:ONE_LAYER", "scores must be a dict of the layers"),
        ("plugged_methods:COLUMN", r"must be a tensor of shape \(8,\), got \(8, 1\)"),
    ],
)
def test_what_a_method_cannot_do_ends_the_run_with_its_reason(name, says, tmp_path):
    with pytest.raises((RunError, RecipeError), match=says):
        run_recipe(recipe_of(name), tmp_path)


def test_a_phase_without_epochs_and_new_weights_do_not_go_with_every_method(tmp_path):
    with pytest.raises(RecipeError, match="raise spr.epochs"):
        run_recipe(recipe_of(OWN, {"epochs": 0}), tmp_path)
    with pytest.raises(RecipeError, match='set spr.start = "dense"'):
        run_recipe(recipe_of("pffec", {"start": "scratch"}), tmp_path)


def test_what_a_plan_or_a_method_says_wrong_is_told_at_once():
    with pytest.raises(ValueError, match="across must be one of .*got 'layer'"):
        PruningPlan(scores=dict, across="layer")
    with pytest.raises(ValueError, match="kind must be one of .*got 'banana'"):
        Method(
            title="x", kind="banana", paper="none", plan=lambda task, keys: PruningPlan(scores=dict)
        )


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"name": "pfec"}, "no method 'pfec'. Did you mean 'pffec'"),
        ({"name": "entity_rows"}, "no method 'entity_rows'"),
        ({"name": "plugged_methods:METHODS"}, "did you mean 'METHOD'"),
        ({"name": "plugged_methods:plan"}, "is a function, not a spr_or.training.method.Method"),
        ({"name": "nowhere:METHOD"}, "method 'nowhere:METHOD'"),
        ({"name": OWN, "decai": 1}, "has no key 'decai'; did you mean 'decay'"),
        ({"name": OWN, "decay": -1}, "decay: .*greater than 0, got -1"),
        ({"decay": 1}, "spr has no key 'decay'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(method, says):
    with pytest.raises(RecipeError, match=says):
        tiny_recipe(spr={"target_removed_pct": 50}, method=method)


def test_a_method_needs_a_budget_that_can_be_reached(tmp_path):
    with pytest.raises(RecipeError, match="pffec needs a budget: set spr.target_removed_pct"):
        tiny_recipe(method={"name": "pffec"})
    with pytest.raises(RecipeError, match="target_removed_pct = 99.9 cannot be reached"):
        run_recipe(recipe_of("pffec", {"target_removed_pct": 99.9}), tmp_path)


def test_another_method_is_another_run(tmp_path):
    run_recipe(recipe_of("pffec"), tmp_path)
    with pytest.raises(RunError, match="method.name was 'pffec'"):
        run_recipe(recipe_of("spr"), tmp_path, resume=True)


def test_scores_go_up_the_network_or_up_each_layer():
    scores = {"a": torch.tensor([5.0, 6.0, 7.0, 8.0]), "b": torch.tensor([1.0, 2.0, 3.0, 4.0])}

    def removed(masks: dict[str, torch.Tensor]) -> float:
        return sum(12.5 * int((~keep).sum()) for keep in masks.values())

    everywhere = cut_by_score(removed, scores, 37.5).masks
    assert everywhere["a"].all() and everywhere["b"].tolist() == [False, False, False, True]
    each = cut_by_score(removed, scores, 50.0, "layers").masks
    assert [keep.tolist() for keep in each.values()] == [[False, False, True, True]] * 2
    # Where all scores are zero, as of a phase that has emptied everything, one entity stays.
    zero = cut_by_score(removed, {n: torch.zeros(4) for n in scores}, 75.0).masks
    assert all(keep.sum() == 1 for keep in zero.values())


def test_every_shipped_method_says_what_it_is():
    names = shipped_methods()
    assert "pffec" in names
    for name in names:
        method = find_method(name)
        assert method.title and method.paper and method.keys().model_dump() is not None

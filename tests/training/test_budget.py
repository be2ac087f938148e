"""A budget instead of lambda in recipes: whole runs."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from slow_cases import slow_unless
from tiny_runs import assert_identical, no_pictures_in, stopped_at, tiny_recipe

from models.toy import convnet
from spr_or.methods.common import layer_sets
from spr_or.pruning import latency
from spr_or.pruning.budget import reachable_pct, scheduled_pct
from spr_or.pruning.compaction.api import compact
from spr_or.pruning.counts import LayerCall
from spr_or.pruning.counts import count_parameters as size
from spr_or.pruning.latency import Widths
from spr_or.pruning.removed_share import Counter
from spr_or.training import checkpoint, improve
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import Recipe, RecipeError
from spr_or.training.run_progress import RunDisplay
from spr_or.training.runner import run_recipe
from spr_or.training.seed_run import RunError


@pytest.fixture(autouse=True)
def no_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


# Five epochs of four steps: much is left to the cut.
QUICK_RUNS: dict[str, tuple[dict[str, Any], float]] = {
    "prox-80": ({"start": "dense", "lam": 60.0, "alpha": 0.1, "bounds": "entity"}, 80),
    "prox-far-too-much": ({"start": "dense", "lam": 2000.0, "alpha": 0.1}, 40),
    "gradient-40": ({"method": "gradient", "zero_below": 1e-3, "share": 0.9}, 40),
    "printed-60": ({"method": "gradient", "variant": "printed", "lam": 3.0, "lam_warmup": 2}, 60),
}
SLOW_RUNS: dict[str, tuple[dict[str, Any], float]] = {
    "prox-40": ({"start": "dense", "lam": 60.0, "alpha": 0.1}, 40),
    "prox-60": ({"start": "dense", "lam": 5.0, "alpha": 0.1, "include_norm": True}, 60),
    "gradient-80": ({"method": "gradient", "start": "dense", "bounds_every": 2}, 80),
}
RUNS = [pytest.param(*run, id=name) for name, run in QUICK_RUNS.items()]
RUNS += [pytest.param(*run, id=name, marks=pytest.mark.slow) for name, run in SLOW_RUNS.items()]


@pytest.mark.parametrize(("spr", "target"), RUNS)
def test_a_run_lands_within_a_point_of_its_budget(
    spr: dict[str, Any], target: float, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        model="models.toy:digits_resnet",
        data={"train_rows": 128},
        spr={"target_removed_pct": target, "epochs": 5, **spr},
        finetune={"epochs": 1},
    )
    summary = run_recipe(recipe, tmp_path, judge=False)  # on 128 images it learns little
    assert summary["removed_params_pct"] == pytest.approx(target, abs=1.0)
    budget = summary["budget"]
    # The count that the cut was made by is the one that compaction arrives at.
    assert budget["after_cut_pct"] == pytest.approx(summary["removed_params_pct"], abs=0.1)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["phase"] == "spr"]
    assert [r["scheduled_pct"] for r in records] == [scheduled_pct(target, e, 5) for e in range(5)]
    assert len({r["lam"] for r in records}) > 1 and budget["lam"] == records[-1]["lam"]
    if spr.get("method") != "gradient":  # exact zeros: what could go is what is zero
        assert records[-1]["removable_pct"] == budget["before_cut_pct"]
    page = (tmp_path / "report.html").read_text()
    assert "after the cut" in page and f"{budget['after_cut_pct']:.1f} %" in page


def test_a_budget_counts_neurons_too(tmp_path: Path) -> None:
    spr = {"target_removed_pct": 50, "entities": ["filters", "neurons"], "lam": 1.0, "epochs": 4}
    summary = run_recipe(tiny_recipe(spr=spr), tmp_path)
    assert summary["removed_params_pct"] == pytest.approx(50, abs=1.0)


def test_a_budget_rounds_and_leaves_out_what_is_ignored(tmp_path: Path) -> None:
    spr = {"target_removed_pct": 50, "round_to": 4, "min_keep": 0.25, "ignored": ["layer1.*"]}
    recipe = tiny_recipe(model="models.toy:digits_resnet", data={"train_rows": 64}, spr=spr)
    summary = run_recipe(recipe, tmp_path)
    assert summary["removed_params_pct"] == pytest.approx(50, abs=3)
    masks = checkpoint.load(tmp_path / "checkpoints" / "last.pt")["masks"]
    assert masks and not any(name.startswith("layer1") for name in masks)
    for keep in masks.values():
        assert int(keep.sum()) % 4 == 0 and 4 * int(keep.sum()) >= len(keep)


@pytest.mark.parametrize("measure", ["macs", "latency"])
def test_a_budget_of_multiplications_or_time(
    measure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def times(call: LayerCall, widths: Sequence[Widths], device: torch.device) -> list[float]:
        # Layers this small take as long at any width; these take a time for each output.
        assert call.inputs[0] == 32
        return [1e-6 * outputs for _, outputs in widths]

    monkeypatch.setattr(latency, "measured", times)
    monkeypatch.setenv("SPR_OR_CACHE", str(tmp_path / "cache"))
    spr = {"target_removed_pct": 40, "target_of": measure}
    recipe = tiny_recipe(model="models.toy:digits_resnet", data={"train_rows": 64}, spr=spr)
    summary = run_recipe(recipe, tmp_path)
    assert summary["budget"]["after_cut_pct"] == pytest.approx(40, abs=2)
    if measure == "macs":
        removed = 100 * (1 - summary["macs_compact"] / summary["macs_dense"])
        assert removed == pytest.approx(summary["budget"]["after_cut_pct"], abs=0.1)
    words = {"macs": "multiplications", "latency": "measured time"}[measure]
    assert f"40 % of the {words} go" in (tmp_path / "report.html").read_text()


def test_a_budget_out_of_reach_says_what_can_be_reached(tmp_path: Path) -> None:
    # Filters alone: with one left in each layer, most of this chain is linear layers.
    model = convnet()
    left = compact(
        model, {"0": torch.arange(8) < 1, "4": torch.arange(16) < 1}, torch.zeros(2, 1, 8, 8)
    )
    reachable = 100 * (1 - size(left) / size(model))
    counter = Counter(model, torch.zeros(2, 1, 8, 8))
    assert reachable_pct(counter, {"0": 8, "4": 16}) == pytest.approx(reachable)
    message = rf"target_removed_pct = 99 cannot be reached.*{reachable:.1f} % of the parameters"
    with pytest.raises(RecipeError, match=message):
        run_recipe(tiny_recipe(spr={"target_removed_pct": 99}), tmp_path)


def test_a_budget_between_what_whole_entities_give_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(RunDisplay, "warn", lambda self, message: warnings.append(message))
    spr = {"target_removed_pct": 3, "entities": "neurons"}  # one neuron of four is far more
    recipe = tiny_recipe(
        model="models.toy:mlp", model_kwargs={"hidden": [4]}, spr=spr, finetune={"epochs": 0}
    )
    summary = run_recipe(recipe, tmp_path, judge=False)
    assert any("the budget of 3 % is missed: the cut by rank" in warning for warning in warnings)
    assert summary["removed_params_pct"] == pytest.approx(summary["budget"]["after_cut_pct"])
    assert summary["removed_params"] == 0
    with pytest.raises(
        RunError, match="target_removed_pct = 3 is less than half of what the small"
    ):
        run_recipe(recipe, tmp_path, resume=True)


def test_an_exact_cut_meets_two_budgets_and_swaps_lower_the_loss(tmp_path: Path) -> None:
    spr = {
        "target_removed_pct": 50, "cut": "exact", "also_removed_pct": {"macs": 60},
        "improve": "swaps", "entities": ["filters", "neurons"], "lam": 0.01, "start": "dense",
    }  # fmt: skip
    summary = run_recipe(tiny_recipe(spr=spr), tmp_path, judge=False)
    budget = summary["budget"]
    assert summary["removed_params_pct"] >= 49.9
    assert 100 * (1 - summary["macs_compact"] / summary["macs_dense"]) >= 59.9
    assert budget["removed_pct"]["macs"] == pytest.approx(
        100 * (1 - summary["macs_compact"] / summary["macs_dense"])
    )
    assert 0 < budget["price_bound"] <= budget["price"] <= budget["price_bound"] * (1 + 2e-4)
    assert budget["loss_after_swaps"] <= budget["loss_before_swaps"] and budget["swaps"] >= 0


def test_swaps_keep_to_the_budget_where_filters_share_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[bool] = []
    real = improve.improve_by_swaps

    def remembered(*given: Any) -> Any:
        masks, fits = given[2], given[-1]
        one_left = {name: torch.arange(len(keep)) == 0 for name, keep in masks.items()}
        all_left = {name: torch.ones_like(keep) for name, keep in masks.items()}
        asked.extend(fits(other) for other in (masks, one_left, all_left))
        return real(*given)

    monkeypatch.setattr(improve, "improve_by_swaps", remembered)
    spr = {"target_removed_pct": 50, "improve": "swaps", "lam": 0.01, "start": "dense"}
    recipe = tiny_recipe(model="models.toy:digits_resnet", spr=spr, finetune={"epochs": 0})
    summary = run_recipe(recipe, tmp_path, judge=False)
    counted = summary["budget"]["after_cut_pct"]
    assert asked == [True, False, False]  # more than the budget does not fit either
    assert counted <= 51.0 + 1e-6 and summary["removed_params_pct"] == pytest.approx(counted)


def test_layers_lower_the_loss_and_a_resumed_run_ends_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    search = layer_sets.channel_scores  # without time to search, so that no clock decides
    monkeypatch.setattr(layer_sets, "channel_scores", lambda *given: search(*given[:-1], 0.0))
    spr = {"target_removed_pct": 80, "improve": "layers", "lam": 0.01, "start": "dense"}
    recipe = tiny_recipe(model="models.toy:digits_resnet", spr=spr)
    summary = run_recipe(recipe, tmp_path / "whole", judge=False)
    with stopped_at("finetune", 1), pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "broken", judge=False)
    again = run_recipe(recipe, tmp_path / "broken", judge=False, resume=True)
    budget = summary["budget"]
    assert budget["loss_after_layers"] <= budget["loss_after_swaps"]
    assert budget["layers_with_new_sets"] + budget["layers_with_new_weights"] > 0
    assert budget["layers_proven"] <= budget["layers_with_new_sets"]
    assert budget["held_out_loss_after_improving"] != budget["held_out_loss_before_improving"]
    assert summary["removed_params_pct"] >= budget["after_cut_pct"] - 1e-6
    assert again["budget"] == budget and again["accuracy"] == summary["accuracy"]
    compact = [tmp_path / place / "compact.safetensors" for place in ("whole", "broken")]
    assert_identical(load_file(compact[0]), load_file(compact[1]), "compact")
    assert "layers with another set of entities" in (tmp_path / "whole/report.html").read_text()


@pytest.mark.parametrize(
    ("spr", "message"),
    [
        (
            {"also_removed_pct": {"macs": 99.9}},
            r"99\.8 % of macs cannot be removed.*\d % of macs go",
        ),
        ({"entities": "filters"}, 'write one feature together: use entities = "channels"'),
    ],
)
def test_what_an_exact_cut_cannot_do_is_told_before_training(
    spr: dict[str, Any], message: str, tmp_path: Path
) -> None:
    cut = {"target_removed_pct": 50, "cut": "exact", "entities": "channels"} | spr
    with pytest.raises(
        RecipeError, match=rf'"exact" does not fit models.toy:digits_resnet: .*{message}'
    ):
        run_recipe(tiny_recipe(model="models.toy:digits_resnet", spr=cut), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_swaps_of_a_transformers_channels_are_refused_before_training(tmp_path: Path) -> None:
    spr = {"target_removed_pct": 30, "improve": "swaps", "entities": "channels"}
    with pytest.raises(RecipeError, match='"swaps" does not fit models.vit:.* cannot be gated'):
        run_recipe(tiny_recipe(model="models.vit:vit_tiny_digits", spr=spr), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_layers_need_a_convolution_that_reads_a_layer(tmp_path: Path) -> None:
    spr = {"target_removed_pct": 30, "improve": "layers", "entities": "neurons"}
    with pytest.raises(RecipeError, match='"layers" does not fit models.toy:mlp: there is no conv'):
        run_recipe(tiny_recipe(model="models.toy:mlp", spr=spr), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_rival_has_a_cut_of_its_own() -> None:
    with pytest.raises(RecipeError, match="method pffec has a cut of its own"):
        tiny_recipe(method={"name": "pffec"}, spr={"target_removed_pct": 50, "cut": "exact"})


@pytest.mark.parametrize(
    ("spr", "message"),
    [
        ({"target_removed_pct": 100}, "spr.target_removed_pct: .*less than 100"),
        ({"target_removed_pct": 50, "lam": 0}, "starts from lam, which must then be positive"),
        (
            {"round_to": 8},
            "round_to, min_keep, target_of, cut and improve belong to a budget: set tar",
        ),
        ({"cut": "exact"}, "cut and improve belong to a budget: set targ"),
        (
            {"target_removed_pct": 50, "also_removed_pct": {"macs": 50}},
            'also_removed_pct needs cut = "exact"',
        ),
        (
            {"target_removed_pct": 50, "cut": "exact", "also_removed_pct": {"params": 60}},
            "also_removed_pct names params, which target_removed_pct is about",
        ),
        ({"target_removed_pct": 50, "min_keep": -1}, "min_keep"),
        ({"lam_warmup": 3}, "lam_warmup = 3 must be shorter than epochs = 3"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(spr: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(spr=spr)


def budget_recipe(method: str) -> Recipe:
    return tiny_recipe(
        model="models.toy:digits_resnet",
        data={"train_rows": 64},
        spr={"method": method, "target_removed_pct": 60, "epochs": 5, "lam": 40.0,
             "lam_warmup": 1, "bounds_every": 2, "start": "dense"},
        finetune={"epochs": 2, "distill": 0.5},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs by `budget_recipe` that nothing disturbed, one for each method."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        no_pictures_in(patch)
        for method in ("prox", "gradient"):
            run_recipe(budget_recipe(method), folder / method)
    return {method: folder / method for method in ("prox", "gradient")}


@pytest.mark.parametrize(
    ("method", "place"),
    slow_unless(
        lambda method, place: (method == "prox") == (place[0] == "spr"),
        itertools.product(("prox", "gradient"), (("spr", 3), ("finetune", 0))),
    ),
)
def test_a_budget_resumes_to_the_last_bit(
    method: str, place: tuple[str, int], whole_runs: dict[str, Path], tmp_path: Path
) -> None:
    recipe, folders = budget_recipe(method), (whole_runs[method], tmp_path / "broken")

    def stop(self: RunDisplay, record: dict[str, Any]) -> None:
        if (record["phase"], record["epoch"]) == place:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDisplay, "epoch", stop)
        run_recipe(recipe, tmp_path / "broken")
    summary = run_recipe(recipe, tmp_path / "broken", resume=True)
    compacts = [(folder / "compact.safetensors").read_bytes() for folder in folders]
    assert compacts[0] == compacts[1]
    records = [read_metrics(folder / "metrics.jsonl") for folder in folders]
    for record in (*records[0], *records[1]):
        del record["seconds"], record["data_wait_share"]
    assert records[0] == records[1]
    state = checkpoint.load(folders[0] / "checkpoints" / "last.pt")
    assert state["budget"] == summary["budget"]

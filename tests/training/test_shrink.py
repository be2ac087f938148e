"""`spr.shrink`: a run whose network becomes smaller between epochs, also across a stop."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_runs import assert_identical, no_pictures_in, stopped_at, tiny_recipe
from torch import nn

from spr_or.pruning.compaction import remembered
from spr_or.pruning.compaction import trace as tracing
from spr_or.pruning.compaction.api import load_compact
from spr_or.training import checkpoint, distributed
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import Recipe, RecipeError
from spr_or.training.runner import run_recipe
from spr_or.training.shrink import Shrinking
from spr_or.training.step import make_step

SPR = {"lam": 30.0,
    "alpha": 0.1, "start": "dense", "epochs": 8, "lr": 0.05,
    "target_removed_pct": 60, "shrink": True, "shrink_after": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


def shrinking(rows: int = 640, **spr: Any) -> Recipe:
    return tiny_recipe(
        model="models.toy:digits_resnet",
        data={"train_rows": rows},
        dense={"epochs": 3},
        spr=SPR | spr,
    )


def sizes(folder: Path, phase: str = "spr") -> list[float]:
    return [r["macs_pct"] for r in read_metrics(folder / "metrics.jsonl") if r["phase"] == phase]


class Run(NamedTuple):
    """A run that nothing disturbed."""

    summary: dict[str, Any]
    folder: Path
    trained: list[int]  # the parameters of each network for which a step was made
    traces: int  # networks that torch traced, where nothing was remembered before


def ran(recipe: Recipe, folder: Path) -> Run:
    trained: list[int] = []
    traced: list[nn.Module] = []
    really = tracing._traced

    def counted(model: nn.Module, *arguments: Any) -> Any:
        traced.append(model)
        return really(model, *arguments)

    def watched(model: nn.Module, *arguments: Any, **settings: Any) -> Any:
        trained.append(sum(p.numel() for p in model.parameters()))
        return make_step(model, *arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        no_pictures_in(patch)
        patch.setattr("spr_or.training.one_phase.make_step", watched)
        patch.setattr(tracing, "_traced", counted)
        memory = remembered._memory.set(None)
        summary = run_recipe(recipe, folder)
        remembered._memory.reset(memory)
        return Run(summary, folder, trained, len(traced))


@pytest.fixture(scope="module")
def of_filters(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ran(shrinking(rows=320, epochs=6), tmp_path_factory.mktemp("filters"))


@pytest.mark.parametrize(
    "spr",
    [
        {},
        pytest.param({"include_norm": True, "lam": 25.0}, marks=pytest.mark.slow),
        pytest.param({"entities": "channels", "lam": 25.0}, marks=pytest.mark.slow),
        pytest.param(
            {"entities": "channels", "lam": 25.0, "bounds": "entity", "bounds_every": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param({"method": "gradient", "lam": 100.0}, marks=pytest.mark.slow),
    ],
    ids=lambda spr: "-".join(map(str, spr.values())) or "filters",
)
def test_the_network_becomes_smaller_and_the_result_speaks_of_the_original(spr, tmp_path, request):
    run = ran(shrinking(**spr), tmp_path) if spr else request.getfixturevalue("of_filters")
    summary, folder = run.summary, run.folder
    during, after = sizes(folder), sizes(folder, "finetune")
    assert during[0] == 100 and during == sorted(during, reverse=True)
    assert during[-1] < 95, "nothing left the network during the phase"
    assert after[0] < during[-1] + 1e-9 and len(set(after)) == 1
    assert summary["removed_params_pct"] == pytest.approx(60, abs=2)
    assert summary["max_abs_logit_diff"] < 1e-3
    smaller = load_compact(folder / "compact.safetensors")
    total = summary["parameters"] - summary["removed_params"]
    assert sum(p.numel() for p in smaller.parameters()) == total
    # The checkpoint is one of the original network.
    state = checkpoint.load(folder / "checkpoints" / checkpoint.LAST)
    assert sum(t.numel() for n, t in state["model"].items() if n.endswith("weight")) > total


@pytest.mark.slow
def test_a_run_stopped_anywhere_goes_on_to_the_same_weights(tmp_path):
    whole = tmp_path / "whole"
    run_recipe(shrinking(), whole)
    assert len(set(sizes(whole))) > 1
    for phase, epoch in [*(("spr", e) for e in range(2, 8)), ("finetune", 0), ("finetune", 1)]:
        place = tmp_path / f"{phase}-{epoch}"
        with pytest.raises(KeyboardInterrupt), stopped_at(phase, epoch):
            run_recipe(shrinking(), place)
        run_recipe(shrinking(), place, resume=True)
        one, two = (
            checkpoint.load(folder / "checkpoints" / checkpoint.LAST) for folder in (whole, place)
        )
        assert_identical(one, two, f"{phase}-{epoch}")
        assert sizes(whole) == sizes(place)


def test_a_run_stopped_in_its_small_network_goes_on(tmp_path):
    recipe = shrinking(rows=320, epochs=5)
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 4):
        run_recipe(recipe, tmp_path)
    assert len(set(sizes(tmp_path))) > 1
    run_recipe(recipe, tmp_path, resume=True)
    during = sizes(tmp_path)
    assert during == sorted(during, reverse=True) and len(during) == 5


def test_a_budget_is_met_early_and_the_rest_trains_the_small_network(of_filters):
    """Lambda is raised as in a phase of half the length, and what it has not emptied by then is cut."""
    records = read_metrics(of_filters.folder / "metrics.jsonl")
    spr = [r for r in records if r["phase"] == "spr"]
    assert len(spr) == 6 and [bool(r["lam"]) for r in spr] == [True] * 3 + [False] * 3
    assert [r["scheduled_pct"] for r in spr[:3]] == [
        pytest.approx(x, abs=0.01) for x in (41.48, 59.26, 60)
    ]
    after = {r["macs_pct"] for r in records if r["phase"] == "finetune"}
    assert {r["macs_pct"] for r in spr[3:]} == after, "the small network is that of the budget"
    budget = of_filters.summary["budget"]
    assert budget["after_cut_pct"] == pytest.approx(60, abs=2) and budget["lam"] > 0


@pytest.mark.parametrize(
    ("spr", "told"),
    [({"improve": "swaps"}, "swaps"), ({"cut": "exact", "entities": "channels"}, "price_bound")],
    ids=["improve", "exact"],
)
def test_an_early_cut_is_made_as_one_at_the_end(spr, told, tmp_path):
    summary = run_recipe(shrinking(rows=320, epochs=4, **spr), tmp_path)
    assert told in summary["budget"]
    assert summary["removed_params_pct"] == pytest.approx(60, abs=2)
    during = sizes(tmp_path)
    assert during[0] == 100 and during[2] == during[3] == sizes(tmp_path, "finetune")[0]


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(None, marks=pytest.mark.slow),
        ("spr", 2),
        pytest.param(("finetune", 0), marks=pytest.mark.slow),
    ],
)
def test_where_fine_tuning_begins_with_the_dense_weights_it_begins_as_soon_as_the_budget_is_met(
    stop, tmp_path
):
    values = shrinking(rows=320, epochs=6).model_dump()
    recipe = Recipe.model_validate(values | {"finetune": {"epochs": 2, "start": "dense"}})
    if stop is None:
        run_recipe(recipe, tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt), stopped_at(*stop):
            run_recipe(recipe, tmp_path)
        run_recipe(recipe, tmp_path, resume=True)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["epoch"] for r in records if r["phase"] == "spr"] == [0, 1, 2]
    assert [r["epoch"] for r in records if r["phase"] == "finetune"] == [0, 1, 2, 3, 4]


def test_without_shrinking_the_records_are_those_of_before(tmp_path):
    run_recipe(shrinking(rows=64, shrink=False), tmp_path)
    assert all("macs_pct" not in r for r in read_metrics(tmp_path / "metrics.jsonl"))


def test_the_small_network_is_what_is_trained(of_filters):
    summary, trained = of_filters.summary, of_filters.trained
    assert trained[-1] == summary["parameters"] - summary["removed_params"]
    assert len(trained) >= 4  # dense, SPR, at least one smaller network, fine-tuning


def test_a_run_that_shrinks_traces_its_network_once(of_filters):
    assert len(set(sizes(of_filters.folder))) > 1 and of_filters.traces == 1


@pytest.mark.slow
def test_no_more_leaves_than_the_budget_asks_for(tmp_path):
    """Lambda is far too strong: nearly all entities die, and the budget wants most of them back."""
    summary = run_recipe(shrinking(lam=200.0, target_removed_pct=30), tmp_path)
    assert summary["removed_params_pct"] == pytest.approx(30, abs=2)


@pytest.mark.slow
def test_multiples_are_kept_on_the_way(tmp_path):
    summary = run_recipe(shrinking(round_to=4), tmp_path)
    for row in summary["layers"]:
        if row["filters_after"] is not None and row["layer"] != "fc":
            assert row["filters_after"] % 4 == 0, row


class Shifted(nn.Module):
    """A bias of its own behind the layer, which no mask of the layer silences."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3)
        self.shift = nn.Parameter(torch.ones(16, 1, 1))
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x) + self.shift).mean((2, 3)))


def test_a_network_that_would_train_differently_stays_whole_and_says_so(tmp_path, capsys):
    found = []
    for shrink in (True, False):
        spr = SPR | {"shrink": shrink, "target_removed_pct": None}
        run_recipe(tiny_recipe(model=f"{__name__}:Shifted", spr=spr), tmp_path / str(shrink))
        records = read_metrics(tmp_path / str(shrink) / "metrics.jsonl")
        found.append([(r["loss"], r["eval_loss"]) for r in records])
    assert found[0] == found[1]
    assert set(sizes(tmp_path / "True") + sizes(tmp_path / "True", "finetune")) == {100.0}


def test_a_cut_that_was_refused_is_not_tried_again_after_a_stop(tmp_path):
    """Nor has it changed the network: what the cut gave back belonged to masks that do not hold."""
    spr = SPR | {"target_removed_pct": 30, "epochs": 6}
    recipe = tiny_recipe(model=f"{__name__}:Shifted", spr=spr)
    before: list[dict[str, torch.Tensor]] = []
    after: list[dict[str, torch.Tensor]] = []
    cut = Shrinking._cut

    def weights(shrinking: Shrinking) -> dict[str, torch.Tensor]:
        return {n: t.clone() for n, t in shrinking.trainee.model.state_dict().items()}

    def watched(self: Shrinking, *arguments: Any) -> bool:
        before.append(weights(self))
        found = cut(self, *arguments)
        after.append(weights(self))
        assert not found and self.refused
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shrinking, "_cut", watched)
        whole = run_recipe(recipe, tmp_path / "whole")
        assert len(before) == 1
        assert_identical(after[0], before[0], "the network")
        with pytest.raises(KeyboardInterrupt), stopped_at("spr", 4):
            run_recipe(recipe, tmp_path / "stopped")
        run_recipe(recipe, tmp_path / "stopped", resume=True)
        assert len(before) == 2
    found = [read_metrics(tmp_path / n / "metrics.jsonl") for n in ("whole", "stopped")]
    losses = [[(r["phase"], r["loss"]) for r in records] for records in found]
    assert losses[0] == losses[1] and whole["budget"] is not None


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: distributed.World(0, 2))
    with pytest.raises(RecipeError, match=r"spr\.shrink"):
        run_recipe(shrinking(), tmp_path)

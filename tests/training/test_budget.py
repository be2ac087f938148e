"""A budget instead of lambda: the count, the controller, the final cut, and whole runs."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_cases import slow_unless
from tiny_runs import no_pictures_in, tiny_recipe
from torch import nn

from models.resnet_cifar import resnet20
from models.toy import convnet, digits_resnet, mlp
from spr_or.pruning.compaction.api import compact
from spr_or.training import checkpoint
from spr_or.training.metrics import read_metrics
from spr_or.training.parameter_budget import Counter, choose, next_lam, reachable_pct, scheduled_pct
from spr_or.training.recipe import Recipe, RecipeError
from spr_or.training.run_progress import RunDisplay
from spr_or.training.runner import run_recipe


@pytest.fixture(autouse=True)
def no_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


# --- the count ------------------------------------------------------------------------------


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize(
    ("build", "kinds", "shape"),
    [
        (digits_resnet, nn.Conv2d, (2, 1, 8, 8)),
        (convnet, (nn.Conv2d, nn.Linear), (2, 1, 8, 8)),
        (mlp, nn.Linear, (2, 64)),
        (resnet20, nn.Conv2d, (2, 3, 32, 32)),
    ],
    ids=["resnet", "convnet", "mlp", "resnet20"],
)
def test_the_count_is_what_compaction_removes(
    build: Any, kinds: Any, shape: tuple[int, ...], share: float
) -> None:
    torch.manual_seed(int(10 * share))
    model, example = build(), torch.randn(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    if kinds != nn.Conv2d:
        layers.popitem()  # the answer
    masks = {n: torch.rand(len(layer.weight)) >= share for n, layer in layers.items()}
    counter = Counter(model, example)

    def removed() -> float:
        return 100 * (1 - size(compact(model, masks, example)) / size(model))

    # Where a layer has nothing left, the signs of shifts decide whether a constant is carried on.
    assert counter(masks) == pytest.approx(removed(), abs=0.5)
    for keep in masks.values():
        keep[0] = True
    assert counter(masks) == pytest.approx(removed(), abs=1e-9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert Counter(model, example)(masks) == counter(masks)  # the weights do not matter


# --- the controller -------------------------------------------------------------------------


def simulated(
    target: float, start: float, epochs: int, lag: float, sticky: bool
) -> tuple[float, list[float]]:
    """A network that answers to lambda as a first-order lag; sticky: what is gone stays gone."""
    lam, share, lams = start, 0.0, []
    shares: list[float] = []
    for _ in range(epochs):
        lams.append(lam)
        wants = 100 / (1 + (20 / lam) ** 1.2)  # half of it goes at lambda = 20
        change = (wants - share) * (1 - math.exp(-1 / (lag * epochs)))
        share += max(change, 0.0) if sticky else change
        shares.append(share)
        lam = next_lam(lam, start, shares, target, epochs)
    return share, lams


# From 60, four fifths may be gone after an epoch, and what is sticky cannot return.
@pytest.mark.parametrize(
    ("start", "sticky"), [(2.0, False), (2.0, True), (20.0, False), (20.0, True), (60.0, False)]
)
@pytest.mark.parametrize("lag", [0.03, 0.15, 0.4])
@pytest.mark.parametrize("epochs", [30, 300])
@pytest.mark.parametrize("target", [40.0, 60.0, 80.0])
def test_the_controller_steers_a_simulated_network(
    target: float, start: float, epochs: int, lag: float, sticky: bool
) -> None:
    share, lams = simulated(target, start, epochs, lag, sticky)
    assert share == pytest.approx(target, abs=6.0)
    steps = [abs(math.log(b / a)) for a, b in zip(lams, lams[1:], strict=False)]
    assert max(steps) <= math.log(4) / max(1, round(epochs / 10)) + 1e-9
    assert all(start / 100 <= lam <= start * 100 for lam in lams)


def test_the_schedule_rises_to_the_target_and_stays() -> None:
    course = [scheduled_pct(60.0, epoch, 40) for epoch in range(40)]
    assert all(a < b for a, b in zip(course[:29], course[1:30], strict=True))
    assert course[29:] == [60.0] * 11


def test_lambda_falls_where_too_much_could_go_and_rises_where_too_little() -> None:
    assert next_lam(10, 10, [80.0, 80.0], target=50, epochs=20) < 10
    assert next_lam(10, 10, [5.0, 5.0], target=50, epochs=20) > 10
    # On its way at twice the pace of the schedule: it slows down before it is there.
    assert next_lam(10, 10, [0.0, 15.0, 30.0, 45.0], target=50, epochs=20) < 10


# --- the cut --------------------------------------------------------------------------------


def random_choice(seed: int, target: float) -> tuple[Any, ...]:
    torch.manual_seed(seed)
    sizes = {"a": 4, "b": 3, "c": 5}
    cost = {name: torch.rand(n) for name, n in sizes.items()}
    total = float(sum(c.sum() for c in cost.values()))

    def count(masks: dict[str, torch.Tensor]) -> float:
        return 100 * sum(float(cost[n][~masks[n]].sum()) for n in masks) / total

    indicators = {n: torch.rand(k).round(decimals=1) for n, k in sizes.items()}
    gone = {n: value > 0.2 for n, value in indicators.items()}
    indicators = {n: value * gone[n] for n, value in indicators.items()}
    age = {n: torch.rand(k) for n, k in sizes.items()}
    return count, gone, indicators, age, target, choose(count, gone, indicators, age, target)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("target", [5.0, 30.0, 70.0])
def test_the_cut_is_at_least_as_near_as_any_prefix_of_the_ranking(seed: int, target: float) -> None:
    count, gone, indicators, age, target, choice = random_choice(seed, target)
    assert choice.removed_pct == pytest.approx(count(choice.masks))
    entities = [
        (bool(gone[n][i]), float(indicators[n][i]), float(age[n][i]), n, i)
        for n in gone
        for i in range(len(gone[n]))
    ]
    last = {n: max(entity for entity in entities if entity[3] == n)[4] for n in gone}
    order = sorted(e for e in entities if not (e[0] and e[4] == last[e[3]]))
    prefixes = []
    for length in range(len(order) + 1):
        masks = {n: torch.ones_like(keep) for n, keep in gone.items()}
        for *_, n, i in order[:length]:
            masks[n][i] = False
        prefixes.append(count(masks))
    nearest = min(abs(share - target) for share in prefixes)
    assert abs(choice.removed_pct - target) <= nearest + 1e-9
    zero = sum(int((~keep).sum()) for keep in gone.values())
    went = sum(int((~keep).sum()) for keep in choice.masks.values())
    assert choice.cut == went - zero
    for name, keep in choice.masks.items():
        if gone[name].any():
            assert keep.any(), f"the cut took the last entity of {name}"


def test_what_is_given_back_went_last() -> None:
    gone = {"a": torch.tensor([False, False, False, True])}
    indicators = {"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    age = {"a": torch.tensor([3.0, 9.0, 5.0, 9.5])}
    choice = choose(lambda m: 25.0 * int((~m["a"]).sum()), gone, indicators, age, 50.0)
    assert choice.masks["a"].tolist() == [False, True, False, True]
    assert (choice.cut, choice.threshold) == (-1, 0.0)


# --- whole runs -----------------------------------------------------------------------------

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
    summary = run_recipe(recipe, tmp_path)
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
    assert "after the cut by rank" in page and f"{budget['after_cut_pct']:.1f} %" in page


def test_a_budget_counts_neurons_too(tmp_path: Path) -> None:
    spr = {"target_removed_pct": 50, "entities": ["filters", "neurons"], "lam": 1.0, "epochs": 4}
    summary = run_recipe(tiny_recipe(spr=spr), tmp_path)
    assert summary["removed_params_pct"] == pytest.approx(50, abs=1.0)


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
    summary = run_recipe(recipe, tmp_path)
    assert any("the budget of 3 % is missed: the nearest" in warning for warning in warnings)
    assert summary["removed_params_pct"] == pytest.approx(summary["budget"]["after_cut_pct"])


@pytest.mark.parametrize(
    ("spr", "message"),
    [
        ({"target_removed_pct": 100}, "spr.target_removed_pct: .*less than 100"),
        ({"target_removed_pct": 50, "lam": 0}, "starts from lam, which must then be positive"),
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

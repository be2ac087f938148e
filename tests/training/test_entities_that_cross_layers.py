"""Recipes whose entities are channels, heads, hidden neurons or blocks, from data to report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_cases import slow_unless
from tiny_runs import assert_identical, no_pictures_in, stopped_at, tiny_recipe
from torch import nn

from spr_or.pruning.chosen_entities import chosen_entities
from spr_or.pruning.compaction.api import load_compact
from spr_or.pruning.counts import count_parameters
from spr_or.pruning.groups import EntityGroup
from spr_or.pruning.steering import renew_bounds_
from spr_or.training.metrics import read_metrics
from spr_or.training.pruning import make_spr
from spr_or.training.recipe import RecipeError
from spr_or.training.report.magnitude import magnitude_masks
from spr_or.training.runner import run_recipe

BUDGET = {"target_removed_pct": 40, "lam": 2.0, "epochs": 2}


def recipe(model: str, **spr: Any) -> Any:
    return tiny_recipe(
        model=model,
        data={"train_rows": 96, "eval_rows": 32},
        dense={"epochs": 1},
        spr={"epochs": 1, **spr},
        finetune={"epochs": 1},
    )


CASES = {
    "channels": ("models.toy:digits_resnet", {"entities": "channels", "round_to": 4} | BUDGET),
    "heads": ("models.vit:vit_tiny_digits", {"entities": ["heads", "neurons"]} | BUDGET),
    "blocks": ("models.toy:digits_resnet", {"entities": "blocks", "lam": 30.0}),
}


@pytest.mark.parametrize("case", slow_unless(lambda case: case != "heads", CASES))
def test_a_run_removes_them_and_reports_them(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case != "channels":
        no_pictures_in(monkeypatch)
    model, spr = CASES[case]
    summary = run_recipe(recipe(model, **spr), tmp_path, judge=False)  # after a moment of training
    small = load_compact(tmp_path / "compact.safetensors")
    assert summary["parameters"] - count_parameters(small) == summary["removed_params"] > 0
    assert summary["max_abs_logit_diff"] < 1e-4 and 0 <= summary["magnitude_accuracy"] <= 100
    groups = summary["groups"]
    assert json.loads((tmp_path / "summary.json").read_text())["groups"] == groups
    assert {g["kind"] for g in groups} <= {case, "neurons"}
    assert sum(g["total"] - g["kept"] for g in groups) > 0
    if "target_removed_pct" in spr:
        assert summary["removed_params_pct"] == pytest.approx(40, abs=3)
        counted = summary["budget"][
            "after_cut_pct"
        ]  # a branch that keeps nothing leaves a constant
        assert counted == pytest.approx(summary["removed_params_pct"], abs=0.5)
    if case == "channels":
        assert all(g["kept"] % 4 == 0 or g["kept"] == g["total"] for g in groups)
        assert "Entities that cross layers" in (tmp_path / "report.html").read_text()
    if case == "blocks":
        assert summary["collapsed_layers"] == []  # a branch that goes is no layer that collapsed


@pytest.mark.slow
def test_a_run_of_channels_continues_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pictures_in(monkeypatch)
    chosen = recipe("models.toy:digits_resnet", entities="channels", bounds_every=1, **BUDGET)
    run_recipe(chosen, tmp_path / "whole")
    for phase, epoch in (("spr", 1), ("finetune", 0)):
        with stopped_at(phase, epoch), pytest.raises(KeyboardInterrupt):
            run_recipe(chosen, tmp_path / "parts", resume=(tmp_path / "parts").exists())
    run_recipe(chosen, tmp_path / "parts", resume=True)
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    for one, other in zip(*logs, strict=True):
        timed = ("seconds", "data_wait_share")
        assert_identical(
            *({k: v for k, v in r.items() if k not in timed} for r in (one, other)), "record"
        )
    files = [tmp_path / name / "compact.safetensors" for name in ("whole", "parts")]
    assert_identical(*(load_compact(file).state_dict() for file in files), "compact")


def test_kinds_that_a_network_lacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no heads"):
        run_recipe(recipe("models.toy:convnet", entities="heads"), tmp_path)


def test_layers_that_write_the_outputs_are_left_out() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    found = chosen_entities(net, torch.zeros(2, 1, 8, 8), "filters").of(net)
    assert [layer.name for layer in found] == ["0"]


def grouped() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    net.append(nn.Flatten())
    return net, chosen_entities(net, torch.zeros(2, 1, 3, 3), "channels")


def test_chosen_groups_fit_every_copy_and_hold_no_ignored_layer() -> None:
    net, chosen = grouped()
    other, _ = grouped()
    (group,) = chosen.entities
    assert isinstance(group, EntityGroup) and group.kind == "channels"
    parameters = {id(p): n for n, p in other.named_parameters()}
    (layer,) = chosen.of(other)
    names = [parameters[id(p)] for p in layer.parameters]
    assert sorted(names) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    with pytest.raises(ValueError, match="ignored layer"):
        chosen_entities(net, torch.zeros(2, 1, 3, 3), "channels", ignored=["1"])


@pytest.mark.parametrize("per", ["layer", "entity"])
def test_bounds_of_groups_are_renewed_layer_by_layer(per: str) -> None:
    net, chosen = grouped()
    spr = make_spr(tiny_recipe().spr, net, 5.0, chosen)
    with torch.no_grad():
        for parameter in net[:2].parameters():  # type: ignore[index]
            parameter[2] = 0
    renew_bounds_(spr, per)
    convolution = torch.cat([net[0].weight.flatten(1), net[0].bias.unsqueeze(1)], 1)  # type: ignore[index,operator,union-attr]
    peaks = torch.stack([convolution.abs().amax(1), torch.tensor([1.0, 1.0, 0.0, 1.0])], 1)
    expected = peaks.amax(0).expand(4, 2).clone()
    if per == "entity":
        expected = torch.maximum(peaks, 1e-3 * peaks.amax(0))
        expected[2] = 5.0  # an entity that is gone keeps its own
    torch.testing.assert_close(spr.bound.view(4, 2), expected.detach())


def test_magnitudes_of_groups_are_those_of_all_their_weights() -> None:
    net, chosen = grouped()
    layers = chosen.of(net)
    with torch.no_grad():
        net[0].weight.fill_(0.1)  # type: ignore[index,operator,union-attr]
        net[1].weight.copy_(torch.tensor([4.0, 1.0, 3.0, 2.0]))  # type: ignore[index,operator,union-attr]
    masks = {layers[0].name: torch.tensor([False, True, True, False])}
    assert magnitude_masks(net, masks, layers)["0"].tolist() == [True, False, True, False]


def test_the_smallest_filters_of_a_transposed_convolution_are_those_of_its_outputs() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2))
    with torch.no_grad():
        net[0].weight.fill_(0.1)
        net[0].weight[:2, 2] = 5.0  # output 2 of the first group
        net[0].weight[2:, 1] = 5.0  # output 4, in the second
    keep = torch.tensor([True, True, False, False, False, False])
    assert magnitude_masks(net, {"0": keep})["0"].nonzero().flatten().tolist() == [2, 4]

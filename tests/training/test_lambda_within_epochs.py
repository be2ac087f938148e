"""Short phases of long epochs move lambda within their epochs: what could go is read oftener."""

import math
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import assert_identical, no_pictures_in, stopped_at, tiny_recipe

from spr_or.pruning import budget, steering
from spr_or.pruning.budget import next_lam, reading_steps
from spr_or.pruning.lam_course import EASE, LamCourse
from spr_or.training import checkpoint, going_back
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import Recipe
from spr_or.training.runner import run_recipe

TARGET, EPOCHS = 40.0, 5


@pytest.fixture(autouse=True)
def readings_after_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)
    monkeypatch.setattr(budget, "_LEAST_STEPS", 1)  # epochs of tests have four steps


def short(**changes: Any) -> Recipe:
    spr = {"target_removed_pct": TARGET, "start": "dense", "lam": 20.0, "epochs": EPOCHS}
    return tiny_recipe(dense={"epochs": 2}, finetune={"epochs": 1}, spr=spr, **changes)


def steering_of(folder: Path) -> dict[str, Any]:
    steering: dict[str, Any] = checkpoint.load(folder / "checkpoints" / "last.pt")["steering"]
    return steering


def test_where_readings_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert reading_steps(20, 10_000) == reading_steps(300, 10_000) == []  # as long phases ever did
    assert reading_steps(5, 299) == [] and reading_steps(5, 300) == [150]
    assert reading_steps(1, 100_000) == [5000 * k for k in range(1, 20)]


def test_lambda_follows_the_rule_at_each_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "distances_to_go", lambda *_: (1.0, 1.0))  # nothing comes nearer
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 2):
        run_recipe(short(), tmp_path, judge=False)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["phase"] == "spr"]
    state = steering_of(tmp_path)
    readings = len(state["stops"]) + 1
    done = len(state["shares"]) // readings
    assert readings == 4 and done >= 2 and len(state["shares"]) == readings * done
    lam, course = 20.0, []
    for reading in range(len(state["shares"])):
        course.append(lam)
        lam = next_lam(lam, 20.0, state["shares"][: reading + 1], TARGET, EPOCHS, readings)
    assert state["lam"] == pytest.approx(lam)
    for epoch, record in enumerate(records[:done]):  # lambda of the last quarter of the epoch
        assert record["lam"] == pytest.approx(course[readings * (epoch + 1) - 1])
        assert record["removable_pct"] == state["shares"][readings * (epoch + 1) - 1]


def test_an_epoch_moves_lambda_no_further_than_one_reading_did() -> None:
    for shares, factor in (([0.0], 3.0), ([0.0, 50.0], 1 / 4)):
        one, four = 1.0, 1.0
        one = next_lam(one, 1.0, shares, 40.0, 5)
        quarters: list[float] = []
        for share in shares:
            for _ in range(4):
                quarters.append(share)
        for k in range(4):
            four = next_lam(four, 1.0, quarters[: len(quarters) - 3 + k], 40.0, 5, readings=4)
        assert one == pytest.approx(factor) and four == pytest.approx(factor)


def test_the_budget_is_met_by_zeros(tmp_path: Path) -> None:
    summary = run_recipe(short(), tmp_path, judge=False)
    assert summary["removed_params_pct"] == pytest.approx(TARGET, abs=2.0)


@pytest.mark.parametrize("shrink", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_killed_run_ends_with_the_same_bits(shrink: bool, tmp_path: Path) -> None:
    recipe = short()
    recipe = recipe.model_copy(update={"spr": recipe.spr.model_copy(update={"shrink": shrink})})
    run_recipe(recipe, tmp_path / "whole", judge=False)
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 3):
        run_recipe(recipe, tmp_path / "killed", judge=False)
    run_recipe(recipe, tmp_path / "killed", judge=False, resume=True)
    states = [
        checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "killed")
    ]
    assert_identical(states[0], states[1], "killed")


def test_a_checkpoint_from_before_goes_on_by_epochs(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 2):
        run_recipe(short(), tmp_path, judge=False)
    path = tmp_path / "checkpoints" / "last.pt"
    state = checkpoint.load(path)
    done, steering = state["epoch"], state["steering"]
    del steering["stops"]
    steering["shares"] = steering["shares"][3::4]
    checkpoint.save_last(path.parent, state)
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", done + 1):
        run_recipe(short(), tmp_path, judge=False, resume=True)
    after = steering_of(tmp_path)
    assert after["stops"] == [] and len(after["shares"]) == done + 1


def test_the_group_lasso_is_read_as_often(tmp_path: Path) -> None:
    recipe = short(method={"name": "group_lasso"})
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 2):
        run_recipe(recipe, tmp_path, judge=False)
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert len(state["steering"]["shares"]) == 4 * state["epoch"]


def test_the_group_lasso_eases_off_when_training_suffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(going_back.Watch, "strained", lambda *_: True)
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 2):
        run_recipe(short(method={"name": "group_lasso"}), tmp_path, judge=False)
    steering = checkpoint.load(tmp_path / "checkpoints" / "last.pt")["steering"]
    assert steering["lam"] <= steering["ceiling"] < math.inf


def test_a_lambda_that_eased_off_does_not_rise_again() -> None:
    course = LamCourse(1.0, 10, target=50.0)
    course.read(0.0)
    course.ease()
    assert course.lam == course.ceiling == EASE * 1.0
    course.read(0.0)
    assert course.lam == EASE
    again = LamCourse(7.0, 10, target=50.0)
    again.load(course.state())
    again.read(0.0)
    assert again.lam == EASE
    fixed = LamCourse(1.0, 10)
    fixed.read(0.0)
    fixed.ease()
    assert fixed.lam == 1.0

"""The recipes of other architectures than ResNets run from end to end, on few images."""

from pathlib import Path

import pytest
import torch
from slow_cases import slow_unless
from tiny_runs import no_pictures_in

from spr_or.pruning.compaction.storage import load_compact
from spr_or.training.recipe import build_model, load_recipe
from spr_or.training.runner import run_recipe

RECIPES = ("digits_mobilenet", "digits_vit", "digits_densenet")
_SHORT = (
    "seeds=[0]", "data.train_rows=128", "data.eval_rows=64",
    "dense.epochs=1", "dense.warmup=0", "spr.epochs=1", "finetune.epochs=1",
)  # fmt: skip


@pytest.mark.parametrize("name", slow_unless(lambda name: name == "digits_mobilenet", RECIPES))
def test_a_recipe_removes_half_of_its_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pictures_in(monkeypatch)
    recipe = load_recipe(name, _SHORT)
    summary = run_recipe(recipe, tmp_path, judge=False)  # hardly trained, it may only guess
    assert summary["removed_params_pct"] == pytest.approx(50, abs=1)
    small = load_compact(tmp_path / "compact.safetensors")
    assert small(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    left = sum(p.numel() for p in small.parameters())
    assert left == summary["parameters"] - summary["removed_params"]
    whole = sum(p.numel() for p in build_model(recipe).parameters())
    assert whole == summary["parameters"]
    assert summary["max_abs_logit_diff"] < 1e-4

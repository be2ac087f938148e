"""Runs on another device than the CPU: the same numbers, and no tensor left on the CPU.

The device is pretended and computes with the CPU's kernels, so a run there differs by the order of
sums at most.
"""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from pretended_gpu import DEVICE, pretended_gpu
from slow_cases import slow_unless
from tiny_runs import no_pictures_in, tiny_recipe
from torch import nn

from spr_or import SPR, ProxSGD
from spr_or.pruning.compaction.api import load_compact
from spr_or.training.metrics import read_metrics
from spr_or.training.runner import run_recipe

BUDGET = {"target_removed_pct": 50, "start": "dense", "lam": "auto"}
FORMS: dict[str, dict[str, Any]] = {
    "prox": {},
    "gradient": {"method": "gradient"},
    "printed": {"method": "gradient", "variant": "printed"},
    "channels that leave": {"entities": "channels", "shrink": True},
    "filters that leave, dense weights": {"shrink": True},
    "with norms, a bound each": {"bounds": "entity", "include_norm": True},
    "multiplications": {"target_of": "macs"},
    "exact cut": {"target_of": "macs", "cut": "exact", "entities": "channels"},
    "swaps": {"improve": "swaps"},
    "sets of layers": {"improve": "layers"},
}
SCORES = ("pffec", "hrank", "chip", "taylor", "group_norm", "random", "layer_exact", "l2pf")
TRAINED = ("bn_gamma", "group_lasso", "sss", "hfp", "dnr", "epfs", "pfc", "oto")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


def assert_same_run(folder: Path, **sections: Any) -> None:
    found = []
    for device in ("cpu", "pretended"):
        recipe = tiny_recipe(**sections, speed={"device": device, "threads": 1, "auto": False})
        with pretended_gpu():
            summary = run_recipe(recipe, folder / device)
        found.append((summary, read_metrics(folder / device / "metrics.jsonl")))
    (one, records), (other, others) = found
    assert [r["phase"] for r in records] == [r["phase"] for r in others]
    for a, b in zip(records, others, strict=True):
        if a["phase"] == "dense":
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    assert other["removed_params_pct"] == pytest.approx(one["removed_params_pct"], abs=3)
    assert other["max_abs_logit_diff"] < 1e-3
    small = load_compact(folder / "pretended" / "compact.safetensors")
    assert (
        sum(p.numel() for p in small.parameters()) == other["parameters"] - other["removed_params"]
    )


@pytest.mark.parametrize("form", slow_unless(lambda name: name == "channels that leave", FORMS))
def test_a_form_of_spr(form: str, tmp_path: Path) -> None:
    dense = {"finetune": {"epochs": 2, "start": "dense", "lr": 0.02, "distill": 0.5}}
    more = dense if "dense weights" in form else {}
    assert_same_run(tmp_path, spr=BUDGET | FORMS[form], **more)


@pytest.mark.parametrize("name", slow_unless(lambda name: name == "chip", SCORES + TRAINED))
def test_a_method(name: str, tmp_path: Path) -> None:
    assert_same_run(tmp_path, spr=BUDGET, method={"name": name})


@pytest.mark.parametrize("steps", ["prox", "gradient"])
def test_a_step_copies_no_number_to_the_device(steps: str) -> None:
    """Such a copy stalls a GPU, and a captured graph refuses it."""

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("a number is copied to the device")

    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pretended_gpu():
        net.to(DEVICE)
        spr = SPR(net, 0.5, 0.3, 1.0, entities="neurons")
        optimizer: Any = (
            ProxSGD(net, spr, lr=0.1, momentum=0.9)
            if steps == "prox"
            else torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        )
        x = torch.randn(4, 6, device=DEVICE)
        for step in range(3):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            with patch.object(torch, "tensor", refuse), patch.object(torch, "as_tensor", refuse):
                if step:  # the first one makes what the others use
                    if steps == "gradient":
                        spr.add_gradient_()
                    optimizer.step()
        assert net[0].weight.isfinite().all()


def test_outside_the_device_is_not_taken() -> None:
    with pretended_gpu():
        assert torch.accelerator.current_accelerator(check_available=True) is not None
    assert torch.accelerator.current_accelerator(check_available=True) is None

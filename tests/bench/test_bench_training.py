"""The bench runs and reports every way; what it measures is no subject of a test."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from models.toy import digits_resnet
from spr_or.bench import training as bench


def digits_colour() -> nn.Module:
    return digits_resnet(in_channels=3)


def test_the_bench_reports_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(bench, "ROWS", {"cpu": 5})
    monkeypatch.setattr(bench, "SIDES", {"cpu": 64})
    monkeypatch.setattr("spr_or.models.resnet_cifar.resnet20", digits_colour)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    from spr_or.cli import app

    path = tmp_path / "bench.json"
    arguments = ["bench", "training", "--time-limit", "0.1", "--workers", "0", "--json", str(path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "fast, ProxSGD" in result.stdout
    assert result.stderr.splitlines()[0] == "peak of cpu" and "epochs of 5 images" in result.stderr
    content = json.loads(path.read_text())
    assert content["rows_of_an_epoch"] == {"cpu": 5} and content["peak_flops"]["cpu"] > 0
    assert [row["method"] for row in content["rows"]] == [
        "plain loop", "fast", "fast, SPR", "fast, ProxSGD"]  # fmt: skip
    for row in content["rows"]:
        assert row["turns"] >= 5
        assert row["images_per_second"] == pytest.approx(4 / row["seconds"])  # two whole batches
    assert content["rows"][0]["speedup"] == content["rows"][1]["over_fast"] == 1.0


def test_the_plain_loop_crops_from_the_padded_image_and_mirrors() -> None:
    image = torch.arange(3 * 32 * 32).view(1, 3, 32, 32) % 251
    padded = nn.functional.pad((image[0] / 255).float(), (4, 4, 4, 4))
    windows = [padded[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    allowed = torch.stack([flip for window in windows for flip in (window, window.flip(2))])
    data = bench.Augmented(image, torch.tensor([7]))
    seen = set()
    for _ in range(8):
        found, label = data[0]
        near = (allowed - (found * 0.25 + 0.5)).abs().amax((1, 2, 3)) < 1e-5
        assert near.sum() == 1 and label == 7
        seen.add(int(near.nonzero()))
    assert len(seen) > 3


def test_ratios_are_of_the_same_turn() -> None:
    ratio, spread = bench._ratio([2.0, 6.0, 9.0, 8.0], [1.0, 2.0, 3.0, 2.0])
    assert (ratio, spread) == (3.0, pytest.approx(0.0))

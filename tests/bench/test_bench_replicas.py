"""The bench runs and reports every way; what it measures is no subject of a test."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.toy import digits_resnet
from spr_or.bench import replicas as bench
from spr_or.cli import app


def small() -> object:
    return digits_resnet(in_channels=3)


def test_the_bench_reports_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr("models.resnet_cifar.resnet20", small)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = tmp_path / "bench.json"
    arguments = ["--replicas", "2", "--seconds", "0.1", "--json", str(path)]
    result = CliRunner().invoke(app, ["bench", "replicas", *arguments], catch_exceptions=False)
    assert result.exit_code == 0 and "stacked" in result.output
    rows = json.loads(path.read_text())["rows"]
    assert [(row["way"], row["replicas"]) for row in rows] == [
        ("one after another", 2),
        ("stacked", 2),
    ]
    assert rows[0]["gain"] == 1.0 and all(row["seconds"] > 0 for row in rows)


@pytest.mark.gpu
def test_every_way_runs_on_a_gpu() -> None:
    rows = bench.measure("cuda", 2, 0.5)
    assert [row.way for row in rows] == ["one after another", "stacked", "on streams"]
    assert all(row.seconds > 0 for row in rows)

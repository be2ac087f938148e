"""The bench runs and reports every method; what it measures is no subject of a test."""

import json

import pytest
from typer.testing import CliRunner

from models.toy import digits_resnet
from spr_or.bench import regularizer_cost as bench


def test_the_bench_reports_every_method(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(bench, "_CACHE_FLOATS", 1)
    monkeypatch.setattr(bench, "_compiles", lambda step: False)
    monkeypatch.setattr("spr_or.models.resnet_cifar.resnet20", digits_colour)
    monkeypatch.setattr("spr_or.models.resnet_cifar.resnet56", digits_colour)
    monkeypatch.setattr("spr_or.models.resnet.resnet18", digits_colour)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(bench, "OPTIMIZED", {"models.toy:digits_resnet": (1, 8, 8)})
    monkeypatch.setattr(bench, "TRAINED", {"models.toy:digits_resnet": (1, 8, 8)})
    monkeypatch.setattr(bench, "BATCHES", (2,))
    path = tmp_path / "bench.json"
    from spr_or.cli import app

    arguments = ["bench", "regularizer", "--time-limit", "0.1", "--json", str(path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "add_gradient_" in result.stdout
    assert [line[:5] for line in result.stderr.splitlines() if line.startswith("[")] == [
        "[1/6]", "[2/6]", "[3/6]", "[4/6]", "[5/6]", "[6/6]"]  # fmt: skip
    content = json.loads(path.read_text())
    assert content["machine"]["threads"] >= 1
    methods = [row["method"] for row in content["rows"]]
    steps = ["plain SGD", "add_gradient_", "loss + spr()", "ProxSGD"]
    optimizers = ["step of SGD", "add_gradient_", "step of ProxSGD"]
    trained = [f"ProxSGD, alpha {alpha:g}, lambda {lam:g}" for alpha, lam in bench.STATES]
    passes = ["read; read, read, write", "add_gradient_"]
    assert methods == steps * 2 + steps[:2] + trained + passes + optimizers * 2
    assert {r["target"] for r in content["rows"] if r["method"] in trained} == {1.3}
    kinds = [row["setting"] for row in content["rows"] if row["method"] == "step of ProxSGD"]
    assert kinds == ["cpu filters, processor time", "cpu channels, processor time"]
    for row in content["rows"]:
        assert row["milliseconds"] > 0
        assert row["turns"] >= bench._LEAST_TURNS
        if row["method"] in ("plain SGD", "read; read, read, write", "step of SGD"):
            assert row["ratio"] == pytest.approx(1.0)
            assert row["target"] is None


def digits_colour():
    return digits_resnet(in_channels=3)


def test_a_missing_folder_is_named_before_anything_is_measured(tmp_path):
    from spr_or.cli import app

    missing = tmp_path / "nowhere" / "bench.json"
    result = CliRunner().invoke(app, ["bench", "regularizer", "--json", str(missing)])
    assert result.exit_code == 2
    assert "does not exist" in result.output.replace("\n", " ")

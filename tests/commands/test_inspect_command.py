"""`spr-or inspect`: networks of the package and of the user, the table, the file, the errors."""

import json
import time

import pytest
from typer.testing import CliRunner

from spr_or.cli import app

NETWORKS = '''
import torch
from torch import nn


class Two(nn.Module):
    """Two inputs, and an operator that mixes channels."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x, scale):
        h = torch.cumsum(self.first(x), 1)
        return self.head(h.mean((2, 3)) * scale)


class Gate(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def untraceable():
    return nn.Sequential(nn.Conv2d(3, 4, 1), Gate(), nn.Conv2d(4, 2, 1))


def words(count=50):
    return nn.Sequential(nn.Embedding(count, 8), nn.Linear(8, 8), nn.Flatten(), nn.Linear(32, 2))


def broken():
    raise KeyError("weights.pt")


def number():
    return 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module of the user's, as the current one."""
    name = f"networks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def run(*arguments, columns=200):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("columns", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_a_shipped_network_in_a_few_seconds(columns, tmp_path):
    start = time.process_time()
    shown = run("models.vit:vit_tiny_digits", "--entities", "heads,neurons",
                "--json", tmp_path / "found.json", columns=columns)  # fmt: skip
    assert time.process_time() - start < 20
    assert shown.exit_code == 0, shown.output
    assert "4 heads" in shown.output and "96 neurons" in shown.output
    assert "The input was guessed" in shown.output and "1×8×8" in shown.output
    assert "Every operator runs on what is left" in shown.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["inputs"] == {"0": [1, 8, 8]} and found["inputs_guessed"]
    assert f"{found['parameters']:,} parameters" in shown.output
    for layer in found["layers"]:
        assert layer["label"] in shown.output
    heads = next(layer for layer in found["layers"] if layer["kind"] == "heads")
    assert heads["count"] == 4 and heads["modules"] == ["blocks.0.attn.qkv"]


def test_two_inputs_and_an_operator_that_stays_wide(own):
    shown = run(f"{own}:Two", "--input", "3,8,8", "--input", "1", "--set", "width=12")
    assert shown.exit_code == 0, shown.output
    assert "12 filters" in shown.output and "3×8×8 and 1" in shown.output
    line = next(line for line in shown.output.splitlines() if "aten.cumsum" in line)
    assert "behind first" in line and "h = torch.cumsum(self.first(x), 1)" in line
    by_name = run(f"{own}:Two", "--input", "scale=1", "--input", "x=3,8,8", "--set", "width=12")
    assert by_name.output.splitlines()[2:] == shown.output.splitlines()[2:]


def test_whole_numbers(own):
    shown = run(f"{own}:words", "--input", "4:50", "--entities", "channels")
    assert shown.exit_code == 0, shown.output
    assert "0 (Embedding)" in shown.output and "for inputs of 4" in shown.output


def test_ignored_layers_are_said_to_be(own):
    shown = run("models.resnet_cifar:resnet20", "--input", "3,32,32", "--ignored", "layer*")
    assert shown.exit_code == 0, shown.output
    assert "ignored, as asked" in shown.output and "16 filters" in shown.output


def test_a_network_that_cannot_be_traced_is_refused_with_the_line(own):
    shown = run(f"{own}:untraceable")
    assert shown.exit_code == 1
    assert f"{own}.py:" in shown.output and "if x.sum() > 0:" in shown.output
    assert "1 (Gate)" in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["broken"], "KeyError: 'weights.pt'"),
        (["nothing"], "has no 'nothing'"),
        (["number"], "gives a int"),
        (["words", "--set", "size=3"], "size"),
        (["words", "--set", "size"], "key=value"),
        (["Two"], "give --input"),
        (["Two", "--input", "3,x"], "3,x"),
        (["Two", "--input", "0,8"], "0,8"),
        (["Two", "--input", "3,8,8", "--input", "scale=1"], "to every input, or to none"),
        (["words", "--input", "4:50", "--entities", "heads"], "heads"),
        (["words", "--input", "4:50", "--entities", "head"], "'head'"),
        (["words", "--input", "4:50", "--ignored", "firs"], "'firs'"),
    ],
)
def test_errors_name_the_value_and_end_with_status_2(own, arguments, message):
    shown = run(f"{own}:{arguments[0]}", *arguments[1:])
    assert shown.exit_code == 2, shown.output
    assert shown.output.startswith("error: ") and message in shown.output

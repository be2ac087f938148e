"""Compact files from anywhere: what their description states is held against what can be."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import damaged, within
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spr_or.models.toy import digits_resnet

from spr_or import compact, load_compact, save_compact
from spr_or.pruning.compaction.api import read_description

ORIGINAL = "models.toy:digits_resnet"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compact") / "small.safetensors"
    keep = torch.arange(16) % 2 == 0
    small = compact(digits_resnet(), {"conv1": keep}, torch.zeros(1, 1, 8, 8))
    save_compact(path, small, ORIGINAL)
    return path


def described(whole: Path, path: Path, change: Any) -> Path:
    """A copy whose description was changed, with the same tensors."""
    with safe_open(whole, framework="pt") as file:
        description = json.loads(file.metadata()["spr_or"])
    change(description)
    text = json.dumps(description)
    save_file(load_file(whole), path, {"spr_or": text})
    return path


def refused(path: Path, says: str) -> None:
    with within(20), pytest.raises(ValueError) as caught:
        load_compact(path, ORIGINAL)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_the_file_itself_loads(whole: Path) -> None:
    assert load_compact(whole, ORIGINAL)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("kept", [-1, 2, 4, 6, 8, 10, 12, 14], "kept channels outside 0 to 15"),
        ("kept", [0, 2, 2, 6, 8, 10, 12, 14], "not in rising order"),
        ("kept", [2, 0, 4, 6, 8, 10, 12, 14], "not in rising order"),
        ("kept", [0, 2, 4, 6, 8, 10, 12, 16], "kept channels outside 0 to 15"),
        ("kept", [0, 2, 4, 6, 8, 10, 12, 10**30], "kept channels outside 0 to 15"),
        ("kept", [0.0, 2, 4, 6, 8, 10, 12, 14], "steps.conv1.kept.0"),
        ("kept", [True, 2, 4, 6, 8, 10, 12, 14], "steps.conv1.kept.0"),
        ("kept", ["0", 2, 4, 6, 8, 10, 12, 14], "steps.conv1.kept.0"),
        ("kept", "02468", "steps.conv1.kept"),
        ("kept", [0, 2, 4], "does not fit"),
        ("channels", -16, "steps.conv1.channels"),
        ("channels", 17, "has (16, 1) channels"),
        ("channels", None, "steps.conv1.channels"),
        ("shift", [1.0], "steps.conv1.shift"),
        ("shift", True, "does not fit"),
        ("extra", 1, "steps.conv1.extra"),
        ("target", "another", "does not fit"),
    ],
)
def test_steps_that_cannot_be_are_refused(
    whole: Path, tmp_path: Path, key: str, value: Any, says: str
) -> None:
    def change(description: dict[str, Any]) -> None:
        description["steps"]["conv1"][key] = value

    refused(described(whole, tmp_path / "x.safetensors", change), says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("steps"), "steps: Field required"),
        (lambda d: d["steps"].pop("conv1"), "does not fit"),
        (lambda d: d.update(steps=[]), "steps"),
        (lambda d: d.update(kwargs={"no_such": 1}), "does not describe a network"),
        (lambda d: d.update(kwargs=[]), "kwargs"),
        (lambda d: d.update(original=3), "original"),
        (lambda d: d.update(format="other"), "no compacted network"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(
    whole: Path, tmp_path: Path, change: Any, says: str
) -> None:
    refused(described(whole, tmp_path / "x.safetensors", change), says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("NaN", "not a finite"),
        ("{", "not JSON"),
        ("3", "holds no"),
    ],
)
def test_other_json_is_refused(whole: Path, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file(load_file(whole), path, {"spr_or": text})
    refused(path, says)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**62, 2**64 - 1])
def test_a_header_of_another_length_is_refused(whole: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + whole.read_bytes()[8:])
    with within(20, mebibytes=100):
        refused(path, "is damaged or no safetensors file")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "not a regular file")


def test_tensors_of_other_shapes_are_refused(whole: Path, tmp_path: Path) -> None:
    with safe_open(whole, framework="pt") as file:
        metadata = file.metadata()
    for change in (lambda t: t[:1], lambda t: t.unsqueeze(0), lambda t: t.flatten()[:0]):
        tensors = load_file(whole)
        tensors["conv1.weight"] = change(tensors["conv1.weight"]).contiguous()
        save_file(tensors, tmp_path / "x.safetensors", metadata)
        refused(tmp_path / "x.safetensors", "does not fit")


def test_damaged_files_end_in_the_one_error(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = whole.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    head = damaged(content[:header], 200, seed=7)  # where all that is decided stands
    with within(120):
        for changed in [*(h + content[header:] for h in head), *damaged(content, 60, seed=8)]:
            path.write_bytes(changed)
            try:
                load_compact(path, ORIGINAL)
            except ValueError as error:
                assert str(path) in str(error)


def test_the_description_of_today_survives(whole: Path) -> None:
    with safe_open(whole, framework="pt") as file:
        assert read_description(whole) == json.loads(file.metadata()["spr_or"])

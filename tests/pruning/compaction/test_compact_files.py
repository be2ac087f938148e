"""Compact networks in files: written, read back, rebuilt elsewhere, refused when damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compaction_networks import NETWORKS, difference, draw_masks, keep_first, masked_output, network
from safetensors.torch import save_file

from models.toy import digits_resnet
from spr_or.pruning.compaction.api import (
    compact,
    load_compact,
    read_description,
    save_compact,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_is_the_same_network(name, tmp_path):
    original, kwargs, shape = NETWORKS[name]
    small = compact(network(name), draw_masks(network(name), "layers"), torch.zeros(shape))
    path = tmp_path / "small.safetensors"
    save_compact(path, small, original, kwargs)
    loaded = load_compact(path, original)
    assert loaded.state_dict().keys() == small.state_dict().keys()
    for entry, tensor in small.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[entry]), entry
    x = torch.randn(shape, dtype=next(small.parameters()).dtype)
    with torch.no_grad():
        assert torch.allclose(small(x), loaded(x), atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


SUBPROCESS = """
import sys, torch
from safetensors.torch import load_file, save_file
from spr_or.pruning.compaction.api import load_compact
path, data = sys.argv[1:]
torch.manual_seed(5)
model = load_compact(path)
drawn = torch.rand(3)
torch.manual_seed(5)
assert torch.equal(drawn, torch.rand(3)), "loading moved the random state"
save_file({"y": model(load_file(data)["x"]).detach()}, data + ".out")
"""


def run_elsewhere(path, x, tmp_path, extra_path):
    data = tmp_path / "data.safetensors"
    save_file({"x": x}, data)
    root = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join([str(root), str(extra_path)])
    subprocess.run(
        [sys.executable, "-c", SUBPROCESS, str(path), str(data)],
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
    )
    from safetensors.torch import load_file

    return load_file(f"{data}.out")["y"]


def test_a_fresh_process_rebuilds_the_network(tmp_path):
    shape = (2, 3, 32, 32)
    model = network("resnet20").float()
    masks = draw_masks(model, "blocks")
    small = compact(model, masks, torch.zeros(shape))
    save_compact(tmp_path / "r20.safetensors", small, "models.resnet_cifar:resnet20")
    x = torch.randn(shape)
    y = run_elsewhere(tmp_path / "r20.safetensors", x, tmp_path, tmp_path)
    assert torch.allclose(y, small(x), atol=1e-6)
    assert difference(masked_output(model, masks, x), y) < 1e-4


USERS_MODULE = """
from torch import nn
def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
"""


def test_a_fresh_process_rebuilds_a_users_own(tmp_path, monkeypatch):
    (tmp_path / "their_networks.py").write_text(USERS_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import their_networks

    small = compact(their_networks.net(9), {"0": keep_first(9, 4)}, torch.zeros(1, 6))
    path = tmp_path / "own.safetensors"
    save_compact(path, small, "their_networks:net", {"width": 9})
    description = read_description(path)
    assert description["original"] == "their_networks:net" and description["kwargs"] == {"width": 9}
    assert description["steps"]["_0"]["kept"] == [0, 1, 2, 3]
    x = torch.randn(2, 6)
    assert torch.allclose(run_elsewhere(path, x, tmp_path, tmp_path), small(x), atol=1e-6)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "small.safetensors"
    small = compact(digits_resnet(), {"conv1": keep_first(16, 9)}, torch.zeros(1, 1, 8, 8))
    save_compact(path, small, "models.toy:digits_resnet")
    return path, small


def test_damaged_and_foreign_files_are_refused(saved, tmp_path):
    path, small = saved
    whole = path.read_bytes()
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="small.safetensors is damaged"):
            load_compact(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no compacted network"):
        load_compact(path)
    with pytest.raises(FileNotFoundError):
        load_compact(tmp_path / "absent.safetensors")


def test_a_file_that_names_another_function_is_refused_unopened(saved):
    with pytest.raises(ValueError, match="made from 'models.toy:digits_resnet'"):
        load_compact(saved[0], original="models.toy:convnet")


def test_wrong_originals_are_refused_before_anything_is_written(saved):
    path, small = saved
    before = path.read_bytes()
    for original, kwargs, message in [
        ("models.toy:convnet", {}, "does not fit"),
        ("models.resnet_cifar:resnet20", {}, "does not fit"),
        ("models.toy:digits_resnet", {"in_channels": 3}, r"'conv1' has \(16, 3\) channels"),
        ("models.toy:digits_resnet", {"num_classes": 11}, "'fc' has .11, 64. channels"),
        ("models.toy:digits", {}, "cannot be imported"),
        ("models.nowhere:net", {}, "cannot be imported"),
        ("digits_resnet", {}, "cannot be imported"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_compact(path, small, original, kwargs)
    with pytest.raises(ValueError, match="does not come from compact"):
        save_compact(path, digits_resnet(), "models.toy:digits_resnet")
    assert path.read_bytes() == before


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    path, small = saved
    before = path.read_bytes()

    def full_disk(state, aside, metadata):
        Path(aside).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spr_or.pruning.compaction.api.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_compact(path, small, "models.toy:digits_resnet")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_description_is_plain_json(saved):
    steps = read_description(saved[0])["steps"]
    assert json.loads(json.dumps(steps)) == steps
    assert steps["conv1"] == {
        "kind": "conv", "target": "conv1", "channels": 16, "kept": list(range(9)), "offset": 0,
        "around": [],
        "shift": False,
    }  # fmt: skip

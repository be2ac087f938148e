"""Compact networks in files: written, read back, rebuilt elsewhere, refused when damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compaction_networks import NETWORKS, difference, draw_masks, keep_first, masked_output, network
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from slow_cases import slow_unless

from models.toy import digits_resnet
from spr_or.pruning.compaction.api import (
    compact,
    load_compact,
    read_description,
    save_compact,
)

DEEP = ("resnet56", "resnet18", "resnet50", "resnet50-cifar", "vgg16")


@pytest.mark.parametrize("name", slow_unless(lambda name: name not in DEEP, NETWORKS))
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
for path in sys.argv[1:]:
    torch.manual_seed(5)
    model = load_compact(path)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3)), "loading moved the random state"
    save_file({"y": model(load_file(path + ".in")["x"]).detach()}, path + ".out")
"""
USERS_MODULE = """
from torch import nn
def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with two networks, their inputs, and what a fresh process made of both."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(0)
    own, model = folder / "own.safetensors", network("resnet20").float()
    small = compact(model, draw_masks(model, "blocks"), torch.zeros(2, 3, 32, 32))
    save_compact(folder / "r20.safetensors", small, "models.resnet_cifar:resnet20")
    save_file({"x": torch.randn(2, 3, 32, 32)}, folder / "r20.safetensors.in")
    (folder / "their_networks.py").write_text(USERS_MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import their_networks

        theirs = compact(their_networks.net(9), {"0": keep_first(9, 4)}, torch.zeros(1, 6))
        save_compact(own, theirs, "their_networks:net", {"width": 9})
    save_file({"x": torch.randn(2, 6)}, f"{own}.in")
    root = Path(__file__).resolve().parents[3]
    subprocess.run(
        [sys.executable, "-c", SUBPROCESS, str(folder / "r20.safetensors"), str(own)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(folder)])},
        cwd=folder,
    )
    return folder, small, theirs


def assert_computes(path, small):
    x, y = load_file(f"{path}.in")["x"], load_file(f"{path}.out")["y"]
    assert torch.allclose(y, small(x), atol=1e-6)
    return x, y


def test_a_fresh_process_rebuilds_the_network(elsewhere):
    folder, small, _ = elsewhere
    x, y = assert_computes(folder / "r20.safetensors", small)
    torch.manual_seed(0)
    model = network("resnet20").float()
    assert difference(masked_output(model, draw_masks(model, "blocks"), x), y) < 1e-4


def test_a_fresh_process_rebuilds_a_users_own(elsewhere):
    folder, _, theirs = elsewhere
    path = folder / "own.safetensors"
    assert_computes(path, theirs)
    description = read_description(path)
    assert description["original"] == "their_networks:net" and description["kwargs"] == {"width": 9}
    assert description["kept"]["0.weight"] == [[0, 1, 2, 3], None]
    assert description["kept"]["2.weight"] == [None, [0, 1, 2, 3]]


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
        ("models.toy:convnet", {}, "does not fit: it has no 'conv1.weight'"),
        ("models.resnet_cifar:resnet20", {}, "does not fit"),
        (
            "models.toy:digits_resnet",
            {"in_channels": 3},
            r"'conv1.weight' has shape \(16, 3, 3, 3\)",
        ),
        ("models.toy:digits_resnet", {"num_classes": 11}, r"'fc.weight' has shape \(11, 64\)"),
        ("models.toy:digits_resnet", {"no_such": 1}, "cannot be called.*no_such"),
        ("models.toy:digits_resnet", {"num_classes": "x"}, "cannot be called"),
        ("builtins:dict", {}, "gives a dict, not a torch.nn.Module"),
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

    monkeypatch.setattr("spr_or.pruning.compaction.storage.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_compact(path, small, "models.toy:digits_resnet")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_description_is_plain_json(saved):
    description = read_description(saved[0])
    assert json.loads(json.dumps(description)) == description
    assert description["kept"]["conv1.weight"] == [list(range(9)), None, None, None]
    assert description["kept"]["layer1.0.conv1.weight"] == [None, list(range(9)), None, None]
    assert description["layers"]["conv1"] == {
        "kind": "Conv2d",
        "settings": {
            "in_channels": 1, "out_channels": 9, "kernel_size": [3, 3], "stride": [1, 1],
            "padding": [1, 1], "dilation": [1, 1], "groups": 1, "weight": True, "bias": False,
        },
    }  # fmt: skip
    first = [node for node in description["nodes"] if node["op"] != "placeholder"][0]
    assert first["op"] == "call_module" and first["target"] == "conv1"
    assert first["args"] == {"tuple": [{"node": "x"}]}
    assert description["frozen"] == [] and description["buffers"] == []


DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", ["digits_resnet", "convnet"])
def test_files_of_the_first_format_still_load(name):
    """Written by the release before the format changed, with the outputs of that time."""
    path = DATA / f"{name}_1.safetensors"
    assert read_description(path)["format"] == "spr-or compact 1"
    loaded = load_compact(path, f"models.toy:{name}")
    stored = load_file(DATA / f"{name}_1_outputs.safetensors")
    with torch.no_grad():
        assert torch.allclose(loaded(stored["x"]), stored["y"], atol=1e-6)
    assert not loaded.training
    with pytest.raises(ValueError, match="was made from 'models.toy"):
        load_compact(path, "models.toy:mlp")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["steps"]["conv1"].update(kept=[0, 0, 1, 2]), "not in rising order"),
        (lambda d: d["steps"]["conv1"].update(kept=[-1, 0, 1, 2]), "outside 0 to 15"),
        (lambda d: d["steps"]["conv1"].update(kept=[0, 1, 2, 16]), "outside 0 to 15"),
        (lambda d: d["steps"]["conv1"].update(kept=["0"]), "steps.conv1.kept.0"),
        (lambda d: d["steps"]["conv1"].update(kept=[0, 1]), "does not fit"),
        (lambda d: d["steps"]["conv1"].update(channels=17), r"has \(16, 1\) channels"),
        (lambda d: d["steps"]["conv1"].update(shift=[1.0]), "steps.conv1.shift"),
        (lambda d: d["steps"]["conv1"].update(target="another"), "does not fit"),
        (lambda d: d["steps"].pop("conv1"), "does not fit"),
        (lambda d: d.pop("steps"), "steps: Field required"),
        (lambda d: d.update(kwargs={"no_such": 1}), "does not describe a network"),
        (lambda d: d.update(original="models.nowhere:net"), "does not describe a network"),
    ],
)
def test_damaged_files_of_the_first_format_are_refused(change, says, tmp_path):
    whole, path = DATA / "digits_resnet_1.safetensors", tmp_path / "x.safetensors"
    with safe_open(whole, framework="pt") as file:
        description = json.loads(file.metadata()["spr_or"])
    change(description)
    save_file(load_file(whole), path, {"spr_or": json.dumps(description)})
    with pytest.raises(ValueError, match=says) as caught:
        load_compact(path)
    assert str(path) in str(caught.value)


def test_a_buffer_that_is_read_is_no_parameter_after_loading(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "net_with_a_table.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)\n"
        "        self.register_buffer('table', torch.ones(4))\n"
        "    def forward(self, x):\n"
        "        return self.b(self.a(x) * self.table)\n"
    )
    monkeypatch.syspath_prepend(folder)
    import net_with_a_table

    small = compact(net_with_a_table.Net(), {"a": keep_first(4, 3)}, torch.zeros(2, 3))
    save_compact(tmp_path / "s.safetensors", small, "net_with_a_table:Net")
    loaded = load_compact(tmp_path / "s.safetensors")
    for kind in ("named_parameters", "named_buffers"):
        assert {n for n, _ in getattr(loaded, kind)()} == {n for n, _ in getattr(small, kind)()}
    assert loaded.table.shape == (3,)

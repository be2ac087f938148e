"""Compact files from anywhere: what their description states is held against what can be."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from damaged import damaged, within
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from spr_or import compact, load_compact, save_compact
from spr_or.pruning.compaction.api import read_description

ORIGINAL = f"{__name__}:Mixed"


class Mixed(nn.Module):
    """A block whose file has every kind of node and layer: fills, indexed additions, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.branch, self.drop = nn.Conv2d(6, 6, 1), nn.Dropout(0.5)
        self.end = nn.Linear(6 * 16, 3)
        self.table = nn.Parameter(torch.randn(6, 1, 1))
        self.register_buffer("offset", torch.randn(6, 1, 1))
        self.end.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu() * self.table + self.offset
        x = F.softmax(x + self.drop(self.branch(x)), 1)
        return self.end(x.reshape(x.size(0), -1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compact") / "small.safetensors"
    torch.manual_seed(2)
    keep = torch.tensor([True, False, True, True, False, True])
    masks = {"first": keep, "branch": torch.arange(6) > 2}
    small = compact(Mixed(), masks, torch.zeros(2, 1, 4, 4))
    save_compact(path, small, ORIGINAL)
    return path


def description_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["spr_or"]))


def described(
    whole: Path, path: Path, change: Any, tensors: dict[str, torch.Tensor] | None = None
) -> Path:
    """A copy whose description was changed, with the same tensors or those given."""
    description = description_of(whole)
    change(description)
    text = json.dumps(description)
    save_file(load_file(whole) if tensors is None else tensors, path, {"spr_or": text})
    return path


def refused(path: Path, says: str) -> None:
    with within(20, mebibytes=200), pytest.raises(ValueError) as caught:
        load_compact(path, ORIGINAL)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_the_file_itself_loads(whole: Path) -> None:
    loaded = load_compact(whole, ORIGINAL)
    assert loaded(torch.zeros(3, 1, 4, 4)).shape == (3, 3)
    named = dict(loaded.named_parameters())
    assert named["table"].requires_grad and not named["end.bias"].requires_grad
    assert "offset" in dict(loaded.named_buffers()) and "offset" not in named
    kinds = {layer["kind"] for layer in description_of(whole)["layers"].values()}
    assert {"Conv2d", "BatchNorm2d", "Linear", "Dropout", "Fill", "IndexedAdd"} <= kinds


def node(description: dict[str, Any], target: str) -> dict[str, Any]:
    return next(n for n in description["nodes"] if n["target"] == target)


def layer(description: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(v for v in description["layers"].values() if v["kind"] == kind)


def renamed(d: dict[str, Any], old: str, new: str) -> None:
    """A layer under another name, everywhere it is called."""
    d["layers"][new] = d["layers"].pop(old)
    node(d, old)["target"] = new


RELU = "aten.relu.default"
EVIL = 'x"), print("run'

NODES = {
    "os": (lambda d: node(d, RELU).update(target="os.system"), "'os.system'"),
    "import": (lambda d: node(d, RELU).update(target="builtins.exec"), "'builtins.exec'"),
    "in place": (lambda d: node(d, RELU).update(target="aten.relu_.default"), "'aten.relu_"),
    "opens files": (lambda d: node(d, RELU).update(
        target="aten.from_file.default", args={"tuple": ["/tmp/x", True]}), "'aten.from_file"),
    "internal": (lambda d: node(d, RELU).update(
        target="aten._nested_view_from_buffer.default"), "_nested_view"),
    "no overload": (lambda d: node(d, RELU).update(target="aten.relu"), "'aten.relu'"),
    "of the namespace": (lambda d: node(d, RELU).update(target="aten.__class__.mro"), "__class__"),
    "unknown": (lambda d: node(d, RELU).update(target="aten.nothing.default"), "aten.nothing"),
    "call of a method": (lambda d: node(d, RELU).update(op="call_method"), "nodes.{relu}.op"),
    "a layer that is not there": (lambda d: node(d, "first").update(target="no"), "nothing calls"),
    "a tensor that is not there": (lambda d: node(d, "table").update(target="no"), "nothing reads"),
    "one more call of a layer": (lambda d: node(d, RELU).update(op="call_module"), "there is no"),
    "one more tensor": (
        lambda d: node(d, RELU).update(op="get_attr", args={"tuple": []}), "there is no"),
    "no argument": (lambda d: node(d, RELU).update(args={"tuple": []}), "relu is not called"),
    "one argument too many": (
        lambda d: node(d, RELU)["args"]["tuple"].append(1), "relu is not called with 2"),
    "an argument by a wrong name": (
        lambda d: node(d, RELU).update(kwargs={"dict": {"no": 1}}), "relu is not called with"),
    "code for the name of an argument": (
        lambda d: node(d, RELU).update(kwargs={"dict": {EVIL: 1}}), "names of arguments"),
    "two inputs of a layer": (
        lambda d: node(d, "first")["args"]["tuple"].append(1), "first is not called with 2"),
    "arguments in a list": (lambda d: node(d, RELU).update(args=[]), "args must be a tuple"),
    "arguments of text": (lambda d: node(d, RELU).update(args="x"), "args must be a tuple"),
    "keywords in a tuple": (lambda d: node(d, RELU).update(kwargs={"tuple": []}), "kwargs a dict"),
    "an unknown kind of argument": (
        lambda d: node(d, RELU).update(args={"tuple": [{"pickle": "x"}]}), "cannot be read"),
    "a dtype that is none": (
        lambda d: node(d, RELU).update(args={"tuple": [{"dtype": "save"}]}), "cannot be read"),
    "itself": (lambda d: node(d, RELU).update(
        args={"tuple": [{"node": node(d, RELU)["name"]}]}), "does not come before it"),
    "a later node": (lambda d: node(d, RELU).update(
        args={"tuple": [{"node": d["nodes"][-2]["name"]}]}), "does not come before it"),
    "an unknown node": (lambda d: node(d, RELU).update(
        args={"tuple": [{"node": "nobody"}]}), "'nobody', which does not come before"),
    "a node by a number": (lambda d: node(d, RELU).update(
        args={"tuple": [{"node": 3}]}), "cannot be read"),
    "two nodes of one name": (lambda d: node(d, RELU).update(name="x"), "that of two"),
    "code for a name": (lambda d: node(d, RELU).update(name=EVIL), "is no name of a node"),
    "code for an input": (
        lambda d: d["nodes"][0].update(target="x=print('run')"), "is no name of an input"),
    "a keyword for an input": (
        lambda d: d["nodes"][0].update(target="lambda"), "is no name of an input"),
    "a default of an input": (
        lambda d: d["nodes"][0].update(args={"tuple": [1]}), "is not called with 1"),
    "no output": (lambda d: d["nodes"].pop(), "one output"),
    "two outputs": (lambda d: d["nodes"].append({**d["nodes"][-1], "name": "o"}), "one output"),
    "no node": (lambda d: d.update(nodes=[]), "does not describe a network"),
    "a node of text": (lambda d: d.update(nodes=["x"]), "nodes.0"),
    "a node with more": (lambda d: node(d, RELU).update(extra=1), "extra"),
    "nodes in a dict": (lambda d: d.update(nodes={}), "nodes"),
    "without nodes": (lambda d: d.pop("nodes"), "nodes: Field required"),
}  # fmt: skip
LAYERS = {
    "an unknown kind": (lambda d: layer(d, "Conv2d").update(kind="Popen"), "'Popen'"),
    "a path for a kind": (
        lambda d: layer(d, "Conv2d").update(kind="torch.nn.Conv2d"), "'torch.nn.Conv2d'"),
    "a setting too many": (
        lambda d: layer(d, "Conv2d")["settings"].update(device="cuda"), "has the settings"),
    "a setting too few": (
        lambda d: layer(d, "Conv2d")["settings"].pop("stride"), "has the settings"),
    "text for a number": (
        lambda d: layer(d, "Conv2d")["settings"].update(stride="2"), "stride of a Conv2d"),
    "a negative number": (
        lambda d: layer(d, "Conv2d")["settings"].update(out_channels=-4), "out_channels"),
    "a truth for a number": (
        lambda d: layer(d, "Conv2d")["settings"].update(groups=True), "groups of a Conv2d"),
    "no group": (lambda d: layer(d, "Conv2d")["settings"].update(groups=0), "groups"),
    "another number": (
        lambda d: layer(d, "Conv2d")["settings"].update(out_channels=5),
        "kept: 'first.weight' has shape (5, 1, 3, 3)"),
    "a thousand million features": (
        lambda d: layer(d, "Linear")["settings"].update(in_features=10**9), "does not fit"),
    "more than can be counted": (
        lambda d: layer(d, "Linear")["settings"].update(in_features=2**61, out_features=2**61),
        "does not describe"),
    "a kernel of 10^18": (
        lambda d: layer(d, "Conv2d")["settings"].update(kernel_size=[10**9, 10**9]), "does not"),
    "a bias that is not there": (
        lambda d: layer(d, "Linear")["settings"].update(bias=False), "reads the tensor 'end.bias'"),
    "a probability of 2": (lambda d: layer(d, "Dropout")["settings"].update(p=2), "p of a Dropout"),
    "text for a probability": (
        lambda d: layer(d, "Dropout")["settings"].update(p="x"), "p of a Dropout"),
    "a fill of 10^9": (lambda d: layer(d, "Fill")["settings"].update(size=10**9), "does not fit"),
    "a fill of less": (lambda d: layer(d, "Fill")["settings"].update(size=1), "rising positions"),
    "a fill below zero": (
        lambda d: layer(d, "Fill")["settings"].update(places=[-1, 2, 3, 5]), "rising positions"),
    "a fill not rising": (
        lambda d: layer(d, "Fill")["settings"].update(places=[2, 0, 3, 5]), "rising positions"),
    "a fill of truths": (
        lambda d: layer(d, "Fill")["settings"].update(places=[True]), "places of a Fill"),
    "an addition of 10^9": (
        lambda d: layer(d, "IndexedAdd")["settings"].update(size=10**9), "does not"),
    "an addition outside": (
        lambda d: layer(d, "IndexedAdd")["settings"].update(size=1), "rising positions of 1"),
    "an addition of one side more": (
        lambda d: layer(d, "IndexedAdd")["settings"]["picks"].append(None), "as many picks"),
    "picks below zero": (
        lambda d: layer(d, "IndexedAdd")["settings"].update(picks=[[-1], None]), "rising"),
    "a layer that nothing calls": (
        lambda d: d["layers"].update(more=layer(d, "Dropout")), "nothing calls the layer 'more'"),
    "code for a name": (lambda d: renamed(d, "drop", EVIL), "no name of a layer"),
    "a name with nothing in it": (lambda d: renamed(d, "drop", "a..b"), "no name of a layer"),
    "settings in a list": (lambda d: layer(d, "Dropout").update(settings=[]), "layers.drop.settings"),
    "layers in a list": (lambda d: d.update(layers=[]), "layers"),
}  # fmt: skip
REST = {
    "kept below zero": (lambda d: d["kept"].update({"first.weight": [[-1, 2, 3, 5], None]}), "kept"),
    "kept not rising": (
        lambda d: d["kept"].update({"first.bias": [[2, 0, 3, 5]]}), "first.bias are not rising"),
    "kept twice": (lambda d: d["kept"].update({"first.bias": [[0, 2, 2, 5]]}), "not rising"),
    "kept too few": (lambda d: d["kept"].update({"first.bias": [[0, 2]]}), "'first.bias' has shape"),
    "kept of no tensor": (lambda d: d["kept"].update(nothing=[None]), "no tensor 'nothing'"),
    "kept in too many dimensions": (
        lambda d: d["kept"].update({"first.bias": [None, None]}), "'first.bias' has shape"),
    "kept as real numbers": (lambda d: d["kept"].update({"first.bias": [[0.0]]}), "kept.first.bias"),
    "kept as truths": (lambda d: d["kept"].update({"first.bias": [[True]]}), "kept.first.bias"),
    "kept as text": (lambda d: d["kept"].update({"first.bias": ["0"]}), "kept.first.bias"),
    "kept in a list": (lambda d: d.update(kept=[]), "kept"),
    "frozen of no tensor": (lambda d: d.update(frozen=["no"]), "frozen: no parameter 'no'"),
    "frozen as text": (lambda d: d.update(frozen="end.bias"), "frozen"),
    "frozen as numbers": (lambda d: d.update(frozen=[3]), "frozen.0"),
    "buffers as text": (lambda d: d.update(buffers="offset"), "buffers"),
    "buffers of no tensor": (lambda d: d.update(buffers=["no"]), "buffers: nothing reads 'no'"),
    "keywords in a list": (lambda d: d.update(kwargs=[]), "kwargs"),
    "a number for the original": (lambda d: d.update(original=3), "original"),
    "another original": (lambda d: d.update(original="a:b"), "made from 'a:b'"),
    "another format": (lambda d: d.update(format="other"), "no compacted network"),
    "a part more": (lambda d: d.update(more=1), "more"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [pytest.param(*case, id=f"{part}: {name}") for part, cases in (
        ("node", NODES), ("layer", LAYERS), ("rest", REST)) for name, case in cases.items()],
)  # fmt: skip
def test_descriptions_that_cannot_be_are_refused(
    whole: Path, tmp_path: Path, change: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at = description_of(whole)["nodes"].index(node(description_of(whole), RELU))
    path = described(whole, tmp_path / "x.safetensors", change)
    refused(path, says.replace("{relu}", str(at)))
    assert "run" not in capsys.readouterr().out


def test_arguments_without_end_are_refused(whole: Path, tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = {"tuple": [deep]}

    def change(d: dict[str, Any]) -> None:
        node(d, RELU)["args"] = deep

    refused(described(whole, tmp_path / "x.safetensors", change), "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("first.weight"), "does not fit"),
        (lambda t: t.pop("table"), "there is no 'table'"),
        (lambda t: t.update(more=torch.zeros(1)), "nothing reads the tensor 'more'"),
        (lambda t: t.update({"first.more": torch.zeros(1)}), "nothing reads the tensor"),
        (lambda t: t.update({"constant:more": torch.zeros(1)}), "nothing reads the tensor"),
        (lambda t: t.update({'x"); print("run': torch.zeros(1)}), "no name of a layer or tensor"),
        (lambda t: t.update({"first.weight": t["first.weight"].long()}), "does not fit"),
        (lambda t: [t.pop(k) for k in list(t) if k.endswith("filled.values")], "does not fit"),
    ],
)
def test_other_tensors_are_refused(whole: Path, tmp_path: Path, change: Any, says: str) -> None:
    tensors = load_file(whole)
    change(tensors)
    refused(described(whole, tmp_path / "x.safetensors", lambda d: None, tensors), says)


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
        tensors["first.weight"] = change(tensors["first.weight"]).contiguous()
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

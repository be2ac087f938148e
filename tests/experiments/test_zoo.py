"""The zoo's own logic, on small networks: what it masks, what it counts, and what its table says."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[2] / "experiments" / "zoo"


@pytest.fixture(scope="module")
def modules() -> Any:
    """The modules that need none of the zoo's libraries, by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        names = ("preparation", "counting", "table", "zoo")
        return {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))


class Pyramid(nn.Module):
    """Two outputs; the first is a sum of two layers, the second comes from a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 1)
        self.left, self.right = nn.Conv2d(6, 4, 1), nn.Conv2d(8, 4, 1)
        self.twice = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        vector = self.twice(torch.relu(self.twice(x.mean((2, 3)))))
        return {"map": torch.relu(self.left(self.inner(x)) + self.right(x)), "vector": vector}


def test_output_layers_are_those_behind_which_no_layer_stands(modules: Any) -> None:
    found = modules["preparation"].output_layers(Pyramid(), (torch.randn(1, 3, 4, 4),))
    assert found == ["left", "right", "twice"]


def test_half_of_every_other_layer_is_masked(modules: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 7, 1), nn.ConvTranspose2d(7, 4, 1), nn.Conv2d(4, 1, 1))
    masks = modules["preparation"].layer_masks_at_random(model, [])
    assert {name: (len(keep), int(keep.sum())) for name, keep in masks.items()} == {
        "0": (7, 3),
        "1": (4, 2),
        "2": (1, 1),  # one at least stays
    }
    assert "1" not in modules["preparation"].layer_masks_at_random(model, ["1"])


def test_nothing_constant_is_left_in_norms_of_any_class(modules: Any) -> None:
    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.beta = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))

    model = nn.Sequential(nn.BatchNorm2d(5), nn.LayerNorm(5), OwnNorm())
    modules["preparation"].randomise_(model)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.unique().numel() == 5, name
    assert (model[2].gamma >= 0.5).all()  # a scale of zero would hide the branch


def test_a_network_that_differs_in_one_of_its_outputs_is_told(modules: Any) -> None:
    difference = modules["preparation"].relative_difference
    ours = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.1, 0.2])}
    theirs = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.1, 0.1])}
    assert difference(ours, ours) == 0
    assert difference(ours, theirs) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="shapes differ"):
        difference(ours, {"a": torch.zeros(2), "b": torch.zeros(3)})


def test_macs_of_layers_and_of_attention(modules: Any) -> None:
    count = modules["counting"].count_macs
    assert count(nn.Conv2d(3, 8, 3, padding=1), (torch.zeros(1, 3, 10, 10),)) == 21600

    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    # Two products of 7 x 7 x 4 in each of the 2 heads.
    assert count(Attention(), (torch.zeros(1, 2, 7, 4),)) == 2 * 2 * 7 * 7 * 4


def record(name: str, stage: str, ok: bool = True, **more: Any) -> dict[str, Any]:
    made = {"dense_params": 100, "dense_macs": 50, "params": 40, "macs": 10} if ok else {}
    error = {} if ok else {"error": "ValueError: no\nway", "step": "compact"}
    identity = {"name": name, "group": "listed", "size": "64", "stage": stage, "ok": ok}
    return {**identity, **made, **error, **more}


def test_the_last_record_counts_and_a_cut_line_does_not(modules: Any, tmp_path: Path) -> None:
    zoo, path = modules["zoo"], tmp_path / "results.jsonl"
    zoo.append(path, record("a", "filters", ok=False))
    zoo.append(path, record("a", "filters"))
    with path.open("a") as file:
        file.write('{"name": "b", "sta')
    zoo.append(path, record("c", "filters"))
    found = zoo.read(path)
    assert list(found) == [("a", "filters"), ("c", "filters")]
    assert found["a", "filters"]["ok"]


def test_the_table_says_who_took_what_and_who_removed_more(modules: Any) -> None:
    records = [
        record("a", "filters", float32=1e-7, float64=1e-15),
        record("a", "channels", params=45),
        record("a", "torch-pruning"),
        record("a", "latency", milliseconds={"dense": 6.0, "filters": 3.0}),
        record("b", "filters", ok=False),
        record("b", "torch-pruning"),
    ]
    results = {(r["name"], r["stage"]): r for r in records}
    lines = list(modules["table"].table(results))
    assert lines[2] == (
        "| a | 64 | 0.00 | 1.0e-07 | 1.0e-15 | 60.0 %, 80.0 %, 2.00 | 55.0 %, 80.0 % "
        "| 60.0 %, 80.0 % |"
    )
    assert list(modules["table"].failures(results)) == ["- b, filters, compact: ValueError: no way"]
    summary = list(modules["table"].summary(results))
    assert summary[0] == "SPR, each layer: 1 of 2 listed networks and 0 of 0 further ones"
    assert summary[3] == "Torch-Pruning takes, SPR, each layer does not: b"
    assert summary[5].endswith("a (55.0 against 60.0 %)")

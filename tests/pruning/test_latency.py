"""A target in time: the table of a machine, its file, and what is read off it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from models.toy import convnet, mlp
from spr_or.pruning.counts import LayerCall
from spr_or.pruning.latency import LatencyCounter, Widths, interpolated, measured
from spr_or.pruning.pruner import Pruner
from spr_or.pruning.removed_share import Counter

IMAGE = torch.zeros(2, 1, 8, 8)


class Clock:
    """Times that are proportional to a layer's operations, and a count of the measurements."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, call: LayerCall, widths: Sequence[Widths]) -> list[float]:
        self.calls += 1
        places = call.outputs.numel() / call.module.weight.shape[0]
        kernel = call.module.weight[0, 0].numel()
        return [1e-9 * places * kernel * i * o for i, o in widths]


@pytest.mark.parametrize("seed", range(5))
def test_where_time_is_operations_the_shares_are_those_of_operations(
    seed: int, tmp_path: Path
) -> None:
    torch.manual_seed(seed)
    model = convnet()
    masks = {n: torch.rand(k) > 0.4 for n, k in (("0", 8), ("4", 16), ("9", 32))}
    latency = LatencyCounter(model, IMAGE, tmp_path, Clock())
    assert latency(masks) == pytest.approx(Counter(model, IMAGE, of="macs")(masks))
    assert latency({}) == 0


def test_a_table_is_measured_once_for_each_machine(tmp_path: Path) -> None:
    first, second, other = Clock(), Clock(), Clock()
    total = LatencyCounter(convnet(), IMAGE, tmp_path, first).total
    assert first.calls == 4 and len(list(tmp_path.rglob("*.json"))) == 1
    assert LatencyCounter(convnet(), IMAGE, tmp_path, second).total == total
    assert second.calls == 0
    LatencyCounter(convnet(), IMAGE[:1], tmp_path, other)  # another batch size: other layers
    assert other.calls == 4 and len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "spr-or latency 1"}', "times"])
def test_a_damaged_table_is_named(damage: str, tmp_path: Path) -> None:
    LatencyCounter(mlp(), torch.zeros(1, 64), tmp_path, Clock())
    (file,) = tmp_path.rglob("*.json")
    text = file.read_text().replace("e-0", "e+400") if damage == "times" else damage
    file.write_text(text)
    with pytest.raises(ValueError, match=f"latency table {file} is damaged.*remove it"):
        LatencyCounter(mlp(), torch.zeros(1, 64), tmp_path, Clock())


def test_times_between_the_grid_rise_with_the_widths_and_end_at_nothing() -> None:
    grid = [1, 8], [1, 4, 8], [[1.0, 3.0, 2.0], [4.0, 6.0, 8.0]]
    assert interpolated(grid, Widths(1, 8)) == 3.0  # a measurement that falls does not count
    assert interpolated(grid, Widths(8, 6)) == pytest.approx(7.0)
    assert interpolated(grid, Widths(0, 5)) == interpolated(grid, Widths(5, 0)) == 0.0


def test_a_wider_layer_takes_longer_on_this_machine() -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1)
    call = LayerCall("0", layer, torch.Size((4, 64, 32, 32)), torch.Size((4, 64, 32, 32)))
    narrow, wide = measured(call, [Widths(8, 8), Widths(64, 64)], torch.device("cpu"))
    assert 0 < 4 * narrow < wide


def test_a_pruner_takes_a_target_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPR_OR_CACHE", str(tmp_path))
    model = mlp(hidden=(1024, 512))
    pruner = Pruner(model, torch.zeros(64, 64), {"latency": 0.5}, 1, entities="neurons")
    choice = pruner.cut()
    assert choice.removed_pct == pytest.approx(50, abs=1.5)
    assert pruner.report()["removed"]["latency"] == pytest.approx(choice.removed_pct / 100)
    assert list((tmp_path / "latency").glob("*.json"))


def test_depthwise_and_grouped_layers_are_measured_too(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 3, groups=4)
    )
    latency = LatencyCounter(model, torch.zeros(1, 3, 8, 8), tmp_path)
    assert latency.total > 0 and latency({}) == 0
    assert latency({"0": torch.arange(8) < 4}) <= 100

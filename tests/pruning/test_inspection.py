"""What `inspect_network` says of a network is what compaction then does to it."""

import math

import pytest
import torch
from torch import nn

from spr_or import compact, count_macs, count_parameters, inspect_network
from spr_or.pruning.compaction.errors import CompactionError
from spr_or.pruning.pruner import Pruner
from spr_or.utils.import_path import load_object


class Residual(nn.Module):
    """Two convolutions around a shortcut, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.back = nn.Conv2d(6, 8, 3, padding=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        h = self.stem(x)
        h = h + self.back(self.inner(h))
        return self.head(h.mean((2, 3)))


def test_an_entity_removes_what_compaction_removes():
    """One filter of `inner`: its row and bias, its norm's pair, and the column of `back`."""
    net, x = Residual().eval(), torch.zeros(2, 3, 6, 6)
    found = {layer.layer: layer for layer in inspect_network(net, x).layers}
    inner = found["inner.0"]
    assert inner.weights == 8 * 9 + 1
    assert inner.parameters == 8 * 9 + 1 + 2 + 8 * 9
    assert inner.macs == 8 * 9 * 16 + 8 * 9 * 36
    keep = torch.arange(6) >= 2
    small = compact(net, {"inner.0": keep}, x)
    assert count_parameters(net) - count_parameters(small) == 2 * inner.parameters
    assert count_macs(net, (1, 3, 6, 6)) - count_macs(small, (1, 3, 6, 6)) == 2 * inner.macs


def test_a_channel_removes_all_that_writes_and_reads_it():
    found = inspect_network(Residual(), torch.zeros(2, 3, 6, 6), "channels")
    stream = next(layer for layer in found.layers if layer.layer == "stem")
    assert (stream.kind, stream.count) == ("channels", 8)
    assert set(stream.modules) == {"stem", "back"}
    written = (27 + 1) + (54 + 1)
    assert stream.weights == written
    assert stream.parameters == written + 6 * 9 + 4  # columns of `inner` and of the head


@pytest.mark.parametrize(
    ("path", "shape", "entities"),
    [
        ("models.toy:digits_resnet", (1, 8, 8), ["filters", "neurons"]),
        pytest.param(
            "models.mobilenet:mobilenetv2_small", (1, 8, 8), ["channels"], marks=pytest.mark.slow
        ),
        pytest.param(
            "models.vit:vit_tiny_digits", (1, 8, 8), ["heads", "neurons"], marks=pytest.mark.slow
        ),
    ],
)
def test_layers_are_those_that_a_pruner_regularises(path, shape, entities):
    model, x = load_object(path)().eval(), torch.zeros(2, *shape)
    found = inspect_network(model, x, entities)
    pruner = Pruner(model, x, {"params": 0.1}, entities=entities)
    assert [(layer.layer, layer.count) for layer in found.layers] == [
        (layer.name, layer.count) for layer in pruner.spr.layers
    ]
    assert found.parameters == count_parameters(model)
    assert found.macs == count_macs(model, (1, *shape))
    assert 0 < found.half_parameters < found.parameters
    assert 0 < found.half_macs < found.macs
    assert not found.obstacles
    taken = {module for layer in found.layers for module in layer.modules}
    assert taken.isdisjoint(left.layer for left in found.left_alone)
    assert all(layer.parameters >= layer.weights for layer in found.layers)


def test_every_weight_is_in_an_entity_or_left_alone_for_a_reason():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 1, groups=2),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1),
        nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2),
    )  # fmt: skip
    found = inspect_network(net, torch.zeros(2, 3, 1, 1), "filters", ignored=["3"])
    assert [layer.layer for layer in found.layers] == ["0"]
    reasons = {left.layer: left.reason for left in found.left_alone}
    assert list(reasons) == ["1", "2", "3", "5", "6"]
    assert "no slice" in reasons["1"] and "bake_weights_" in reasons["2"]
    assert reasons["3"] == "ignored, as asked" and reasons["5"] == "Linear has no filters"
    assert reasons["6"] == "it writes an output of the network"


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        h = torch.cumsum(torch.relu(self.first(x)), 1)  # mixes
        h = torch.logcumsumexp(self.second(h), 1)
        return self.head(h.mean((2, 3)))


def test_an_operator_that_mixes_is_named_with_its_line_and_the_layers_in_front():
    found = inspect_network(Mixed(), torch.zeros(2, 3, 4, 4))
    mixing, unknown = found.obstacles
    assert mixing.operator == "aten.cumsum" and mixing.layers == ("first",)
    file, _, rest = mixing.where.partition(":")
    assert file == __file__
    assert rest.endswith("h = torch.cumsum(torch.relu(self.first(x)), 1)  # mixes")
    assert unknown.operator == "aten.logcumsumexp" and unknown.layers == ("second",)
    second = found.layers[1]
    assert second.parameters == second.weights  # what reads it stays at full width


class Gate(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Rounded(nn.Module):
    def forward(self, x):
        return x * float(x.mean())


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.calls


def untraceable():
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), Gate(), nn.Sequential(nn.ReLU(), Rounded()), Counting(), Gate(),
    )  # fmt: skip


@pytest.mark.parametrize("refused", [
    lambda net, x: inspect_network(net, x),
    lambda net, x: compact(net, {"0": torch.arange(4) > 0}, x),
])  # fmt: skip
def test_a_refusal_names_every_place_that_stops_the_tracing(refused, capfd):
    with pytest.raises(CompactionError, match="3 places stop it") as error:
        refused(untraceable(), torch.zeros(2, 3, 4, 4))
    lines = str(error.value).splitlines()[1:]
    assert lines[0].startswith(f"1 (Gate): {__file__}:") and "if x.sum() > 0:" in lines[0]
    assert lines[1].startswith(f"2.1 (Rounded): {__file__}:") and "float(x.mean())" in lines[1]
    assert lines[2].startswith("3 (Counting): ") and "'calls'" in lines[2]
    assert capfd.readouterr() == ("", "")  # torch prints graphs where it fails


def test_wrong_arguments_are_named():
    net, x = Residual(), torch.zeros(2, 3, 6, 6)
    with pytest.raises(ValueError, match="not 'filter'"):
        inspect_network(net, x, "filter")
    with pytest.raises(ValueError, match="heads"):
        inspect_network(net, x, "heads")
    with pytest.raises(ValueError, match="'stm'.*'stem'"):
        inspect_network(net, x, ignored=["stm"])
    with pytest.raises(CompactionError, match="does not take"):
        inspect_network(net, torch.zeros(2, 5, 6, 6))


def test_nothing_of_the_model_changes():
    net = Residual().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inspect_network(net, torch.randn(2, 3, 6, 6), "channels")
    assert net.training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_half_of_blocks_is_every_second_block():
    net = load_object("models.toy:digits_resnet")().eval()
    found = inspect_network(net, torch.zeros(2, 1, 8, 8), "blocks")
    assert all((layer.kind, layer.count) == ("blocks", 1) for layer in found.layers)
    gone = [layer.parameters for layer in found.layers[1::2]]
    assert math.isclose(found.parameters - found.half_parameters, sum(gone))

"""Layers left out by name, pattern or type."""

import pytest
from grouped_networks import head_group, stream_group, streams
from torch import nn

from models.resnet_cifar import resnet20
from spr_or.pruning.layer_entities import layer_entities
from spr_or.pruning.regularizer import SPR


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(4, 4)), nn.Linear(4, 4)
    )


@pytest.mark.parametrize(
    ("ignored", "names"),
    [
        ([], {"0", "1.0"}),
        (["0"], {"1.0"}),
        (["1"], {"0"}),
        (["1.*"], {"0"}),
        (["?.0"], {"0"}),
        (["0", "2"], {"1.0"}),
        ([nn.Linear], {"0", "1.0"}),
        (iter(["0"]), {"1.0"}),
    ],
)
def test_filters_that_are_left(ignored, names):
    assert {layer.name for layer in layer_entities(network(), ignored=ignored)} == names


def test_a_pattern_over_several_levels():
    kept = {layer.name for layer in layer_entities(resnet20(), ignored=["layer2.*", "*.conv1"])}
    everything = {layer.name for layer in layer_entities(resnet20())}
    left_out = {n for n in everything if n.startswith("layer2.") or n.endswith(".conv1")}
    assert len(left_out) == 6 + 6
    assert kept == everything - left_out


def test_the_last_linear_layer_stays_the_output():
    """Ignoring another layer does not make the last one an entity, nor the one before it the last."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 2))
    assert [e.name for e in layer_entities(net, "neurons", ignored=["0"])] == ["1"]
    assert [e.name for e in layer_entities(net, "neurons", ignored=["2"])] == ["0", "1"]


def test_chosen_layers_may_be_ignored_too():
    chosen = {"0": "filters", "1.0": "input_channels"}
    assert [e.name for e in layer_entities(network(), chosen, ignored=["0"])] == ["1.0"]


def test_bounds_follow():
    net = network()
    bounds = SPR.bounds_from(net, ignored=["0"])
    assert list(bounds) == ["1.0"]
    assert [e.name for e in SPR(net, 1.0, 0.5, bounds, ignored=["0"]).layers] == ["1.0"]


def test_a_group_that_writes_to_an_ignored_layer_is_left_out():
    groups = [stream_group(), head_group()]
    for ignored in (["widen"], [nn.BatchNorm2d], ["stem"]):
        assert [e.name for e in layer_entities(streams(), groups, ignored=ignored)] == ["qkv"]
    with pytest.raises(ValueError, match="every group of entities writes to an ignored layer"):
        layer_entities(streams(), groups, ignored=["stem", "qkv"])


def test_a_group_loses_the_columns_of_an_ignored_reader():
    (entities,) = layer_entities(streams(), stream_group(), ignored=["embed"])
    assert entities.bounded == ("stem", "norm", "widen", "depthwise")


@pytest.mark.parametrize(
    ("ignored", "error", "message"),
    [
        (["1.1.conv"], ValueError, "'1.1.conv', but no module has such a name; the nearest name is '1.1'"),
        (["layer9.*"], ValueError, "'layer9.*'"),
        ([nn.LayerNorm], ValueError, "holds LayerNorm, a type that no module has"),
        ([3], TypeError, "must hold names, patterns or module types, not 3"),
        ("0", TypeError, r"write \['0'\]"),
        (["0", "1"], ValueError, "besides those ignored"),
    ],
)  # fmt: skip
def test_what_cannot_be_ignored_is_named(ignored, error, message):
    with pytest.raises(error, match=message):
        layer_entities(network(), ignored=ignored)


def test_positions_know_no_layers():
    with pytest.raises(ValueError, match="entities are given by positions"):
        layer_entities(network(), [[0, 1]], ignored=["0"])

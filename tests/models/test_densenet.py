"""DenseNet-BC against the paper's sizes and torchvision's names."""

import pytest
import torch
from torch import nn

from models.densenet import DenseLayer, DenseNet, densenet121, densenet_bc100, densenet_digits
from spr_or.pruning.counts import count_macs, count_parameters


def test_parameters_are_the_published_ones():
    assert count_parameters(densenet121()) == 7_978_856  # torchvision
    assert count_parameters(densenet_bc100()) == 769_162  # "0.8 M" in table 2 of the paper


@pytest.mark.parametrize(("build", "layers"), [(densenet121, 121), (densenet_bc100, 100)])
def test_depth_is_that_of_the_name(build, layers):
    counted = [m for m in build().modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(counted) == layers


def test_operations_of_densenet121_are_torchvisions():
    assert count_macs(densenet121(), (1, 3, 224, 224)) == pytest.approx(2.83e9, rel=0.01)


def test_a_layer_adds_its_channels_behind_its_input():
    layer = DenseLayer(6, growth=4).eval()
    x = torch.randn(2, 6, 5, 5)
    y = layer(x)
    assert y.shape == (2, 10, 5, 5)
    assert torch.equal(y[:, :6], x)


def test_a_transition_halves_channels_and_size():
    model = densenet_bc100().eval()
    x = torch.zeros(1, 3, 32, 32)
    shapes = {}
    with torch.no_grad():
        for name, layer in model.features.named_children():
            x = layer(x)
            shapes[name] = tuple(x.shape[1:])
    assert shapes["denseblock1"] == (216, 32, 32)
    assert shapes["transition1"] == (108, 16, 16)
    assert shapes["transition2"] == (150, 8, 8)
    assert shapes["norm4"] == (342, 8, 8)


def test_names_are_torchvisions():
    names = list(densenet121().state_dict())
    assert len(names) == 727
    for name, place in {
        "features.conv0.weight": 0,
        "features.denseblock1.denselayer1.norm1.weight": 6,
        "features.denseblock1.denselayer1.conv2.weight": 17,
        "features.transition1.norm.weight": 78,
        "features.transition1.conv.weight": 83,
        "features.norm5.weight": 720,
        "classifier.bias": 726,
    }.items():
        assert names.index(name) == place


def test_unknown_stem_is_refused():
    with pytest.raises(ValueError, match="stem.*'tiny'"):
        DenseNet((1,), 4, 10, stem="tiny")


def test_the_small_one_takes_digits_and_can_be_exported():
    model = densenet_digits().eval()
    x = torch.randn(3, 1, 8, 8)
    program = torch.export.export(model, (x,))
    assert model(x).shape == (3, 10)
    assert torch.equal(program.module()(x), model(x))

"""MobileNetV2 against the paper's table 2 and torchvision's names."""

import pytest
import torch
from torch import nn

from models.mobilenet import InvertedResidual, mobilenetv2, mobilenetv2_small
from spr_or.pruning.counts import count_macs, count_parameters


def sizes(model, image):
    """(channels, height) after every element of ``features``."""
    found = []
    x = torch.zeros(1, *image)
    with torch.no_grad():
        for layer in model.eval().features:
            x = layer(x)
            found.append((x.shape[1], x.shape[2]))
    return found


def test_sizes_are_those_of_the_papers_table():
    stages = [(16, 112, 1), (24, 56, 2), (32, 28, 3), (64, 14, 4), (96, 14, 3), (160, 7, 3)]
    stages += [(320, 7, 1), (1280, 7, 1)]
    expected = [(32, 112)] + [(c, side) for c, side, count in stages for _ in range(count)]
    assert sizes(mobilenetv2(), (3, 224, 224)) == expected


def test_parameters_and_operations_are_the_published_ones():
    model = mobilenetv2()
    assert count_parameters(model) == 3_504_872  # torchvision; "3.4 M" in the paper
    assert count_macs(model, (1, 3, 224, 224)) == pytest.approx(300e6, rel=0.01)  # table 4


def test_the_cifar_stem_halves_three_times():
    model = mobilenetv2(10, stem="cifar")
    assert sizes(model, (3, 32, 32))[-1] == (1280, 4)
    assert count_parameters(model) == 3_504_872 - 990 * (1280 + 1)


def test_bottlenecks_are_linear_and_added_where_shapes_agree():
    blocks = [m for m in mobilenetv2().modules() if isinstance(m, InvertedResidual)]
    assert [type(block.conv[-1]) for block in blocks] == [nn.BatchNorm2d] * 17
    assert sum(block.residual for block in blocks) == 10
    block = blocks[2].eval()  # the second of 24 channels
    x = torch.randn(2, 24, 5, 5)
    assert torch.equal(block(x), x + block.conv(x))


def test_depthwise_filters_read_one_channel():
    kernels = [m for m in mobilenetv2().modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(kernels) == 17
    assert all(m.groups == m.in_channels == m.out_channels for m in kernels)


def test_names_are_torchvisions():
    names = list(mobilenetv2().state_dict())
    assert len(names) == 314
    for name, place in {
        "features.0.0.weight": 0,
        "features.1.conv.0.0.weight": 6,  # no widening in the first block
        "features.1.conv.1.weight": 12,
        "features.2.conv.0.1.running_var": 22,
        "features.18.1.num_batches_tracked": 311,
        "classifier.1.bias": 313,
    }.items():
        assert names.index(name) == place


def test_unknown_stem_is_refused():
    with pytest.raises(ValueError, match="stem.*'tiny'"):
        mobilenetv2(stem="tiny")


def test_the_small_one_takes_digits_and_can_be_exported():
    model = mobilenetv2_small().eval()
    x = torch.randn(3, 1, 8, 8)
    program = torch.export.export(model, (x,))
    assert model(x).shape == (3, 10)
    assert torch.equal(program.module()(x), model(x))

"""Counting parameters, the weights of masked filters, and the operations of a forward pass."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.resnet import resnet18
from models.resnet_cifar import resnet20
from models.toy import convnet, digits_resnet, mlp
from models.vgg import vgg16
from spr_or.pruning.counts import count_macs, count_parameters, masked_filter_weights


def test_masked_filter_weights_counts_filters_alone():
    masks = {
        "conv1": torch.arange(16) >= 3,  # 3 filters of 1x3x3
        "layer2.0.conv1": torch.arange(32) >= 2,  # 2 filters of 16x3x3
    }
    assert masked_filter_weights(digits_resnet(), masks) == 3 * 9 + 2 * 16 * 9


def test_masked_filter_weights_of_everything_is_the_papers_denominator():
    """Convolutions and classifier of VGG-16: 14,715,584 weights."""
    model = vgg16()
    masks = {
        name: torch.zeros(len(module.weight), dtype=torch.bool)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert masked_filter_weights(model, masks) == 14_715_584


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlp(), (3, 64)),
        (convnet(), (2, 1, 8, 8)),
        (resnet20(), (1, 3, 32, 32)),
        (resnet18(), (1, 3, 64, 64)),
    ],
)
def test_macs_are_half_of_torchs_flops(model, shape):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(shape))
    model.train()
    assert 2 * count_macs(model, shape) == counter.get_total_flops()
    assert all(module.training for module in model.modules())


def test_resnet20_has_the_usual_forty_million_macs():
    assert count_macs(resnet20(), (1, 3, 32, 32)) == pytest.approx(40.6e6, rel=0.01)


def test_count_parameters():
    assert count_parameters(resnet20()) == 269_722

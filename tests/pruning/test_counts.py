"""Counting parameters, the weights of masked filters, and the operations of a forward pass."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from models.resnet import resnet18
from models.resnet_cifar import resnet20
from models.toy import convnet, digits_resnet, mlp
from models.vgg import vgg16
from spr_or import compact
from spr_or.pruning.counts import (
    count_macs,
    count_parameters,
    macs_by_layer,
    masked_filter_weights,
)


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


class Attention(nn.Module):
    def __init__(self, need_weights=False):
        super().__init__()
        self.inside, self.outside = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
        self.need_weights = need_weights

    def forward(self, x):
        return self.outside(self.inside(x, x, x, need_weights=self.need_weights)[0])


@pytest.mark.parametrize("need_weights", [False, True])
def test_projections_of_attention_are_counted_and_its_products_are_not(need_weights):
    macs = macs_by_layer(Attention(need_weights), torch.zeros(2, 5, 8))
    positions = 2 * 5
    assert macs == {
        "inside.in_proj_weight": positions * 3 * 8 * 8,
        "inside.out_proj": positions * 8 * 8,
        "outside": positions * 8 * 3,
    }


def test_encoder_layers_are_counted_though_torch_would_fuse_them():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert count_macs(layer, (2, 5, 8)) == 2 * 5 * (4 * 8 * 8 + 2 * 8 * 16)


def test_functions_of_a_compact_network_are_counted():
    """Its attention is written out in operators, which are no modules."""
    model = Attention().eval()
    keep = torch.ones(24, dtype=torch.bool)
    keep[[4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]] = False  # the second head: q, k and v
    small = compact(model, {"inside.in_proj_weight": keep}, torch.zeros(2, 5, 8))
    macs = macs_by_layer(small, torch.zeros(2, 5, 8))
    assert sum(macs.values()) == count_macs(small, (2, 5, 8))
    left = {n: p for n, p in small.named_parameters() if p.dim() == 2}
    assert sum(macs.values()) == 2 * 5 * sum(p.numel() for p in left.values())
    assert sum(macs.values()) < count_macs(model, (2, 5, 8))


def test_transposed_convolutions_spread_each_input():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2))
    assert count_macs(model, (2, 4, 5, 5)) == 2 * 4 * 5 * 5 * 3 * 9


def test_weights_that_are_computed_count_for_their_layer():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 4)), nn.utils.weight_norm(nn.Conv1d(4, 2, 1))
    )
    macs = macs_by_layer(nn.Sequential(model[0]), torch.zeros(3, 6))
    assert macs == {"0": 3 * 6 * 4}
    assert macs_by_layer(nn.Sequential(model[1]), torch.zeros(3, 4, 5)) == {"0": 3 * 5 * 4 * 2}


def test_a_layer_called_twice_counts_twice():
    layer = nn.Linear(3, 3, bias=False)
    assert macs_by_layer(nn.Sequential(layer, layer), torch.zeros(2, 7, 3)) == {"0": 2 * 2 * 7 * 9}


def test_count_parameters():
    assert count_parameters(resnet20()) == 269_722

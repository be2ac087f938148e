"""Channels that carry a constant, and streams that are read more than once."""

import pytest
import torch
import torch.nn.functional as F
from compaction_networks import difference, keep_first, randomise
from torch import nn

from models.toy import mlp
from spr_or.pruning.compaction.api import compact
from spr_or.pruning.compaction.layers import Fill
from spr_or.pruning.masks import apply_masks_


def filled(model):
    """Whether constants are put back somewhere."""
    return any(isinstance(module, Fill) for module in model.modules())


@pytest.mark.parametrize("padding", [0, 1])
def test_a_zero_filter_with_a_living_shift_goes_and_its_constant_stays(padding):
    """Folded into a bias where it can be; put back where zero padding makes it vary in space."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=padding, bias=False), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2),
    ).double()  # fmt: skip
    x = torch.randn(3, 3, 6, 6).double()
    model(x)
    randomise(model).eval()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[1].bias[0] = 0.7
    small = compact(model, {}, x)
    assert difference(model(x), small(x)) < 1e-12
    assert small.get_submodule("0").out_channels == 2
    alive = int((model[1](model[0](x))[0, :2, 0, 0] > 0).sum())
    assert alive > 0
    assert small.get_submodule("3").in_channels == (2 if padding == 0 else 2 + alive)
    assert (small.get_submodule("3").bias is not None) == (padding == 0)
    assert filled(small) == (padding > 0)


@pytest.mark.parametrize(
    "border",
    [
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.avg_pool2d(x, 3, stride=1, padding=1),
        nn.AvgPool2d(3, 1, 1),
        lambda x: F.pad(x, (1, 0, 0, 2)),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 1, padding=1),
    ],
)
def test_a_constant_that_meets_zeros_at_the_border_is_put_back(border):
    """The filter that computed it goes: what is put back in front of the border is a number."""
    conv, end = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
    nn.init.zeros_(conv.weight[1:].detach())  # three constants: the biases

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.end, self.border = conv, end, border

        def forward(self, x):
            return self.end(self.border(self.conv(x)))

    model = Net().double().eval()
    small = compact(model, {}, torch.zeros(1, 3, 5, 5))
    x = torch.randn(2, 3, 5, 5).double()
    assert difference(model(x), small(x)) < 1e-12
    assert small.conv.out_channels == 1
    assert filled(small)


def test_without_a_border_a_constant_becomes_a_bias():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 1), nn.Conv2d(4, 2, 3)).double()
    nn.init.zeros_(model[0].weight[1:].detach())
    small = compact(model, {}, torch.zeros(1, 3, 9, 9))
    x = torch.randn(2, 3, 9, 9).double()
    assert difference(model(x), small(x)) < 1e-12
    assert small.get_submodule("0").out_channels == 1
    assert not filled(small)


def test_a_scale_of_zero_frees_the_filter_before_it():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    model = model.double().eval()
    nn.init.zeros_(model[1].weight[:3].detach())
    small = compact(model, {}, torch.zeros(1, 3, 5, 5))
    x = torch.randn(2, 3, 5, 5).double()
    assert difference(model(x), small(x)) < 1e-12
    assert small.get_submodule("0").out_channels == 1


class Stream(nn.Module):
    """A stream that is read again after an addition and an in-place activation behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.relu = nn.ReLU(inplace=True)
        self.end = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.relu(x + self.branch(x))
        return self.end(y + x)


@pytest.mark.parametrize("kept", [0, 2, 6])
def test_the_stream_is_not_overwritten(kept):
    """An emptied branch leaves the stream itself to the activation, a narrow one adds into it."""
    model = Stream().double()
    masks = {"branch": keep_first(6, kept)}
    small = compact(model, masks, torch.zeros(1, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4).double()
    apply_masks_(model, masks)
    with torch.no_grad():
        assert difference(model(x), small(x)) < 1e-12


def test_a_constant_output_is_still_an_output():
    model = mlp(4, hidden=(3,), num_classes=2)
    small = compact(model, {"3": keep_first(2, 1)}, torch.zeros(1, 4))
    x = torch.randn(5, 4)
    assert small(x).shape == (5, 2) and not small(x)[:, 1].any()
    assert torch.allclose(small(x)[:, 0], model(x)[:, 0])

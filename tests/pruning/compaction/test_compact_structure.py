"""What stays of a network, worked out by hand."""

import warnings

import pytest
import torch
from compaction_networks import difference, keep_first, randomise
from torch import nn

from models.resnet import resnet18, resnet50
from models.resnet_cifar import resnet20
from models.toy import convnet, digits_resnet, mlp
from spr_or.pruning.compaction.api import CompactionWarning, compact
from spr_or.pruning.counts import count_parameters


def test_first_convolution_of_a_block_shrinks_with_its_reader():
    small = compact(digits_resnet(), {"layer1.0.conv1": keep_first(16, 5)}, torch.zeros(1, 1, 8, 8))
    block = small.get_submodule("layer1.0")
    assert block.conv1.weight.shape == (5, 16, 3, 3)
    assert block.bn1.weight.shape == (5,)
    assert block.conv2.weight.shape == (16, 5, 3, 3)
    # 11 filters of 16x3x3, 11 times γ and β, 11 channels read by 16 filters of 3x3.
    assert count_parameters(digits_resnet()) - count_parameters(small) == 11 * (144 + 2 + 144)


def test_last_convolution_of_a_block_shrinks_by_an_indexed_add():
    model = randomise(digits_resnet())
    small = compact(model, {"layer1.0.conv2": keep_first(16, 5)}, torch.zeros(1, 1, 8, 8))
    assert small.get_submodule("layer1.0").conv2.weight.shape == (5, 16, 3, 3)
    # The stream keeps its sixteen channels: the shortcut writes them.
    assert small.get_submodule("layer2.0").conv1.weight.shape == (32, 16, 3, 3)
    assert count_parameters(model) - count_parameters(small) == 11 * (144 + 2)


@pytest.mark.parametrize("emptied", [["conv1"], ["conv2"], ["conv1", "conv2"]])
def test_a_block_with_nothing_left_is_its_shortcut(emptied):
    model = randomise(resnet20())
    masks = {f"layer2.1.{name}": keep_first(32, 0) for name in emptied}
    small = compact(model, masks, torch.zeros(1, 3, 32, 32))
    left = [name for name, _ in small.named_parameters() if name.startswith("layer2.1.")]
    assert left == []
    shifts = [name for name, _ in small.named_parameters() if name.endswith("shift")]
    # With conv2 still there, its BatchNorm's constant stays as a shift of the stream.
    assert len(shifts) == (emptied == ["conv1"])


def test_an_emptied_bottleneck_leaves_its_projection():
    model = randomise(resnet50(10, stem="cifar"))
    small = compact(model, {"layer2.0.conv2": keep_first(128, 0)}, torch.zeros(1, 3, 8, 8))
    left = {name.split(".")[2] for name in small.state_dict() if name.startswith("layer2.0.")}
    assert left == {"downsample"}


def test_channels_no_one_writes_leave_the_stream():
    model = randomise(digits_resnet())
    masks = {name: keep_first(16, 6) for name in ("conv1", "layer1.0.conv2")}
    small = compact(model, masks, torch.zeros(1, 1, 8, 8))
    assert small.conv1.weight.shape[0] == 6
    assert small.get_submodule("layer1.0").conv1.weight.shape == (16, 6, 3, 3)
    assert small.get_submodule("layer2.0").conv1.weight.shape == (32, 6, 3, 3)


def test_channels_no_one_reads_leave_the_stream():
    """Zero columns (entities over input channels) free the channel they would have read."""
    model = randomise(digits_resnet()).eval()
    with torch.no_grad():
        model.fc.weight[:, 10:] = 0
        model.layer3[0].conv1.weight[:, 5:] = 0
    small = compact(model, {}, torch.zeros(1, 1, 8, 8))
    assert small.get_submodule("layer3.0").conv2.weight.shape[0] == 10
    assert small.fc.weight.shape == (10, 10)
    x = torch.randn(2, 1, 8, 8)
    assert difference(model(x), small(x)) < 1e-5


def test_channels_become_blocks_of_features():
    """A 2x2 map is flattened: every channel is four columns of the linear layer."""
    model = randomise(convnet())
    small = compact(model, {"4": keep_first(16, 3)}, torch.zeros(1, 1, 8, 8))
    assert small.get_submodule("9").weight.shape == (32, 12)
    kept = small.meta["kept"]["9.weight"]
    assert kept == [None, list(range(12))]


def test_nothing_masked_is_nothing_removed():
    model = randomise(resnet18(10, stem="cifar"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing was asked for, so nothing is warned of
        small = compact(model, {}, torch.zeros(1, 3, 8, 8))
    assert small.state_dict().keys() == model.state_dict().keys()
    assert count_parameters(small) == count_parameters(model)


@pytest.mark.parametrize("sides", [(6, 6), (6, 5)])
def test_flattened_channels_leave_the_linear_layer(sides):
    """torch.export calls height and width variable, though the linear layer fixes their product."""
    columns = 8 * sides[0] * sides[1]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(columns, 3)
    )
    small = compact(model, {"0": keep_first(8, 3)}, torch.zeros(2, 3, *sides))
    assert small.get_submodule("3").weight.shape == (3, columns * 3 // 8)
    assert [type(m) for m in small.children()] == [nn.Conv2d, nn.Linear]


def test_sizes_that_the_forward_pass_multiplies_are_numbers_where_a_layer_fixes_them():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3, stride=2)
            self.head = nn.Linear(8 * 4, 3)

        def forward(self, x):
            x = self.a(x)
            b, c, h, w = x.shape
            return self.head(x.permute(0, 2, 3, 1).reshape(b, h * w * c))

    model = Tokens().eval()
    small = compact(model, {"a": keep_first(8, 3)}, torch.zeros(1, 3, 6, 6))
    assert small.get_submodule("head").weight.shape == (3, 12)
    assert small(torch.randn(5, 3, 6, 6)).shape == (5, 3)


def test_masks_that_remove_nothing_are_warned_of():
    with pytest.warns(CompactionWarning, match="nothing was removed: 2410 parameters as before"):
        compact(mlp(64, (32,), 10), {"1": keep_first(32, 32)}, torch.zeros(1, 64))


def test_a_layer_that_dies_is_warned_of_by_name():
    masks = {"1": keep_first(32, 0)}
    with pytest.warns(CompactionWarning, match="nothing is left of 1: what follows is constant"):
        small = compact(mlp(64, (32,), 10), masks, torch.zeros(1, 64))
    x = torch.randn(5, 64)
    assert torch.equal(small(x), small(-x)) and small(x).shape == (5, 10)

"""Masks: the threshold rule, silencing, holding."""

import copy

import pytest
import torch
from torch import nn

from models.resnet import resnet18
from models.resnet_cifar import resnet20
from models.toy import digits_resnet, mlp
from models.vgg import vgg16
from spr_or.pruning.following_norms import following_norms
from spr_or.pruning.masks import apply_masks_, collapsed_layers, hold_masks, masks_by_threshold


def filters(*rows):
    """A 1x1 convolution whose filters are the rows given."""
    weight = torch.tensor(rows)
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    layer.weight.data = weight[:, :, None, None]
    return nn.Sequential(layer)


def test_a_filter_goes_when_more_than_the_share_is_small():
    small, large = [9e-5], [2e-4]
    model = filters(small * 99 + large, small * 100, large * 100, small * 98 + large * 2)
    # 99 of 100 is not more than 99 %: the filter stays.
    assert masks_by_threshold(model)["0"].tolist() == [True, False, True, True]
    assert masks_by_threshold(model, share=0.985)["0"].tolist() == [False, False, True, True]


def test_a_weight_at_the_threshold_is_not_zero():
    model = filters([0.5, -0.5], [0.49, -0.49])
    assert masks_by_threshold(model, zero_below=0.5)["0"].tolist() == [True, False]


def test_exact_zeros_are_the_threshold_zero():
    model = filters([0.0, -0.0], [1e-30, 0.0])
    assert masks_by_threshold(model, zero_below=0)["0"].tolist() == [False, True]
    assert masks_by_threshold(model, zero_below=0, share=1)["0"].tolist() == [False, True]


def test_a_unit_with_a_bias_left_is_not_dead():
    """As in the regulariser, a unit is its weights and its bias."""
    layer = nn.Sequential(nn.Conv2d(1, 3, 2))
    with torch.no_grad():
        layer[0].weight[1:] = 0
        layer[0].bias.copy_(torch.tensor([1.0, 0.5, 0.0]))
    for rule in ({}, {"zero_below": 0.0, "share": 1.0}):
        assert masks_by_threshold(layer, **rule)["0"].tolist() == [True, True, False]
    assert masks_by_threshold(layer, share=0.7)["0"].tolist() == [True, False, False]  # 4 of 5


def test_only_the_named_modules_are_masked():
    model = mlp(4, hidden=(3,), num_classes=2)
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    assert masks_by_threshold(model) == {}
    masks = masks_by_threshold(model, ["1"])
    assert list(masks) == ["1"] and collapsed_layers(masks) == ["1"]


def test_following_norms_of_the_networks():
    assert following_norms(resnet20())["conv1"] == ["bn1"]
    norms = following_norms(resnet18())
    assert norms["layer2.0.downsample.0"] == ["layer2.0.downsample.1"]
    assert norms["layer2.0.conv2"] == ["layer2.0.bn2"]
    assert norms["fc"] == []
    assert following_norms(vgg16())["features.7"] == ["features.8"]


def test_a_norm_behind_relu_follows_and_one_behind_an_addition_does_not():
    class PreActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
            self.after_relu, self.after_add = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x):
            x = self.after_relu(torch.relu(self.a(x)))
            return self.after_add(x + self.b(x))

    norms = following_norms(PreActivation())
    assert norms == {"a": ["after_relu"], "b": []}


def test_a_masked_filter_gives_exactly_zero_after_its_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    for tensor in (*model.parameters(), model[1].running_mean):
        nn.init.normal_(tensor, 1)
    keep = torch.tensor([True, False, True, False])
    x = torch.randn(2, 3, 5, 5)
    before = model(x)
    apply_masks_(model, {"0": keep})
    after = model(x)
    assert after[:, ~keep].abs().max() == 0
    assert torch.equal(after[:, keep], before[:, keep])


def test_a_zero_filter_alone_is_not_dead():
    """The reason why the shift β goes with the filter."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1)).eval()
    nn.init.constant_(model[1].bias, 1.0)
    nn.init.zeros_(model[0].weight)
    assert model(torch.zeros(1, 1, 1, 1)).item() == 1.0


def test_held_masks_stay_zero_while_the_rest_learns():
    model = digits_resnet()
    masks = {
        name: torch.rand(len(module.weight)) > 0.5
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    apply_masks_(model, masks)
    start = copy.deepcopy(model.state_dict())
    hold = hold_masks(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(
            model(torch.randn(8, 1, 8, 8)), torch.randint(10, (8,))
        ).backward()
        optimizer.step()
        hold()
    for name, keep in masks.items():
        weight = model.get_submodule(name).weight
        norm = model.get_submodule(name.replace("conv", "bn"))
        assert (
            not weight[~keep].any() and not norm.weight[~keep].any() and not norm.bias[~keep].any()
        )
        assert (weight[keep] != start[f"{name}.weight"][keep]).any()
    model.eval()
    x = torch.randn(4, 1, 8, 8)
    silent = model.bn1(model.conv1(x))[:, ~masks["conv1"]]
    assert silent.abs().max() == 0


def test_masks_that_do_not_fit_are_named():
    model = digits_resnet()
    with pytest.raises(ValueError, match=r"'layer1.0.conv9'.*did you mean 'layer1.0.conv"):
        apply_masks_(model, {"layer1.0.conv9": torch.ones(16, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"'conv1' must be a bool vector of length 16.*\(15,\)"):
        apply_masks_(model, {"conv1": torch.ones(15, dtype=torch.bool)})
    with pytest.raises(ValueError, match="torch.float32"):
        apply_masks_(model, {"conv1": torch.ones(16)})
    with pytest.raises(ValueError, match="share.*1.5"):
        masks_by_threshold(model, share=1.5)
    with pytest.raises(ValueError, match="zero_below.*-1"):
        masks_by_threshold(model, zero_below=-1)

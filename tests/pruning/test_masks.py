"""Masks: the threshold rule, silencing, holding."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

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


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that brings its activation along, as image libraries have it."""

    def __init__(self, features):
        super().__init__(features)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(super().forward(x))


def lively(model):
    """Scales, shifts and statistics that are nowhere zero."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor.detach(), 0.5, 1.5)
    return model.eval()


KEEP = torch.tensor([True, False, True, False])
NORMS = {
    "sync": nn.SyncBatchNorm(4),
    "instance": nn.InstanceNorm2d(4, affine=True),
    "instance with statistics": nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "with an activation": NormAct(4),
    "group": nn.GroupNorm(4, 4),
    "plain": nn.BatchNorm2d(4, affine=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_every_kind_of_norm_goes_with_its_layer(name):
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 1), NORMS[name]))
    assert following_norms(model) == {"0": ["1"]}
    x = torch.rand(2, 3, 5, 5)
    before = model(x)
    apply_masks_(model, {"0": KEEP})
    with torch.no_grad():
        after = model(x)
    assert after[:, ~KEEP].abs().max() == 0 and after[:, KEEP].abs().min() > 0
    assert torch.equal(after[:, KEEP], before[:, KEEP])


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_filters_of_a_transposed_convolution_are_outputs(kind):
    dims = int(kind.__name__[-2])
    model = lively(nn.Sequential(kind(6, 4, 2, groups=2)))
    with torch.no_grad():
        model[0].weight[:3, 1] = 0  # of the first group the second filter
        model[0].bias[1] = 0
    assert masks_by_threshold(model)["0"].tolist() == [True, False, True, True]
    apply_masks_(model, {"0": KEEP})
    out = model(torch.rand(2, 6, *[3] * dims))
    assert not out[:, ~KEEP].any() and out[:, KEEP].all()


def test_norms_embeddings_and_parameters_are_named_like_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
            self.scale = nn.Parameter(torch.ones(4, 2))
            self.inside = nn.MultiheadAttention(4, 2)

        def forward(self, x):
            return self.norm(self.words(x)) @ self.scale

    model = lively(Net())
    rows = torch.arange(12) % 2 == 0
    masks = {"words": KEEP, "norm": KEEP, "scale": KEEP, "inside.in_proj_weight": rows}
    apply_masks_(model, masks, torch.zeros(2, 3, dtype=torch.long))
    assert not model.words.weight[:, ~KEEP].any() and model.words.weight[:, KEEP].all()
    for tensor in (model.norm.weight, model.norm.bias, model.scale):
        assert not tensor[~KEEP].any() and tensor[KEEP].all()
    assert not model.inside.in_proj_weight[~rows].any() and model.inside.in_proj_weight[rows].all()
    assert model.inside.in_proj_bias.all()  # named on its own
    for name, keep, says in [
        ("words", torch.ones(7, dtype=torch.bool), r"'words'.*length 4"),
        ("norm", torch.ones(3, dtype=torch.bool), r"'norm'.*length 4"),
        ("scale", torch.ones(2, dtype=torch.bool), r"'scale'.*length 4"),
        ("scales", KEEP, "'scales' is no convolution"),
        ("inside", KEEP, "'inside' is no convolution"),
    ]:
        with pytest.raises(ValueError, match=says):
            apply_masks_(model, {name: keep}, torch.zeros(2, 3, dtype=torch.long))


COMPUTED = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "older weight norm": lambda layer: nn.utils.weight_norm(layer),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.25),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_baked_and_cannot_be_held(name):
    torch.manual_seed(1)
    model = nn.Sequential(COMPUTED[name](nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 5, 5)
    before = model(x)
    with pytest.raises(ValueError, match="weight of '0' is computed anew at each call.*bake"):
        hold_masks(model, {"0": KEEP})
    apply_masks_(model, {"0": KEEP})
    assert isinstance(model[0].weight, nn.Parameter)
    for _ in range(2):  # no hook brings it back
        after = model(x)
        assert not after[:, ~KEEP].any()
        assert torch.allclose(after[:, KEEP], before[:, KEEP], atol=1e-6)
    hold_masks(model, {"0": KEEP})()


def test_a_norm_behind_a_permutation_follows():
    """ConvNeXt norms (B, H, W, C) with a LayerNorm."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.wide = nn.Conv2d(3, 4, 1), nn.LayerNorm(4), nn.LayerNorm(5)

        def forward(self, x):
            x = self.conv(x).permute(0, 2, 3, 1)
            return self.wide(self.norm(x).permute(0, 3, 1, 2))

    assert following_norms(Net()) == {"conv": ["norm"]}


def test_a_norm_behind_a_concatenation_belongs_to_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(torch.cat([self.a(x), self.b(x)], 1))

    assert following_norms(Net()) == {"a": [], "b": []}


class Branching(nn.Module):
    """torch.fx cannot read it, for a proxy has no number of dimensions to compare."""

    def __init__(self, kind, *sizes):
        super().__init__()
        self.layer, self.norm = kind(*sizes), nn.BatchNorm2d(4)

    def forward(self, x):
        if x.dim() != 4 or x.shape[1] != 3 or len(x) < 1:
            raise ValueError("give (B, 3, H, W)")
        return self.norm(self.layer(x))


def test_a_network_that_fx_cannot_read_is_run():
    assert following_norms(Branching(nn.Conv2d, 3, 4, 1)) == {"layer": ["norm"]}

    class Odd(Branching):
        """Takes images of one unusual size."""

        def forward(self, x):
            if tuple(x.shape[2:]) != (7, 5):
                raise ValueError("give 7 x 5")
            return super().forward(x)

    odd = Odd(nn.Conv2d, 3, 4, 1)
    assert following_norms(odd, torch.zeros(2, 3, 7, 5)) == {"layer": ["norm"]}
    with pytest.raises(ValueError, match="Odd is seen neither by torch.fx.*give an example"):
        following_norms(odd)
    apply_masks_(odd.eval(), {"layer": KEEP}, torch.zeros(2, 3, 7, 5))
    assert not odd.norm.bias[~KEEP].any()
    assert not odd(torch.randn(2, 3, 7, 5))[:, ~KEEP].any()

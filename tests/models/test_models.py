"""Networks in models/: parameter counts, names, shapes."""

import pytest
import torch

from models.resnet import resnet18, resnet50
from models.resnet_cifar import resnet20, resnet56
from models.toy import convnet, digits_resnet, mlp
from models.vgg import vgg16


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (lambda: resnet20(), 269_722),
        (lambda: resnet56(), 853_018),
        (lambda: resnet20(num_classes=100), 275_572),
        (lambda: resnet18(10, stem="cifar"), 11_173_962),
        (lambda: resnet50(10, stem="cifar"), 23_520_842),
        (lambda: vgg16(), 14_728_266),
        (lambda: resnet18(), 11_689_512),
        # torchvision's published figure for its ImageNet ResNet-50.
        (lambda: resnet50(), 25_557_032),
        (lambda: mlp(), 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10),
    ],
)
def test_parameter_counts(model, count):
    assert sum(p.numel() for p in model().parameters()) == count


def bn(name):
    entries = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{entry}" for entry in entries]


def torchvision_names(blocks, convolutions, first_stage_projects):
    """The state-dict names of torchvision's ResNets, written down from their documentation."""
    names = ["conv1.weight", *bn("bn1")]
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            here = f"layer{stage}.{block}"
            for c in range(1, convolutions + 1):
                names += [f"{here}.conv{c}.weight", *bn(f"{here}.bn{c}")]
            if block == 0 and (stage > 1 or first_stage_projects):
                names += [f"{here}.downsample.0.weight", *bn(f"{here}.downsample.1")]
    return [*names, "fc.weight", "fc.bias"]


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_resnet18_has_torchvisions_names(stem):
    expected = torchvision_names((2, 2, 2, 2), convolutions=2, first_stage_projects=False)
    assert len(expected) == 122
    assert list(resnet18(stem=stem).state_dict()) == expected


def test_resnet50_has_torchvisions_names():
    expected = torchvision_names((3, 4, 6, 3), convolutions=3, first_stage_projects=True)
    assert len(expected) == 320
    assert list(resnet50().state_dict()) == expected


def test_resnet50_has_torchvisions_shapes():
    state = resnet50().state_dict()
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer1.0.conv1.weight"].shape == (64, 64, 1, 1)
    assert state["layer1.0.conv3.weight"].shape == (256, 64, 1, 1)
    assert state["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)
    assert state["layer4.0.downsample.0.weight"].shape == (2048, 1024, 1, 1)
    assert state["fc.weight"].shape == (1000, 2048)


@pytest.mark.parametrize(
    ("model", "shape", "classes"),
    [
        (resnet20, (2, 3, 32, 32), 10),
        (lambda: resnet18(7), (2, 3, 64, 64), 7),
        (lambda: resnet18(7, stem="cifar"), (2, 3, 16, 16), 7),
        (vgg16, (2, 3, 32, 32), 10),
        (mlp, (2, 1, 8, 8), 10),
        (convnet, (2, 1, 8, 8), 10),
        (digits_resnet, (2, 1, 8, 8), 10),
    ],
)
def test_logits_have_one_row_a_sample(model, shape, classes):
    logits = model().eval()(torch.randn(shape))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()


def test_digits_resnet_has_seven_convolutions():
    convolutions = [m for m in digits_resnet().modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 7


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    shortcut = resnet20().layer2[0].shortcut
    x = torch.randn(2, 16, 32, 32)
    y = shortcut(x)
    assert y.shape == (2, 32, 16, 16)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().max() == 0 and y[:, 24:].abs().max() == 0


def test_strides_halve_where_torchvisions_do():
    model = resnet50(stem="imagenet").eval()
    assert model.layer3[0].conv1.stride == (1, 1)
    assert model.layer3[0].conv2.stride == (2, 2)


def test_unknown_stem_is_refused():
    with pytest.raises(ValueError, match="stem.*'tiny'"):
        resnet18(stem="tiny")

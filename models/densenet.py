"""DenseNet-BC; `densenet121` has torchvision's state-dict names, so its weights load.

Huang, Liu, van der Maaten, Weinberger, *Densely Connected Convolutional Networks* (CVPR 2017,
arXiv 1608.06993): every layer adds ``growth`` channels to those that it reads, through a 1x1 bottleneck
of 4 · ``growth`` channels; a transition between blocks halves channels and size.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .init import he_normal_


class DenseLayer(nn.Module):
    """(B, C, H, W) to (B, C + growth, H, W), the input's channels first."""

    def __init__(self, channels_in: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(narrow)))], dim=1)


class Transition(nn.Module):
    """(B, C, H, W) to (B, ⌊C/2⌋, ⌊H/2⌋, ⌊W/2⌋)."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels_in)
        self.conv = nn.Conv2d(channels_in, channels_in // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(torch.relu(self.norm(x))))


class DenseNet(nn.Module):
    """Stem of 2 · ``growth`` channels, dense blocks of so many layers, global average, linear.

    Input (B, in_channels, H, W), output (B, num_classes) logits. ``stem`` is as in `models.resnet`.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        growth: int,
        num_classes: int,
        in_channels: int = 3,
        stem: str = "cifar",
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f'stem must be "imagenet" or "cifar", not {stem!r}')
        channels = 2 * growth
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stem == "imagenet":
            layers["conv0"] = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
            layers["norm0"] = nn.BatchNorm2d(channels)
            layers["relu0"] = nn.ReLU()
            layers["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            layers["conv0"] = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for number, count in enumerate(blocks, start=1):
            if number > 1:
                layers[f"transition{number - 1}"] = Transition(channels)
                channels //= 2
            layers[f"denseblock{number}"] = _block(channels, growth, count)
            channels += count * growth
        layers[f"norm{len(blocks) + 1}"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(torch.relu(self.features(x)))
        return self.classifier(torch.flatten(x, 1))


def _block(channels_in: int, growth: int, count: int) -> nn.Sequential:
    layers = ((f"denselayer{i + 1}", channels_in + i * growth) for i in range(count))
    return nn.Sequential(
        OrderedDict((name, DenseLayer(channels, growth)) for name, channels in layers)
    )


def densenet121(num_classes: int = 1000) -> DenseNet:
    """DenseNet-121 for ImageNet.

    >>> sum(p.numel() for p in densenet121().parameters())
    7978856
    """
    return DenseNet((6, 12, 24, 16), 32, num_classes, stem="imagenet")


def densenet_bc100(num_classes: int = 10) -> DenseNet:
    """DenseNet-BC of 100 layers and growth 12 for 32x32 colour images; 0.8 M in the paper.

    >>> sum(p.numel() for p in densenet_bc100().parameters())
    769162
    """
    return DenseNet((16, 16, 16), 12, num_classes)


def densenet_digits(num_classes: int = 10, in_channels: int = 1) -> DenseNet:
    """DenseNet-BC for 8x8 grey images: three blocks of three layers, growth 8.

    Input (B, in_channels, 8, 8), output (B, num_classes) logits.

    >>> sum(p.numel() for p in densenet_digits().parameters())
    32318
    """
    return DenseNet((3, 3, 3), 8, num_classes, in_channels)

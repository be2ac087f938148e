"""Residual networks for small images: 6n+2 layers, parameter-free shortcuts.

He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition* (CVPR 2016), section 4.2,
shortcut option A: where the size halves, the shortcut takes every second pixel and pads the new
channels with zeros, so it has no parameters.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .init import he_normal_


class ZeroPadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, `extra` zero channels shared out on both sides.

    (B, C, H, W) to (B, C + extra, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.before = extra // 2
        self.after = extra - extra // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else ZeroPadShortcut(channels - channels_in, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """Stem, three stages of basic blocks (16, 32, 64 channels), global average, linear.

    Input (B, in_channels, H, W), output (B, num_classes) logits.
    """

    def __init__(self, blocks: Sequence[int], num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks[0], stride=1)
        self.layer2 = _stage(16, 32, blocks[1], stride=2)
        self.layer3 = _stage(32, 64, blocks[2], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    rest = [BasicBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20 for 32x32 colour images.

    >>> sum(p.numel() for p in resnet20().parameters())
    269722
    """
    return CifarResNet((3, 3, 3), num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56 for 32x32 colour images.

    >>> sum(p.numel() for p in resnet56().parameters())
    853018
    """
    return CifarResNet((9, 9, 9), num_classes)

"""MobileNetV2 with torchvision's state-dict names, so its weights load.

Sandler, Howard, Zhu, Zhmoginov, Chen, *MobileNetV2: Inverted Residuals and Linear Bottlenecks*
(CVPR 2018, arXiv 1801.04381), table 2. `stem="imagenet"` halves the image five times, as the paper does;
`stem="cifar"` leaves the first two halvings out, for images of 32 pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .init import he_normal_


class Stage(NamedTuple):
    """Row of the paper's table 2: ``blocks`` inverted residuals, the first with ``stride``."""

    expansion: int
    channels: int
    blocks: int
    stride: int


_STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
_SMALL = (Stage(1, 12, 1, 1), Stage(4, 20, 2, 2), Stage(4, 32, 2, 2))


class InvertedResidual(nn.Module):
    """1x1 to ``expansion`` times the channels, depthwise 3x3, linear 1x1 to ``channels``.

    The input is added where the shapes agree. With an expansion of 1 the first 1x1 is left out.
    """

    def __init__(self, channels_in: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        wide = [] if expansion == 1 else [_conv_bn_relu6(channels_in, hidden, 1)]
        self.conv = nn.Sequential(
            *wide,
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """3x3 convolution, stages of inverted residuals, 1x1 convolution, global average, linear.

    Input (B, in_channels, H, W), output (B, num_classes) logits. ``stride`` is that of the first
    convolution, ``head`` the channels of the last one.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        in_channels: int = 3,
        stem: int = 32,
        head: int = 1280,
        stride: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn_relu6(in_channels, stem, 3, stride)]
        width = stem
        for stage in stages:
            for block in range(stage.blocks):
                step = stage.stride if block == 0 else 1
                layers.append(InvertedResidual(width, stage.channels, stage.expansion, step))
                width = stage.channels
        self.features = nn.Sequential(*layers, _conv_bn_relu6(width, head, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def _conv_bn_relu6(
    channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
    )


def mobilenetv2(num_classes: int = 1000, stem: str = "imagenet") -> MobileNetV2:
    """MobileNetV2 of width 1; raises ValueError for an unknown stem.

    >>> sum(p.numel() for p in mobilenetv2().parameters())
    3504872
    """
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f'stem must be "imagenet" or "cifar", not {stem!r}')
    if stem == "imagenet":
        return MobileNetV2(_STAGES, num_classes)
    first, second, *rest = _STAGES
    stages = (first, second._replace(stride=1), *rest)
    return MobileNetV2(stages, num_classes, stride=1)


def mobilenetv2_small(num_classes: int = 10, in_channels: int = 1) -> MobileNetV2:
    """Five inverted residuals for 8x8 grey images: three stages of 12, 20 and 32 channels.

    Input (B, in_channels, 8, 8), output (B, num_classes) logits.

    >>> sum(p.numel() for p in mobilenetv2_small().parameters())
    26466
    """
    return MobileNetV2(_SMALL, num_classes, in_channels, stem=16, head=96, stride=1, dropout=0.0)

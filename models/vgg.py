"""VGG-16 for 32x32 images: thirteen 3x3 convolutions with BatchNorm, one linear layer.

Simonyan, Zisserman, *Very Deep Convolutional Networks* (ICLR 2015), configuration D. As usual on
CIFAR, the five poolings leave one pixel of 512 channels and a single linear layer reads it.
"""

import torch
from torch import Tensor, nn

from .init import he_normal_

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Input (B, 3, 32, 32), output (B, num_classes) logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for stage in _STAGES:
            for channels in stage:
                layers += [
                    nn.Conv2d(channels_in, channels, 3, padding=1),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                ]
                channels_in = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels_in, num_classes)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def vgg16(num_classes: int = 10) -> VGG:
    """VGG-16 for 32x32 colour images.

    >>> sum(p.numel() for p in vgg16().parameters())
    14728266
    """
    return VGG(num_classes)

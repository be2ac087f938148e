"""Networks small enough to read and to train in seconds: 8x8 grey digits by default."""

from collections.abc import Sequence

from torch import nn

from .resnet_cifar import CifarResNet


def mlp(
    in_features: int = 64, hidden: Sequence[int] = (64, 32), num_classes: int = 10
) -> nn.Sequential:
    """Linear layers with ReLU between; (B, …) with `in_features` values to (B, num_classes).

    >>> mlp(4, hidden=[3], num_classes=2)
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=4, out_features=3, bias=True)
      (2): ReLU()
      (3): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    widths = [in_features, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width in zip(widths, hidden, strict=False):
        layers += [nn.Linear(width_in, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def convnet(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    """Two convolutions and two linear layers for 8x8 images, with channels read as features.

    Input (B, in_channels, 8, 8), output (B, num_classes) logits.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 2 * 2, 32),
        nn.ReLU(),
        nn.Linear(32, num_classes),
    )


def digits_resnet(num_classes: int = 10, in_channels: int = 1) -> CifarResNet:
    """Residual network of seven convolutions for 8x8 grey images: one block in each stage.

    Input (B, in_channels, 8, 8), output (B, num_classes) logits.
    """
    return CifarResNet((1, 1, 1), num_classes, in_channels)

"""Networks of the zoo that no library has ready: a U-Net, a pyramid, detectors without their boxes.

A detector ends in anchors, sorting and suppression of boxes, in which there is nothing to prune and
whose number of outputs depends on the numbers. So its body and heads are taken, as one module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone


class FeaturePyramid(nn.Module):
    """ResNet-18 with torchvision's feature pyramid; gives a dict of five maps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = resnet_fpn_backbone(
            backbone_name="resnet18",
            weights=None,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=5,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, 3, H, W)."""
        return self.body(images)


class SsdliteBody(nn.Module):
    """Backbone and heads of SSDlite: scores and offsets of all anchors."""

    def __init__(self) -> None:
        super().__init__()
        model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        self.backbone, self.head = model.backbone, model.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, 3, H, W)."""
        return self.head(list(self.backbone(images).values()))


class RetinaBody(nn.Module):
    """Backbone and heads of RetinaNet, whose heads read all five levels of the pyramid."""

    def __init__(self) -> None:
        super().__init__()
        model = detection.retinanet_resnet50_fpn_v2(
            weights=None, weights_backbone=None, trainable_backbone_layers=5
        )
        self.backbone, self.head = model.backbone, model.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images: (B, 3, H, W)."""
        return self.head(list(self.backbone(images).values()))


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Four levels down and up; a transposed convolution, then concatenation with the way down."""

    def __init__(self, classes: int = 5, width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in widths[-2::-1])
        self.up = nn.ModuleList(_twice(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W), sides divisible by 8."""
        x, skips = images, []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        for grow, block, skip in zip(self.grow, self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, grow(x)], dim=1))
        return self.head(x)

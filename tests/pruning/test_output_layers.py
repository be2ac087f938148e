"""Which layers write the outputs, in networks that are no chain."""

from typing import Any

import torch
from torch import Tensor, nn

from models.resnet_cifar import resnet20
from spr_or.pruning.output_layers import output_layers


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.residual = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.classes = nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        x = self.stem(x)
        x = x + self.norm(self.residual(x).relu_())
        return {"map": [scale * x.sigmoid()], "logits": self.classes(x.mean((2, 3))).softmax(1)}


def test_all_that_reaches_an_output_without_another_layer_between() -> None:
    net = TwoHeads().train()
    x = torch.zeros(2, 3, 4, 4)
    assert output_layers(net, x) == {"stem", "residual", "classes"}
    assert output_layers(net, {"x": x, "scale": 2.0}) == {"stem", "residual", "classes"}
    assert output_layers(net, (x, 2.0)) == {"stem", "residual", "classes"}
    assert net.training and net.norm.num_batches_tracked == 0 and not net.stem._forward_hooks


def test_a_classifier_is_the_only_one_of_a_resnet() -> None:
    assert output_layers(resnet20(), torch.zeros(1, 3, 8, 8)) == {"fc"}

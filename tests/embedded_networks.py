"""Networks of every kind that becomes constraints, random ones included, and what torch computes in them."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """A stream with an addition, written with modules so that hooks see each activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(x + self.norm(self.conv2(self.relu1(self.conv1(x)))))


class Functional(nn.Module):
    """What is written with functions: padding, a cut, concatenation, pooling, a scaled addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(F.pad(x, (1, 1, 1, 1))))
        h = torch.cat([h[:, :1], 2 * h[:, 1:] - 0.5], 1)
        h = F.max_pool2d(F.avg_pool2d(h, 2, ceil_mode=True), 2, padding=1)
        return self.fc(F.dropout(h.mean((2, 3)), 0.3, self.training))


def shaken(net: nn.Module) -> nn.Module:
    """Norms as after training: statistics, scales and shifts that are neither 0 nor 1."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.1, 3.0)
    return net.eval()


def random_network(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A small random network, and the shape of its input."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    layers: list[nn.Module] = []
    if draw.random() < 0.5:
        width = draw.randint(2, 12)
        shape: tuple[int, ...] = (width,)
    else:
        channels, side = draw.randint(1, 3), draw.randint(3, 6)
        shape = (draw.randint(1, 2), side, side)
        layers = [nn.Conv2d(shape[0], channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        if draw.random() < 0.5:
            layers.append(Residual(channels))
        layers.append(draw.choice([nn.MaxPool2d, nn.AvgPool2d])(2, 1, draw.choice([0, 1])))
        layers.append(nn.Flatten())
        with torch.no_grad():
            width = nn.Sequential(*layers).eval()(torch.zeros(1, *shape)).shape[1]
    for _ in range(draw.randint(1, 3)):
        wider = draw.randint(1, 10)
        layers.append(nn.Linear(width, wider, bias=draw.random() < 0.8))
        if draw.random() < 0.3:
            layers.append(nn.BatchNorm1d(wider))
        layers.append(nn.ReLU())
        width = wider
    layers.append(nn.Linear(width, draw.randint(1, 3)))
    net = shaken(nn.Sequential(*layers))
    scale = 10 ** draw.uniform(-2, 3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale if draw.random() < 0.2 else 1.0)
    return net, shape


def activations(net: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Inputs and outputs of each ReLU and MaxPool2d in order, (B, …) flattened, and the network's."""
    before: list[Tensor] = []
    after: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Tensor], made: Tensor) -> None:
        before.append(given[0].flatten(1))
        after.append(made.flatten(1))

    hooks = [
        m.register_forward_hook(note)
        for m in net.modules()
        if isinstance(m, nn.ReLU | nn.MaxPool2d)
    ]
    with torch.no_grad():
        outputs = net(x)
    for hook in hooks:
        hook.remove()
    return before, after, outputs

"""How much of the largest lambda empties half of the entities, for several networks on digits.

Prints a table: each network is trained densely, then with ProxSGD at lambdas found by bisection on a
log scale, until the one at which half of the entities are zero at the end of the phase is known to a
factor of 1.5. Ten minutes on one core: ``python experiments/research/largest_lambda.py``.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.mobilenet import mobilenetv2_small
from models.toy import digits_resnet, mlp
from spr_or import SPR, ProxSGD
from spr_or.pruning.largest_lam import BATCHES, Pulls
from spr_or.training.data.load import Data, load_data
from spr_or.training.recipe import DataRecipe

MOMENTUM, EPOCHS = 0.9, 10


def plain() -> nn.Sequential:
    """Three convolutions, each with a BatchNorm."""
    layers: list[nn.Module] = []
    for number, (width_in, width) in enumerate(((1, 8), (8, 16), (16, 32))):
        layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if number == 1 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def without_norm() -> nn.Sequential:
    """Two convolutions and two linear layers, no BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


class Network(NamedTuple):
    """What is trained, what its entities are, and the learning rate of its dense training."""

    build: Callable[[], nn.Module]
    entities: Any
    lr: float


NETWORKS = {
    "three convolutions, BatchNorm": Network(plain, "filters", 0.1),
    "digits ResNet": Network(digits_resnet, "filters", 0.1),
    "digits MobileNetV2": Network(mobilenetv2_small, "filters", 0.1),
    "MLP": Network(mlp, "neurons", 0.05),
    "convolutions, no norm": Network(without_norm, ["filters", "neurons"], 0.05),
}
SETTINGS = ((0.1, 0.1), (0.02, 0.1), (0.05, 0.5))  # learning rate and alpha


def cosine(epoch: int, epochs: int) -> float:
    """Share of the learning rate in an epoch."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def epochs_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, epochs: int, of: int, data: Data
) -> None:
    """Train ``epochs`` of a schedule of ``of`` epochs."""
    model.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(epoch, of)
        for images, labels in data.train(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()


def batches(data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """Those whose gradients are looked at."""
    yield from islice(data.train(1000), BATCHES)


def largest(model: nn.Module, spr: SPR, lr: float, data: Data) -> float:
    """lambda_max of the phase."""
    trial = copy.deepcopy(model.state_dict())
    pulls = Pulls(spr)
    model.train()
    for images, labels in batches(data):
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        pulls.add()
    model.load_state_dict(trial)
    steps = data.train_rows // 64
    total = sum(steps * lr * cosine(e, 2 * EPOCHS) / (1 - MOMENTUM) for e in range(EPOCHS))
    return pulls.largest_lam(lr / (1 - MOMENTUM), total)


def zero_share(
    dense: nn.Module, network: Network, lam: float, lr: float, alpha: float, data: Data
) -> float:
    """Share of the entities that are zero after the phase."""
    model = copy.deepcopy(dense)
    spr = regularizer(model, network, alpha, lam)
    optimizer = ProxSGD(model, spr, lr=lr, momentum=MOMENTUM, weight_decay=5e-4)
    epochs_of(model, optimizer, lr, EPOCHS, 2 * EPOCHS, data)
    return float(torch.cat([v.peak == 0 for v in spr.entity_values().values()]).double().mean())


def regularizer(model: nn.Module, network: Network, alpha: float, lam: float) -> SPR:
    """SPR with the bounds of ``model``."""
    words = {"entities": network.entities, "example": torch.zeros(2, 1, 8, 8)}
    return SPR(model, lam, alpha, SPR.bounds_from(model, **words), **words)


def half(share: Callable[[float], float], first: float) -> float:
    """The lambda at which ``share`` crosses one half, to a factor of 1.5."""
    low, high = 0.0, math.inf
    lam = first
    while high > 1.5 * low:
        low, high = (low, lam) if share(lam) >= 0.5 else (lam, high)
        lam = lam / 4 if not low else lam * 4 if math.isinf(high) else math.sqrt(low * high)
    return math.sqrt(low * high)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    data = load_data(DataRecipe(batch_size=64), torch.device("cpu"))
    print("| network | rate | α | λ for half | largest λ | share of it |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for name, network in NETWORKS.items():
        torch.manual_seed(0)
        dense = network.build()
        optimizer = torch.optim.SGD(
            dense.parameters(), lr=network.lr, momentum=MOMENTUM, weight_decay=5e-4
        )
        epochs_of(dense, optimizer, network.lr, 20, 20, data)
        for lr, alpha in SETTINGS:
            top = largest(dense, regularizer(dense, network, alpha, 0.0), lr, data)

            def share(lam: float, lr: float = lr, alpha: float = alpha) -> float:
                return zero_share(dense, network, lam, lr, alpha, data)  # noqa: B023

            lam = half(share, 0.4 * top)
            print(
                f"| {name} | {lr:g} | {alpha:g} | {lam:.3g} | {top:.3g} | {lam / top:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""The share that leaves with masks, against the networks that compaction builds."""

from typing import Any

import pytest
import torch
from torch import nn

from models.resnet_cifar import resnet20
from models.toy import convnet, digits_resnet, mlp
from spr_or.pruning.compaction.api import compact
from spr_or.pruning.counts import count_macs
from spr_or.pruning.masks import filter_rows
from spr_or.pruning.removed_share import Counter


def decoder() -> nn.Module:
    """Transposed convolutions, which count by their inputs, one of them grouped."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(6, 6, 3, stride=2, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1),
    )  # fmt: skip


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "share", [0.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.3, 0.95)), 0.7]
)
@pytest.mark.parametrize(
    ("build", "kinds", "shape"),
    [
        (digits_resnet, nn.Conv2d, (2, 1, 8, 8)),
        (convnet, (nn.Conv2d, nn.Linear), (2, 1, 8, 8)),
        (mlp, nn.Linear, (2, 64)),
        (decoder, (nn.Conv2d, nn.ConvTranspose2d), (2, 1, 5, 5)),
        pytest.param(resnet20, nn.Conv2d, (2, 3, 32, 32), marks=pytest.mark.slow),
    ],
    ids=["resnet", "convnet", "mlp", "decoder", "resnet20"],
)
def test_the_count_is_what_compaction_removes(
    build: Any, kinds: Any, shape: tuple[int, ...], share: float
) -> None:
    torch.manual_seed(int(10 * share))
    model, example = build(), torch.randn(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    if kinds != nn.Conv2d:
        layers.popitem()  # the answer
    masks = {n: torch.rand(len(filter_rows(layer))) >= share for n, layer in layers.items()}
    counter, operations = Counter(model, example), Counter(model, example, of="macs")

    def removed() -> float:
        return 100 * (1 - size(compact(model, masks, example)) / size(model))

    # Where a layer has nothing left, the signs of shifts decide whether a constant is carried on.
    assert counter(masks) == pytest.approx(removed(), abs=0.5)
    for keep in masks.values():
        keep[0] = True
    assert counter(masks) == pytest.approx(removed(), abs=1e-9)
    macs = [count_macs(m, shape) for m in (model, compact(model, masks, example))]
    assert operations(masks) == pytest.approx(100 * (1 - macs[1] / macs[0]), abs=1e-9)
    assert counter.sizes(masks).operations * shape[0] == macs[1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert Counter(model, example)(masks) == counter(masks)  # the weights do not matter

"""Small networks with entities, random masks and images, for what is done with gates."""

from typing import Any

import torch
from torch import Tensor, nn

from models.toy import convnet, digits_resnet, mlp
from spr_or.pruning.budget import Masks
from spr_or.pruning.chosen_entities import chosen_entities

EXAMPLE = torch.zeros(2, 1, 8, 8)
CASES: list[tuple[Any, Any]] = [
    (mlp, "neurons"), (convnet, ["filters", "neurons"]),
    (digits_resnet, "filters"), (digits_resnet, "channels"),
]  # fmt: skip


def network(make: Any, entities: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean = torch.randn(module.num_features) * 0.1
    return model, chosen_entities(model, EXAMPLE, entities).of(model)


def images(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(rows, 1, 8, 8, generator=generator)
    return pictures, torch.randint(10, (rows,), generator=generator)


def random_masks(layers: Any) -> Masks:
    generator = torch.Generator().manual_seed(1)
    return {n.name: torch.rand(n.count, generator=generator) < 0.6 for n in layers}

r"""Taylor: entities whose removal changes the loss least go.

.. math:: s_i = \frac1T \sum_{t=1}^T \Bigl(\sum_{j \in E_i} g_{ij}(t)\, w_{ij}\Bigr)^2

with g(t) the gradient of the loss of batch t: the square of what the loss changes, to first order, when
the entity's weights become zero. Scores are compared over the whole network (Molchanov, Mallya,
Tyree, Frosio, Kautz, CVPR 2019).

The gradients are those of evaluation mode. With the statistics of the batch a filter in front of a
BatchNorm has Σ g w = 0, whatever it does, for its scale changes nothing. The paper removes some
entities after every few batches of fine-tuning; here all go at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spr_or.methods.common.entity_sums import entity_sums
from spr_or.methods.common.first_images import Batch, first_images
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask
from spr_or.utils.evaluating import evaluating


class Keys(MethodKeys):
    """Keys of ``[method]``."""

    images: int = Field(2000, ge=1)  # training images whose gradients are taken, batch by batch


def squared_changes(
    model: nn.Module, layers: tuple[LayerEntities, ...], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """The mean of (Σ g w)² over the batches for each entity, {layer name: (N,)}, float64.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten())
    >>> batch = torch.ones(2, 1, 2, 2), torch.tensor([0, 2])
    >>> squared_changes(net, layer_entities(net), [batch])["0"].shape
    torch.Size([3])
    """
    parameters = list({id(p): p for layer in layers for p in layer.parameters}.values())
    trained = [p for p in parameters if p.requires_grad]
    totals: dict[str, Tensor] = {}
    count = 0
    with evaluating(model), torch.enable_grad():
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            with torch.no_grad():
                changes = {id(p): torch.zeros_like(p) for p in parameters}
                for p, gradient in zip(trained, gradients, strict=True):
                    if gradient is not None:
                        changes[id(p)] = gradient * p
                for layer in layers:
                    change = entity_sums(layer, changes).double().square()
                    totals[layer.name] = totals.get(layer.name, 0) + change
            count += 1
    return {name: total / count for name, total in totals.items()}


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Score by `squared_changes` over ``keys.images`` images; nothing is trained."""

    def scores() -> dict[str, Tensor]:
        batches = first_images(task.batches(task.seed), keys.images)
        return squared_changes(task.model, task.layers, batches)

    return PruningPlan(scores=scores)


METHOD = Method(
    title="Taylor",
    kind="score",
    paper="Molchanov, Mallya, Tyree, Frosio, Kautz, CVPR 2019, arXiv:1906.10771",
    plan=plan,
    keys=Keys,
    differs="all entities go at once, not a few after every few batches of fine-tuning",
)

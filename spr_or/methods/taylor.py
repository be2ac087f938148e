r"""Taylor: entities whose removal changes the loss least go.

.. math:: s_i = \frac1T \sum_{t=1}^T \Bigl(\frac{\partial L_t}{\partial z_i}\Bigr)^2, \qquad
          \frac{\partial L}{\partial z_i}
          = \sum_{n} \Bigl( \frac{\partial L}{\partial \gamma_{ni}} \gamma_{ni}
          + \frac{\partial L}{\partial \beta_{ni}} \beta_{ni} \Bigr)

with z_i = 1 a gate on the channels of entity i, L_t the loss of batch t and n the norms behind the
entity: the square of what the loss changes, to first order, when the gate closes. A removal silences
the norm's scale and shift too, so it is the gate behind the norm that closes. Where no norm with a scale
follows, the weights and the bias of the layer take the place of γ and β. A group has such a term for
each layer that writes its channels, a branch for the one where it ends. Entities that have no such gate
(input channels, heads, positions) have the sum of g w over all their own weights. Scores are compared
over the whole network (Molchanov, Mallya, Tyree, Frosio, Kautz, CVPR 2019).

The gradients are those of evaluation mode, for in that mode the pruned network is used. (In training
mode g w of a layer in front of a BatchNorm is zero; the gate behind it is not.) The paper removes some
entities after every few batches of fine-tuning; here all go at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spr_or.methods.common.entity_sums import entity_sums
from spr_or.methods.common.first_images import Batch, first_images
from spr_or.methods.common.gates import Place, gate_places
from spr_or.pruning.following_norms import NORMS, following_norms
from spr_or.pruning.groups import output_dim
from spr_or.pruning.layer_entities import LayerEntities, PositionEntities, SliceEntities
from spr_or.pruning.unwrap import unwrap
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask
from spr_or.utils.evaluating import evaluating


class Keys(MethodKeys):
    """Keys of ``[method]``."""

    images: int = Field(2000, ge=1)  # training images whose gradients are taken, batch by batch


def squared_changes(
    model: nn.Module,
    layers: Sequence[LayerEntities],
    batches: Iterable[Batch],
    example: Any = None,
) -> dict[str, Tensor]:
    """The mean of (∂L/∂z)² over the batches for each entity, {layer name: (N,)}, float64.

    ``example`` and errors as for `following_norms`.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten())
    >>> batch = torch.ones(2, 1, 2, 2), torch.tensor([0, 2])
    >>> squared_changes(net, layer_entities(net), [batch])["0"].shape
    torch.Size([3])
    """
    norms = following_norms(unwrap(model), example)
    places = [_places(unwrap(model), layer, norms) for layer in layers]
    parameters = _distinct(layers, places)
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
                for layer, found in zip(layers, places, strict=True):
                    change = _change(layer, found, changes).double().square()
                    totals[layer.name] = totals.get(layer.name, 0) + change
            count += 1
    return {name: total / count for name, total in totals.items()}


def _places(model: nn.Module, layer: LayerEntities, norms: dict[str, list[str]]) -> list[Place]:
    """The modules whose scales or weights stand for the gate; none: the entity's own weights do."""
    if isinstance(layer, PositionEntities):
        return []
    if isinstance(layer, SliceEntities):
        if layer.dim != output_dim(model.get_submodule(layer.name)):
            return []
    elif layer.kind == "heads":  # queries and keys are no outputs that vanish with the head
        return []
    places = gate_places(model, layer, norms)
    scaled = [p for p in places if getattr(p.module, "weight", None) is not None]
    return scaled if len(scaled) == len(places) else []


def _distinct(
    layers: Sequence[LayerEntities], places: Sequence[Sequence[Place]]
) -> list[nn.Parameter]:
    own = [p for layer in layers for p in layer.parameters]
    gated = [p for found in places for place in found for p in place.module.parameters(False)]
    return list({id(p): p for p in (*own, *gated)}.values())


def _change(layer: LayerEntities, places: Sequence[Place], changes: dict[int, Tensor]) -> Tensor:
    """∂L/∂z of each entity, (N,), from g w of each parameter."""
    if not places:
        return entity_sums(layer, changes)
    return torch.stack([_at(place, changes, layer.count) for place in places]).sum(0)


def _at(place: Place, changes: dict[int, Tensor], count: int) -> Tensor:
    module = place.module
    weight = changes[id(module.weight)]
    dim = 0 if isinstance(module, NORMS) else output_dim(module)
    channels = weight.movedim(dim, 0).flatten(1).sum(1) if weight.dim() > 1 else weight
    if getattr(module, "bias", None) is not None:
        channels = channels + changes[id(module.bias)]
    if place.entity is None:
        return channels
    return channels.new_zeros(count + 1).index_add(0, place.entity, channels)[:count]


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Score by `squared_changes` over ``keys.images`` images; nothing is trained."""

    def scores() -> dict[str, Tensor]:
        batches = first_images(task.batches(task.seed), keys.images)
        return squared_changes(task.model, task.layers, batches, task.example)

    return PruningPlan(scores=scores)


METHOD = Method(
    title="Taylor",
    kind="score",
    paper="Molchanov, Mallya, Tyree, Frosio, Kautz, CVPR 2019, arXiv:1906.10771",
    plan=plan,
    keys=Keys,
    differs="all entities go at once, not a few after every few batches of fine-tuning",
)

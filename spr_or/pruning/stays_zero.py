r"""Which zero entities stay zero: the optimality condition of zero on the mean gradient of the loss.

With g the gradient of the loss, averaged over batches, zero is a minimiser for entity i, all others
held, if and only if

.. math::  -g^i \in \lambda u_i\, \partial z(0) \iff z^*(-g^i / (\lambda u_i)) = 0
           \iff \operatorname{prox}_{\lambda u_i z}(-g^i) = 0

with z* from `projected.conjugate`. The last form is used, for it takes a bound for each weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from spr_or.formulations import projected
from spr_or.pruning.chosen_entities import ChosenEntities
from spr_or.pruning.gradient_passes import rows_of
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.narrowing import by_layer
from spr_or.pruning.per_entity import crossed
from spr_or.pruning.regularizer import SPR

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def stays_zero(
    model: nn.Module,
    spr: SPR,
    chosen: ChosenEntities,
    masks: Mapping[str, Tensor],
    batches: Batches,
    loss: Loss,
) -> dict[str, Tensor]:
    """True for the entities that ``masks`` (False = zero) calls zero, and for which zero is optimal.

    The gradient is the mean over ``batches`` of (images, labels), in training mode, of a copy of the
    model in which these entities are exactly zero; the model is not changed. ``chosen`` gives the
    entities of the model, as it did for ``spr``. Returns bool (N,) for each layer.
    """
    twin = copy.deepcopy(model).train()
    with torch.no_grad():
        for layer in chosen.of(twin):
            zero_(layer, ~masks[layer.name])
    for parameter in twin.parameters():
        parameter.grad = None
    count = 0
    for images, labels in batches:
        loss(twin(images), labels).backward()  # gradients add up
        count += 1
    with torch.no_grad():
        for parameter in twin.parameters():
            gradient = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient / count)
    optimal = zero_is_optimal(spr, chosen.of(twin))
    return {name: found & ~masks[name].to(found.device) for name, found in optimal.items()}


@torch.no_grad()
def zero_is_optimal(spr: SPR, gradients: Sequence[LayerEntities]) -> dict[str, Tensor]:
    """The condition above for every entity: ``gradients`` are layers whose weights are gradients.

    bool (N,) for each layer of ``spr``. Entities without a price never fulfil it.
    """
    of_name = {layer.name: layer for layer in gradients}
    prices = {layer.name: rows for layer, rows in by_layer(spr, spr.importance)}
    found = {}
    for layer, bound in by_layer(spr, spr.bound):
        gradient = of_name[layer.name]
        rows = rows_of(gradient.gather())
        price = (spr.lam * prices[layer.name]).to(rows)
        if crossed(layer) > 1:
            assert isinstance(gradient, GroupEntities)
            limits = gradient.bounds_of_weights(bound.to(rows))
        else:
            limits = bound.to(rows)
        paid = price > 0
        step = torch.where(paid, price, torch.ones_like(price))
        points = projected.prox(-rows, step, spr.alpha, limits)
        found[layer.name] = paid & (points == 0).all(-1)
    return found


def zero_(layer: LayerEntities, gone: Tensor) -> None:
    """Make entities of a layer zero in place; ``gone`` is bool (N,)."""
    if isinstance(layer, GroupEntities):
        rows = layer.gather().weights
        rows[gone.to(rows.device)] = 0
        layer.write_({id(p): p.detach() for p in layer.parameters}, rows)
        return
    weight, *extra = layer.parameters
    index = gone.nonzero().flatten().to(weight.device)
    weight.detach().index_fill_(layer.entity_dim, index, 0)
    for parameter in extra:
        parameter.detach().index_fill_(0, index, 0)

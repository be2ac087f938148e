"""Entities written in place: their weights, or what is added to their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spr_or.pruning.budget import Masks
from spr_or.pruning.gradient_passes import Parts, column, others_of, rows_of, with_extra
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.layer_entities import LayerEntities, SliceEntities


@torch.no_grad()
def entity_norms(layer: LayerEntities) -> Tensor:
    """||w_i||_2 of each entity, (N,).

    >>> net = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[2.0, 1.0]])), net[0].bias.fill_(2.0)
    >>> float(entity_norms(SliceEntities("0", (net[0].weight, net[0].bias), 0)))
    3.0
    """
    x, dim, extra = layer.gather()
    norm = torch.linalg.vector_norm(x, 2, others_of(x, dim))
    return with_extra(norm, norm, extra)[0]


def not_zero(layers: Sequence[LayerEntities]) -> Masks:
    """Masks {layer name: (N,)} on the CPU of the entities that have a weight other than zero.

    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[0.0], [-1.0]]))
    >>> not_zero([SliceEntities("0", (net[0].weight,), 0)])
    {'0': tensor([False,  True])}
    """
    return {layer.name: (entity_norms(layer) > 0).cpu() for layer in layers}


@torch.no_grad()
def scale_(layer: LayerEntities, factor: Tensor) -> None:
    """Multiply the weights of entity i by ``factor[i]``, (N,).

    >>> weight = nn.Parameter(torch.ones(2, 3))
    >>> scale_(SliceEntities("0", (weight,), 0), torch.tensor([0.0, 0.5]))
    >>> weight.tolist()
    [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    """
    if isinstance(layer, SliceEntities):  # where they lie, without a copy
        weight, *extra = layer.parameters
        weight.mul_(factor.to(weight.dtype).view(column(weight, layer.dim)))
        for parameter in extra:
            parameter.mul_(factor.to(parameter.dtype))
        return
    rows = rows_of(layer.gather())
    write_(layer, rows * factor.to(rows.dtype).unsqueeze(1))


@torch.no_grad()
def write_(layer: LayerEntities, rows: Tensor) -> None:
    """Set the weights of all entities to rows (N, k), as `spr_or.methods.common.entity_rows` reads them."""
    if isinstance(layer, GroupEntities):
        layer.write_({id(p): p.data for p in layer.parameters}, rows)
        return
    for parameter, tensor in _tensors(layer, rows, others_stay=True):
        parameter.copy_(tensor)


@torch.no_grad()
def add_to_gradients_(layer: LayerEntities, rows: Tensor) -> None:
    """Add rows (N, k) to the gradients of the entities' weights; what has no gradient is left out."""
    if isinstance(layer, GroupEntities):
        added = {id(p): torch.zeros_like(p) for p in layer.parameters}
        layer.write_(added, rows)
        pairs = [(p, added[id(p)]) for p in layer.parameters]
    else:
        pairs = _tensors(layer, rows, others_stay=False)
    for parameter, tensor in pairs:
        if parameter.grad is not None:
            parameter.grad.add_(tensor)


@torch.no_grad()
def gradient_rows(layer: LayerEntities) -> Tensor:
    """The gradients of the entities' weights as rows (N, k); zero where there are none."""
    kept = [p.data for p in layer.parameters]
    try:
        for p in layer.parameters:
            p.data = torch.zeros_like(p) if p.grad is None else p.grad.to(p.dtype)
        return rows_of(layer.gather()).clone()
    finally:
        for p, data in zip(layer.parameters, kept, strict=True):
            p.data = data


def _tensors(
    layer: LayerEntities, rows: Tensor, others_stay: bool
) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter of the layer with what the rows say of it."""
    assert not isinstance(layer, GroupEntities)
    x, dim, extra = layer.gather()
    shape = x.movedim(dim, 0).shape
    width = shape[1:].numel()
    weights = rows[:, :width].reshape(shape).movedim(0, dim)
    parts = Parts(weights, None if extra is None else rows[:, width:])
    tensors = layer.scatter(parts, others_stay)
    return [(p, t) for p, t in zip(layer.parameters, tensors, strict=True) if t is not None]

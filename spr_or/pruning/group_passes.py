r"""The passes of `spr_or.pruning.gradient_passes` for entities that lie in several parameters.

Every batch is reduced to one norm and one peak for each piece (slice of a parameter), and these are
gathered into entities. Each weight has the bound M of its layer: where they differ, the indicator's
bound ||w||_inf / M is max_j |w_j| / M_j, its slope is divided by the M of the weight that attains
it, and one formula serves both:

.. math::  |w_j| \le M_j\, y \;\text{for all } j \iff \max_j |w_j| / M_j \le y .

As there, nothing is read back from the device, so a step can be compiled and captured;
`add_gradients_on_cpu_` is for a CPU, where a look at a number is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.pruning.gradient_passes import (
    Batch,
    Slopes,
    column,
    norms_and_peaks,
    of_batches,
    others_of,
    penalties_and_slopes_of,
)
from spr_or.pruning.group_entities import Pieces


class EntityNorms(NamedTuple):
    """||w||_2, the weight that is largest against its bound, and that bound; (N,) each."""

    norm: Tensor
    peak: Tensor
    bound: Tensor


def entity_norms(batches: Sequence[Batch], pieces: Pieces, bound: Tensor) -> EntityNorms:
    """The norms of every entity; ``bound`` holds M for each entity and each layer that it crosses.

    >>> pieces = Pieces((torch.tensor([[0, 1]]),), torch.tensor([0, 0]), torch.tensor([0, 1]))
    >>> batches = [Batch(torch.tensor([[3.0, 1.0]]), 0), Batch(torch.tensor([[-1.0]]), 0)]
    >>> [x.tolist() for x in entity_norms(batches, pieces, torch.tensor([9.0, 2.0]))]
    [[3.316624879837036], [1.0], [2.0]]
    """
    norm, peak = norms_and_peaks(batches)
    return _combined(norm, peak, bound.to(norm)[pieces.bound], pieces)


def penalties_and_slopes(
    batches: Sequence[Batch],
    pieces: Pieces,
    lam: Tensor,
    importance: Tensor,
    bound: Tensor,
    alpha: float,
    variant: str,
) -> tuple[Tensor, Slopes]:
    """lambda u_i z(w^i) of every entity, (N,), and the slopes of every piece, (P,).

    A piece's ``peak`` is the magnitude at which its weights have the slope, and -1, which no weight
    has, where none does.
    """
    norm, peak = norms_and_peaks(batches)
    bounds = bound.to(norm)[pieces.bound]
    entity = _combined(norm, peak, bounds, pieces)
    values, slopes = penalties_and_slopes_of(
        entity.norm, entity.peak, lam, importance, entity.bound, alpha, variant
    )
    largest = of_pieces(entity.peak / entity.bound, pieces, torch.inf)
    attained = peak / bounds >= largest
    # The slope is d / (M |w_j|), and entities have it for the M and |w_j| of one of their pieces.
    other = (of_pieces(entity.bound, pieces, 1.0) / bounds).square()
    slope = torch.where(attained, of_pieces(slopes.slope, pieces, 0.0) * other, 0.0)
    sought = torch.where(slope != 0, peak, -1.0)
    return values, Slopes(of_pieces(slopes.radial, pieces, 0.0), slope, sought)


def gradients(batches: Sequence[Batch], pieces: Pieces, slopes: Slopes) -> list[Tensor]:
    """The gradient of the penalty with respect to every batch; ``slopes`` as above."""
    parts = of_batches(batches, slopes)
    ties = [
        _attains(batch, part).sum(others_of(batch.weights, batch.dim))
        for batch, part in zip(batches, parts, strict=True)
    ]
    shared = of_batches(batches, _shared(slopes, torch.cat(ties), pieces))
    found = []
    for batch, part in zip(batches, shared, strict=True):
        shape = column(batch.weights, batch.dim)
        factor = _attains(batch, part).mul_(part.slope.view(shape))
        found.append(factor.add_(part.radial.view(shape)).mul_(batch.weights))
    return found


def add_gradients_on_cpu_(
    targets: Sequence[Tensor | None], batches: Sequence[Batch], pieces: Pieces, slopes: Slopes
) -> None:
    """Add the gradient of every batch to its target, of its shape; None where there is none.

    Only slices that hold a weight with a slope of its own are searched for it.
    """
    parts = of_batches(batches, slopes)
    found: list[tuple[Tensor, Tensor | None, Tensor]] = []
    for batch, part in zip(batches, parts, strict=True):
        x, dim = batch.weights, batch.dim
        index = part.slope.nonzero().squeeze(1)
        if len(index) == 0:
            found.append((index, None, torch.zeros_like(part.slope)))
            continue
        top = x.index_select(dim, index)
        peak = part.peak.index_select(0, index).view(column(x, dim))
        attains = top.abs().eq_(peak)
        ties = torch.zeros_like(part.slope)
        ties.index_copy_(0, index, attains.sum(others_of(x, dim)))
        found.append((index, top.mul_(attains), ties))
    ties = torch.cat([ties for _, _, ties in found])
    shared = of_batches(batches, _shared(slopes, ties, pieces))
    for target, batch, part, (index, tops, _) in zip(targets, batches, shared, found, strict=True):
        if target is None:
            continue
        x, dim = batch.weights, batch.dim
        shape = column(x, dim)
        same = target.dtype == x.dtype
        total = target if same else torch.zeros_like(x)
        total.addcmul_(x, part.radial.view(shape))
        if tops is not None:
            slope = part.slope.index_select(0, index).view(shape)
            total.index_add_(dim, index, tops.mul_(slope))
        if not same:
            target.add_(total)


def _combined(norm: Tensor, peak: Tensor, bounds: Tensor, pieces: Pieces) -> EntityNorms:
    """Entities from pieces, (P,) each."""
    ratio = peak / bounds
    norms, best = [], []
    for index in pieces.of_entities:
        if index.shape[1] == 1:
            norms.append(norm[index[:, 0]])
            best.append(index[:, 0])
        else:
            norms.append(torch.linalg.vector_norm(norm[index], 2, 1))
            best.append(index.gather(1, ratio[index].argmax(1, keepdim=True)).squeeze(1))
    largest = torch.cat(best)
    return EntityNorms(torch.cat(norms), peak[largest], bounds[largest])


def of_pieces(values: Tensor, pieces: Pieces, nobody: float) -> Tensor:
    """Every piece's value from its entity's, (N,) to (P,); ``nobody`` for slices in no entity."""
    return torch.cat([values, values.new_full((1,), nobody)])[pieces.owner]


def _shared(slopes: Slopes, ties: Tensor, pieces: Pieces) -> Slopes:
    """The slopes when all weights of an entity that attain its maximum share the slope equally."""
    per_entity = torch.cat([ties[index].sum(1) for index in pieces.of_entities])
    count = of_pieces(per_entity, pieces, 1.0).clamp(min=1)
    return slopes._replace(slope=slopes.slope / count)


def _attains(batch: Batch, part: Slopes) -> Tensor:
    return batch.weights.abs().eq_(part.peak.view(column(batch.weights, batch.dim)))

r"""The proximal step of a network's entities on a CPU, in place.

`spr_or.formulations.projected_prox` gives one number s for each entity, and every weight becomes

.. math::  w_j \leftarrow \operatorname{clip}(w_j\, y / s,\; -M_j y,\; M_j y), \qquad y = s - 2 t \alpha.

1. Every parameter is reduced where it lies to ||w||_2 and max |w_j| / M_j of each entity. Where no
   weight of an entity meets its bound, these two numbers give s.
2. Only the weights of the other entities are looked at again, as rows of magnitudes: small layers
   padded to one width and together, because calls cost more than arithmetic there; large ones in
   pieces that a cache holds. A network that is small altogether is copied into such rows once, and
   step 1 reduces these.
3. Every parameter is multiplied by y / s, one number for each slice, and clipped where an entity is
   at its bound.

Calls are most of a small network's step, so they run in torch's inference mode, without autograd's books.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.formulations.projected_prox import BLOCK, LONG, free_roots, roots, terms_of
from spr_or.pruning import group_passes
from spr_or.pruning.gradient_passes import Batch, column, norms_and_peaks
from spr_or.pruning.group_entities import GroupEntities, GroupLayout, Part
from spr_or.pruning.layer_entities import LayerEntities, SliceEntities
from spr_or.pruning.per_entity import crossed
from spr_or.pruning.regularizer import SPR

_PIECE = 2**21  # weights
_PADDED = 1.5  # rows of several layers may be padded to so many times their weights
_SMALL = 2**18  # numbers; with fewer, another call costs more than padding


class Shrinking(NamedTuple):
    """What the step does to every entity, (N,) each: y, the factor y / s, and whether it is clipped."""

    indicator: Tensor
    factor: Tensor
    clipped: Tensor


class Slices(NamedTuple):
    """Slices of a parameter along ``dim``: those that the numbers ``entities`` of a list belong to.

    The list has one number for each entity of the network, and for groups one for each piece.
    """

    parameter: nn.Parameter
    view: Callable[[Tensor], Tensor]
    dim: int
    entities: slice


class Plan:
    """Where the entities of ``spr`` lie, for as long as it exists."""

    def __init__(self, spr: SPR) -> None:
        self.spr = spr
        self.layers = spr.ordered_layers()
        self.counts = [layer.count for layer in self.layers]
        self.widths = {layer.name: int(layer.sizes[0]) for layer in self.layers}
        self.layer_of = torch.arange(len(self.layers)).repeat_interleave(torch.tensor(self.counts))
        groups = [layer for layer in self.layers if isinstance(layer, GroupEntities)]
        self.layout = GroupLayout(groups) if groups else None
        self._room = torch.empty(0)
        self._all: Tensor | None = None
        self._places: list[Tensor] = []
        single = all(len(layer.parameters) == 1 for layer in self.layers)
        numbers = sum(self.counts) * max(self.widths.values())
        self._small = self.layout is None and single and numbers <= _SMALL
        self.slices = list(self._slices())

    def _slices(self) -> Iterator[Slices]:
        start = 0
        if self.layout is not None:
            for window in self.layout.windows():
                stop = start + window.length
                yield Slices(window.parameter, window.of, window.dim, slice(start, stop))
                start = stop
            return
        for layer in cast(Sequence[SliceEntities], self.layers):
            stop = start + layer.count
            for parameter in layer.parameters:
                dim = layer.dim if parameter.dim() > 1 else 0
                yield Slices(parameter, lambda tensor: tensor, dim, slice(start, stop))
            start = stop

    def room(self, count: int, dtype: torch.dtype) -> Tensor:
        """Memory for ``count`` numbers, the same for every step: fresh memory is slow."""
        if self._room.dtype != dtype or len(self._room) < count:
            self._room = torch.empty(count, dtype=dtype)
        return self._room[:count]

    def rows(self) -> Tensor | None:
        """A copy of all entities as rows (N, k) with zeros at their ends.

        None for a larger network, and where an entity is more than a slice of one parameter.
        """
        if not self._small:
            return None
        rows = [_in_memory_order(x, dim) for x, dim, _ in self.spr.gather()]
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in rows))
        if self._all is None or self._all.dtype != dtype:
            self._all = torch.zeros(sum(self.counts), max(self.widths.values()), dtype=dtype)
            parts = zip(self._all.split(self.counts), rows, strict=True)
            self._places = [part[:, : row.shape[1]] for part, row in parts]
        torch._foreach_copy_(self._places, rows)
        return self._all

    def norms(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """||w||_2 and max |w_j| / M_j of every entity, (N,); ``rows`` as above."""
        if self.layout is None:
            norm, peak = norms_and_peaks(self.spr.gather() if rows is None else [Batch(rows, 0)])
            bound = self.spr.bound
        else:
            batches, pieces = self.layout.batches(), self.layout.pieces()
            norm, peak, bound = group_passes.entity_norms(batches, pieces, self.spr.bound)
        # The squares of weights below 1e-19 underflow; the peak is then the better norm.
        return torch.maximum(norm, peak), peak / bound


def fits(layers: Sequence[LayerEntities]) -> bool:
    """Whether the step can be done in place: on a CPU, in the precision of the computation."""
    whole = all(isinstance(layer, SliceEntities | GroupEntities) for layer in layers)
    return whole and all(
        p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64)
        for layer in layers
        for p in layer.parameters
    )


def shrinking(plan: Plan, steps: Tensor) -> Shrinking:
    """What a proximal step of t_i = ``steps`` (N,) does to every entity; nothing is changed.

    Its tensors are inference tensors of torch.
    """
    # What the regularizer may cache on the way is a normal tensor.
    rows = plan.rows()
    norm, ratio = plan.norms(rows)
    with torch.inference_mode():
        return _shrinking(plan, steps, rows, norm.unsqueeze(1), ratio.unsqueeze(1))


def _shrinking(
    plan: Plan, steps: Tensor, rows: Tensor | None, norm: Tensor, ratio: Tensor
) -> Shrinking:
    alpha = plan.spr.alpha
    # An entity of a group may cross several bounds; those come with its rows.
    bound = plan.spr.bound.to(norm) if plan.layout is None else torch.ones_like(steps)
    terms = terms_of(steps.to(norm).unsqueeze(1), alpha, bound.unsqueeze(1), 0.0, 1.0)
    s, free = free_roots(norm, ratio, alpha, terms)
    clipped = free.logical_not().squeeze(1)
    left = clipped.nonzero().squeeze(1)
    for owners, weights, bounds, work in _clipped(plan, left, rows, norm.dtype):
        if bounds is None:
            some = terms.of(owners)
        else:
            some = terms_of(steps[owners].to(norm).unsqueeze(1), alpha, bounds, 0.0, 1.0)
        found = roots(weights, norm[owners], ratio[owners], alpha, some, work)
        s.index_copy_(0, owners, found)
    y = (s - terms.shift).clamp_(max=1)
    return Shrinking(y.squeeze(1), (y / s).squeeze(1), clipped)


@torch.inference_mode()
def apply_(plan: Plan, step: Shrinking) -> None:
    """Do that to the parameters that require a gradient."""
    y, factor, clipped = step
    bound = plan.spr.bound.to(y)
    unclipped = torch.full_like(y, torch.inf)
    limit = torch.where(clipped, y, unclipped)
    if plan.layout is None:
        limit = limit * bound
    else:
        pieces = plan.layout.pieces()
        factor = group_passes.of_pieces(factor, pieces, 1.0)
        limit = group_passes.of_pieces(limit, pieces, torch.inf) * bound[pieces.bound]
    meets = limit.isfinite()
    tensors, factors = [], []
    clip: list[tuple[Tensor, Tensor]] = []
    for parameter, view, dim, entities in plan.slices:
        if not parameter.requires_grad:
            continue
        x = view(parameter.detach())
        shape = column(x, dim)
        tensors.append(x)
        factors.append(factor[entities].view(shape).to(x.dtype))
        if bool(meets[entities].any()):
            clip.append((x, limit[entities].view(shape).to(x.dtype)))
    if tensors:
        torch._foreach_mul_(tensors, factors)
    for x, most in clip:
        torch.minimum(x, most, out=x)
        torch.maximum(x, -most, out=x)


class _Clipped(NamedTuple):
    """Entities of which a weight may be clipped: weights (n, k) of ``owners`` (n,), and memory to work in.

    ``bounds`` is (n, 1) or (n, k), None where each has one bound, that of the regularizer.
    """

    owners: Tensor
    weights: Tensor
    bounds: Tensor | None
    work: Tensor


def _clipped(
    plan: Plan, left: Tensor, rows: Tensor | None, dtype: torch.dtype
) -> Iterator[_Clipped]:
    """The entities ``left``, from ``rows`` of all entities or, None, from the parameters."""
    if not len(left):
        return
    if rows is not None:
        some = rows.index_select(0, left)
        yield _Clipped(left, some, None, plan.room(2 * some.numel(), dtype))
        return
    for together in _rows(plan, left):
        owners = torch.cat([some.owners for some in together])
        yield _Clipped(owners, *_joined(plan, together, dtype))


class _Rows(NamedTuple):
    """Some entities of a layer: ``chosen`` (n,) of its own, or all (None), ``owners`` in the network.

    ``width`` is the number of weights of each; ``bound`` is (n, 1) or (n, width) in a group, else None.
    """

    layer: LayerEntities
    chosen: Tensor | None
    owners: Tensor
    width: int
    bound: Tensor | None


def _joined(
    plan: Plan, together: list[_Rows], dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The weights of some entities as rows (n, k), their bounds, and memory to work in."""
    width = max(rows.width for rows in together)
    if width >= LONG:
        width = -(-width // BLOCK) * BLOCK
    counts = [len(rows.owners) for rows in together]
    size = sum(counts) * width
    weights = _whole_layer(together[0]) if len(together) == 1 else None
    room = plan.room(3 * size, dtype)
    if weights is None or weights.shape[1] != width:
        weights, room = room[:size].view(-1, width), room[size:]
        if any(rows.width < width for rows in together):
            weights.zero_()
        for rows, part in zip(together, weights.split(counts), strict=True):
            _write_weights(rows, part[:, : rows.width])
    bounds = [rows.bound for rows in together if rows.bound is not None]
    if not bounds:
        return weights, None, room
    if any(bound.shape[1] > 1 for bound in bounds):
        bounds = [
            F.pad(bound.expand(-1, rows.width), (0, width - rows.width), value=1.0)
            for bound, rows in zip(bounds, together, strict=True)
        ]
    return weights, torch.cat(bounds).to(dtype), room


def _rows(plan: Plan, left: Tensor) -> Iterator[list[_Rows]]:
    """The entities ``left`` as rows, in lists that are looked at together."""
    counts = torch.bincount(plan.layer_of[left], minlength=len(plan.layers)).tolist()
    found = []
    first = first_bound = 0
    for layer, owners in zip(plan.layers, left.split(counts), strict=True):
        columns = crossed(layer)
        bounds = plan.spr.bound[first_bound : first_bound + layer.count * columns]
        bounds = bounds.view(layer.count, columns)
        width = plan.widths[layer.name]
        for piece in owners.split(max(1, _PIECE // width)) if len(owners) else ():
            chosen = None if len(piece) == layer.count else piece - first
            bound = None
            if isinstance(layer, GroupEntities):
                bound = bounds if chosen is None else bounds[chosen]
                bound = layer.bounds_of_weights(bound) if columns > 1 else bound
            found.append(_Rows(layer, chosen, piece, width, bound))
        first += layer.count
        first_bound += layer.count * columns
    together: list[_Rows] = []
    count = weights = 0
    for rows in sorted(found, key=lambda rows: rows.width):
        new = len(rows.owners)
        numbers = (count + new) * rows.width
        most = max(_SMALL, min(_PIECE, _PADDED * (weights + new * rows.width)))
        if together and numbers > most:
            yield together
            together, count, weights = [], 0, 0
        together.append(rows)
        count += new
        weights += new * rows.width
    yield together


def _whole_layer(rows: _Rows) -> Tensor | None:
    """Where all entities of ``rows`` lie one after another: the weights (n, width) themselves."""
    layer, chosen = rows.layer, rows.chosen
    if isinstance(layer, GroupEntities) or len(layer.parameters) > 1:
        return None
    x = layer.parameters[0].detach()
    whole = _in_memory_order(x, cast(SliceEntities, layer).dim)
    if whole.data_ptr() != x.data_ptr() or not whole.is_contiguous():
        return None
    if chosen is None:
        return whole
    first, last = int(chosen[0]), int(chosen[-1])
    return whole[first : last + 1] if last - first + 1 == len(chosen) else None


def _write_weights(rows: _Rows, target: Tensor) -> None:
    """The weights of the entities into ``target`` (n, width), in any order within an entity of one layer."""
    layer, chosen = rows.layer, rows.chosen
    if isinstance(layer, GroupEntities):
        parts = target.split([part.width for part in layer.parts], dim=1)
        for part, columns in zip(layer.parts, parts, strict=True):
            columns.copy_(_slices_of(part, chosen))
        return
    weight, *extra = (p.detach() for p in layer.parameters)
    whole = _in_memory_order(weight, cast(SliceEntities, layer).dim)
    k = whole.shape[1]
    target[:, :k].copy_(whole if chosen is None else whole.index_select(0, chosen))
    for i, numbers in enumerate(extra, k):
        target[:, i].copy_(numbers if chosen is None else numbers[chosen])


def _in_memory_order(x: Tensor, dim: int) -> Tensor:
    """The slices of x as rows (N, k), a view where that can be."""
    if dim == 0 and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).flatten(1)
    return x.movedim(dim, 0).flatten(1)


def _slices_of(part: Part, chosen: Tensor | None) -> Tensor:
    """The weights of some entities in one of their parameters, (n, k)."""
    if chosen is None:
        return part.rows()
    slices = part.index[chosen].flatten()
    x = part.parameter.detach().index_select(part.dim, slices)
    return x.movedim(part.dim, 0).reshape(len(chosen), -1)

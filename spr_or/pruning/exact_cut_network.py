"""A network as an `spr_or.pruning.exact_cut_program.Program`: what its layers use, by their widths.

The left size of a parameter is the product of its widths: the slices along each dimension that stay.
Which entity a slice belongs to, as a row or as a column that reads it, is known from the network's
graph (`spr_or.pruning.network_groups.features`). So each width is a constant plus multiples of the
numbers of entities that layers keep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spr_or.pruning.counts import Example, macs_by_layer
from spr_or.pruning.exact_cut_program import (
    Counts,
    Measure,
    Numbers,
    Program,
    price_of_keeping,
)
from spr_or.pruning.latency import Grid, LatencyCounter
from spr_or.pruning.layer_entities import LayerEntities, SliceEntities
from spr_or.pruning.module_masks import groups_of
from spr_or.pruning.network_groups import features


class NotByCounts(ValueError):
    """What a cut saves depends on which entities go, not only on how many of each layer."""


class Width(NamedTuple):
    """``constant`` plus ``times[l]`` for each entity that layer l keeps."""

    constant: int
    times: dict[int, int]

    def at(self, kept: Sequence[int]) -> int:
        """The width where layer l keeps ``kept[l]`` entities."""
        return self.constant + sum(n * kept[layer] for layer, n in self.times.items())


class Shape(NamedTuple):
    """A parameter: its widths by dimension (-1: all of its numbers), and the size of the other ones."""

    widths: dict[int, Width]
    rest: int

    def numbers(self, kept: Sequence[int]) -> int:
        """How many numbers are left."""
        return self.rest * math.prod(width.at(kept) for width in self.widths.values())


class Sizes(NamedTuple):
    """The shapes of a network's parameters, and how often each of their numbers is multiplied."""

    sizes: list[int]  # of the layers
    shapes: dict[str, Shape]
    uses: dict[str, float]

    def left(self, measure: str, kept: Sequence[int]) -> float:
        """Parameters or multiplications left where layer l keeps ``kept[l]``.

        ``measure`` is "params" or "macs".
        """
        factors = self.factors(measure)
        return sum(f * self.shapes[name].numbers(kept) for name, f in factors.items())

    def factors(self, measure: str) -> Mapping[str, float]:
        """What each number of a parameter counts."""
        return dict.fromkeys(self.shapes, 1.0) if measure == "params" else self.uses


def network_sizes(model: nn.Module, example: Example, layers: Sequence[LayerEntities]) -> Sizes:
    """What is left of a network's parameters, by the numbers that ``layers`` (``spr.layers``) keep.

    Raises `NotByCounts` where numbers do not decide it, such as for filters in a residual network: a
    channel of the stream stays as long as any layer writes it.
    """
    found = features(model, example)
    slices = {**found.read, **found.written}
    entity_of = _entity_of_class(model, layers, found.written)
    shapes = {}
    for name, parameter in model.named_parameters():
        widths = {
            dim: _width(name, classes, entity_of, layers)
            for (own, dim), classes in slices.items()
            if own == name
        }
        if -1 in widths and parameter.dim() > 1:
            widths = {-1: widths[-1]}
        covered = widths.keys() if parameter.dim() > 1 else {dim % 1 for dim in widths}
        rest = 1 if -1 in covered else math.prod(
            n for dim, n in enumerate(parameter.shape) if dim not in covered
        )  # fmt: skip
        shapes[name] = Shape(widths, rest)
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    uses = {}
    for name, macs in macs_by_layer(model, example).items():
        weight = f"{name}.weight" if f"{name}.weight" in numbers else name
        if weight not in numbers:
            raise NotByCounts(f'{name!r} computes its weight from parameters: use cut = "rank"')
        uses[weight] = macs / numbers[weight]
    return Sizes([layer.count for layer in layers], shapes, uses)


Classes = dict[int, tuple[int, int]]


def _entity_of_class(
    model: nn.Module,
    layers: Sequence[LayerEntities],
    written: Mapping[tuple[str, int], Tensor],
) -> Classes:
    """The entity, (layer, number), of each class of features that leave together."""
    entity_of: Classes = {}
    for number, (layer, members) in enumerate(zip(layers, _members(model, layers), strict=True)):
        for name, dim, index in members:
            classes = written.get((name, dim), written.get((name, -1)))
            if classes is None or len(classes) <= int(index.max()):
                continue
            for entity, own in enumerate(index.tolist()):
                for label in classes[own].tolist():
                    before = entity_of.setdefault(label, (number, entity))
                    if before != (number, entity):
                        other = layers[before[0]].name
                        if other == layer.name:
                            raise NotByCounts(
                                f"several entities of {other!r} write one feature together: use "
                                'cut = "rank"'
                            )
                        raise NotByCounts(
                            f"{layer.name!r} and {other!r} have entities that write one feature "
                            f'together: use entities = "channels", or cut = "rank"'
                        )
    return entity_of


def _members(
    model: nn.Module, layers: Sequence[LayerEntities]
) -> list[list[tuple[str, int, Tensor]]]:
    """For each layer its slices: parameter, dimension, index (N, m)."""
    groups = groups_of(model, layers)
    if groups:
        return [[(m.parameter, m.dim, m.index) for m in group.members] for group in groups]
    found = []
    for layer in layers:
        if not isinstance(layer, SliceEntities):
            raise NotByCounts(f"{layer.name!r} has entities given by positions")
        index = torch.arange(layer.count).unsqueeze(1)
        found.append([(f"{layer.name}.weight", layer.dim, index)])
    return found


def _width(
    name: str, classes: Tensor, entity_of: Classes, layers: Sequence[LayerEntities]
) -> Width:
    owners = [entity_of.get(label) for label in classes.tolist()]
    times = {}
    for number in sorted({owner[0] for owner in owners if owner is not None}):
        slices = [0] * layers[number].count
        for owner in owners:
            if owner is not None and owner[0] == number:
                slices[owner[1]] += 1
        if len(set(slices)) > 1:
            raise NotByCounts(
                f"entities of {layers[number].name!r} have different shares of {name!r}"
            )
        times[number] = slices[0]
    return Width(sum(owner is None for owner in owners), times)


def count_program(
    sizes: Sizes,
    counts: Sequence[Counts],
    prices: Sequence[Numbers],
    budgets: Mapping[str, float],
    latency: LatencyCounter | None = None,
) -> Program:
    """The program: layer l keeps one of ``counts[l]``, and of every budget as much must leave.

    prices: of the entities of each layer, (N_l,). budgets: {"params", "macs" or "latency": percent to be
    removed}. latency: for a budget of that name.
    """
    measures = {}
    for name, removed in budgets.items():
        if name == "latency":
            assert latency is not None
            measures[name] = _times(sizes, counts, latency, 100.0 - removed)
        else:
            measures[name] = _products(sizes, counts, name, 100.0 - removed)
    kept = [price_of_keeping(p, c) for p, c in zip(prices, counts, strict=True)]
    return Program(list(counts), kept, measures)


def _products(sizes: Sizes, counts: Sequence[Counts], name: str, limit: float) -> Measure:
    """Percent of the parameters or multiplications that are left."""
    whole = sizes.left(name, sizes.sizes)
    constant = 0.0
    single: dict[int, Numbers] = {}
    pairs: dict[tuple[int, int], Numbers] = {}
    for parameter, factor in sizes.factors(name).items():
        shape = sizes.shapes[parameter]
        for layers, times in _terms(shape):
            share = 100 * factor * shape.rest * times / whole
            if not layers:
                constant += share
            elif len(set(layers)) == 1:
                power = counts[layers[0]].astype(float) ** len(layers)
                single[layers[0]] = single.get(layers[0], 0.0) + share * power
            else:
                one, other = sorted(layers)
                table = share * np.outer(counts[one], counts[other])
                pairs[one, other] = np.asarray(pairs.get((one, other), 0.0) + table)
    return Measure(limit, constant, single, pairs)


def _terms(shape: Shape) -> Iterator[tuple[tuple[int, ...], int]]:
    """The product of the widths, multiplied out: layers of each term (two at most), and its factor."""
    terms: list[tuple[tuple[int, ...], int]] = [((), 1)]
    for width in shape.widths.values():
        parts = [((), width.constant), *(((layer,), n) for layer, n in width.times.items())]
        terms = [(a + b, n * m) for a, n in terms for b, m in parts if m]
    yield from terms


def _times(
    sizes: Sizes, counts: Sequence[Counts], latency: LatencyCounter, limit: float
) -> Measure:
    """Percent of the time of the layers that is left, by the tables of `LatencyCounter`."""
    constant = 0.0
    single: dict[int, Numbers] = {}
    pairs: dict[tuple[int, int], Numbers] = {}
    for name, grid in latency.grids():
        widths = sizes.shapes[f"{name}.weight"].widths
        inputs, outputs = _alone(name, widths.get(1)), _alone(name, widths.get(0))
        (rows_of, rows), (columns_of, columns) = (
            _values(inputs, counts, grid[0][-1]), _values(outputs, counts, grid[1][-1])
        )  # fmt: skip
        table = 100 * interpolated_table(grid, rows, columns) / latency.total
        if rows_of is None and columns_of is None:
            constant += float(table[0, 0])
        elif rows_of is None or columns_of is None or rows_of == columns_of:
            layer = columns_of if rows_of is None else rows_of
            assert layer is not None
            own = table.diagonal() if rows_of == columns_of else table.ravel()
            single[layer] = single.get(layer, 0.0) + own
        else:
            key = (rows_of, columns_of) if rows_of < columns_of else (columns_of, rows_of)
            pairs[key] = pairs.get(key, 0.0) + (table if rows_of < columns_of else table.T)
    return Measure(limit, constant, single, pairs)


def _alone(name: str, width: Width | None) -> Width | None:
    if width is not None and len(width.times) > 1:
        raise NotByCounts(
            f"{name!r} reads several layers side by side, and its time is no table over two of them"
        )
    return width


def _values(
    width: Width | None, counts: Sequence[Counts], whole: int
) -> tuple[int | None, Numbers]:
    """The layer that a width depends on, and the widths at its counts."""
    if width is None or not width.times:
        return None, np.array([float(whole if width is None else width.constant)])
    ((layer, times),) = width.times.items()
    return layer, width.constant + times * counts[layer].astype(float)


def interpolated_table(grid: Grid, inputs: Numbers, outputs: Numbers) -> Numbers:
    """`spr_or.pruning.latency.interpolated` for all pairs of widths.

    >>> interpolated_table(([1, 4], [1, 2], [[1.0, 2.0], [4.0, 8.0]]), np.array([0, 1.0]), np.array([2.0]))
    array([[0.],
           [2.]])
    """
    rising = np.maximum.accumulate(np.maximum.accumulate(grid[2], axis=0), axis=1)
    left, right = (
        np.stack([np.interp(at, points, row) for row in np.eye(len(points))], axis=1)
        for at, points in ((inputs, grid[0]), (outputs, grid[1]))
    )
    alive = np.outer(inputs > 0, outputs > 0)
    return np.asarray(np.where(alive, left @ rising @ right.T, 0.0))

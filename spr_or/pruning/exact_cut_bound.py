r"""Lower bounds for `spr_or.pruning.exact_cut_program`: budgets priced, layers eliminated one by one.

With prices mu >= 0 for the budgets, the Lagrangian

.. math::  L(\mu) = \min_n \sum_l F_l(n_l) + \sum_r \mu_r (\text{used}_r(n) - B_r)

is at most the optimum. It is computed exactly: layers form a graph, with an edge where a weight joins
two, and eliminating a layer leaves a table over its neighbours (dynamic programming; on a chain one
vector). The same tables give the minimum with any one count held, so that counts whose bound lies
above a known solution are excluded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spr_or.pruning.exact_cut_program import Numbers, Program

_CELLS = 30_000_000  # of the largest table
_ROUNDS = 60
_CLOSE = 1e-7  # relative: where the prices of the budgets are good enough

Table = tuple[tuple[int, ...], Numbers]


class TooEntangled(ValueError):
    """Layers depend on each other in a way whose tables do not fit."""


class Minimum(NamedTuple):
    """The least sum of tables, where it is, and for each layer the least with each position held."""

    value: float
    places: list[int]
    held: list[Numbers]


def minimum(tables: Sequence[Table], sizes: Sequence[int]) -> Minimum:
    """Minimise a sum of tables, each a function of some variables, by eliminating these.

    tables: (variables, rising; array with an axis for each). sizes: of all variables. Raises
    `TooEntangled` where a table would be too large.

    >>> a = np.array([[0.0, 4.0], [3.0, 1.0]])
    >>> found = minimum([((0, 1), a), ((1,), np.array([2.0, 0.0]))], [2, 2])
    >>> found.value, found.places, [held.tolist() for held in found.held]
    (1.0, [1, 1], [[2.0, 1.0], [2.0, 1.0]])
    """
    buckets: list[tuple[int, tuple[int, ...], Numbers]] = []
    left = list(tables)
    remaining = set(range(len(sizes)))
    while remaining:
        layer, clique = _next(left, remaining, sizes)
        table = np.zeros([sizes[i] for i in clique])
        for variables, part in left:
            if layer in variables:
                table += _spread(variables, part, clique)
        left = [t for t in left if layer not in t[0]]
        rest = tuple(i for i in clique if i != layer)
        left.append((rest, table.min(axis=clique.index(layer))))
        buckets.append((layer, clique, table))
        remaining.remove(layer)
    value = float(sum(part for _, part in left))
    return Minimum(value, *_backwards(buckets, value))


def _backwards(
    buckets: list[tuple[int, tuple[int, ...], Numbers]], value: float
) -> tuple[list[int], list[Numbers]]:
    """Positions of the minimum, and the least value for each position of each layer."""
    places = [0] * len(buckets)
    held: list[Numbers] = [np.empty(0)] * len(buckets)
    beliefs: dict[int, tuple[tuple[int, ...], Numbers]] = {}
    order = {layer: turn for turn, (layer, _, _) in enumerate(buckets)}
    for layer, clique, table in reversed(buckets):
        axis = clique.index(layer)
        at = tuple(slice(None) if i == layer else places[i] for i in clique)
        places[layer] = int(table[at].argmin())
        rest = tuple(i for i in clique if i != layer)
        belief = table
        if rest:  # what the rest of the graph costs for these positions
            above, known = beliefs[min(rest, key=order.__getitem__)]
            others = tuple(k for k, i in enumerate(above) if i not in rest)
            outside = known.min(axis=others) - table.min(axis=axis)
            belief = table + np.expand_dims(outside, axis)
        beliefs[layer] = clique, belief
        least = belief.min(axis=tuple(k for k in range(len(clique)) if k != axis))
        held[layer] = least + (value - float(least.min()))
    return places, held


def _next(
    tables: Sequence[Table], remaining: set[int], sizes: Sequence[int]
) -> tuple[int, tuple[int, ...]]:
    """The layer whose elimination needs the smallest table, and the layers of that table."""

    def clique(layer: int) -> tuple[int, ...]:
        return tuple(sorted({layer, *(i for v, _ in tables if layer in v for i in v)}))

    cells, layer = min((math.prod(sizes[i] for i in clique(layer)), layer) for layer in remaining)
    if cells > _CELLS:
        raise TooEntangled(
            f"{len(clique(layer))} layers depend on each other, and their counts combine in "
            f"{cells:.2g} ways: allow fewer with round_to"
        )
    return layer, clique(layer)


def _spread(variables: tuple[int, ...], table: Numbers, clique: tuple[int, ...]) -> Numbers:
    sizes = iter(table.shape)
    return table.reshape([next(sizes) if i in variables else 1 for i in clique])


class Bound(NamedTuple):
    """A lower bound; for each layer the bound with each count held; solutions met on the way."""

    value: float
    held: list[Numbers]
    places: list[list[int]]


def best_bound(program: Program) -> Bound:
    r"""The largest L(mu), by cutting planes: each minimiser n gives L(mu) <= price(n) + mu (used(n) - B).

    ``places`` are all minimisers met, whether they fit or not. Where nothing fits, the bound rises
    without end and is stopped at twice the price of keeping the least.
    """
    names = list(program.measures)
    limits = np.array([program.measures[name].limit for name in names])
    constants = np.array([program.measures[name].constant for name in names])
    sizes = [len(counts) for counts in program.counts]
    seen = [[size - 1 for size in sizes], [0] * len(sizes)]
    ceiling = 2 * program.price(seen[1]) + 1e-300
    best: Minimum | None = None
    value = -math.inf
    for _ in range(_ROUNDS):
        mu, above = _dual(program, seen, names, limits, ceiling)
        found = minimum(program.tables(dict(zip(names, mu, strict=True))), sizes)
        lagrangian = found.value + float(mu @ (constants - limits))
        if best is None or lagrangian > value:
            shift = lagrangian - found.value
            value, best = lagrangian, found._replace(held=[h + shift for h in found.held])
        if above - value <= _CLOSE * max(abs(above), 1e-300) or found.places in seen:
            break
        seen.append(found.places)
    assert best is not None
    return Bound(max(value, 0.0), best.held, seen)


def _dual(
    program: Program, seen: list[list[int]], names: list[str], limits: Numbers, ceiling: float
) -> tuple[Numbers, float]:
    """The prices of the budgets that are best for the solutions seen, and the value that they promise."""
    from scipy.optimize import linprog

    prices = np.array([program.price(places) for places in seen])
    over = np.array([[program.used(p)[n] for n in names] for p in seen]) - limits
    scale = np.abs(over).max(axis=0)
    scale[scale == 0] = 1.0
    unit = max(float(prices.max()), 1e-300)
    rows = np.hstack([-over / scale, np.ones((len(seen), 1))])
    bounds = [(0, None)] * len(names) + [(None, ceiling / unit)]
    cost = np.zeros(len(names) + 1)
    cost[-1] = -1.0
    answer = linprog(cost, A_ub=rows, b_ub=prices / unit, bounds=bounds, method="highs")
    return answer.x[:-1] / scale * unit, float(answer.x[-1]) * unit

r"""The cut as an integer program over the numbers of entities that layers keep.

Where all entities of a layer save the same, and only their number decides what is saved, the
cheapest go first. What is left to choose is n_l, the number that layer l keeps:

.. math::  \min_n \sum_l F_l(n_l) \quad\text{s.t.}\quad
           c_r + \sum_l a_{rl}(n_l) + \sum_{l<m} b_{rlm}(n_l, n_m) \le B_r \ \text{for all } r,

with F_l(n) the sum of the N_l - n smallest prices of layer l, which is convex in n. For parameters and
multiplications b is a multiple of n_l n_m: a weight has as many numbers as its rows times its columns.
For a table of times it is the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-6  # relative to a limit: HiGHS's tolerance

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]


class Measure(NamedTuple):
    """What is used of one budget: ``constant`` and tables over the counts that are allowed.

    ``single`` is {layer: (V_l,)}, ``pairs`` {(l, m): (V_l, V_m)} with l < m; both are of what stays.
    """

    limit: float
    constant: float
    single: dict[int, Numbers]
    pairs: dict[tuple[int, int], Numbers]


class Program(NamedTuple):
    """Layers by number: the counts that each may keep, rising, and what it costs to keep no more.

    >>> single = {0: np.array([10.0, 20.0, 30.0])}
    >>> program = Program([np.array([1, 2, 3])], [np.array([5.0, 1.0, 0.0])],
    ...                   {"params": Measure(20.0, 0.0, single, {})})
    >>> program.used([1]), program.price([1]), program.fits([1])
    ({'params': 20.0}, 1.0, True)
    """

    counts: list[Counts]
    prices: list[Numbers]
    measures: dict[str, Measure]

    def used(self, places: Sequence[int]) -> dict[str, float]:
        """What is used of each budget; ``places`` are positions in ``counts``."""
        return {name: _used(measure, places) for name, measure in self.measures.items()}

    def price(self, places: Sequence[int]) -> float:
        """The objective."""
        pairs = zip(self.prices, places, strict=True)
        return float(sum(price[place] for price, place in pairs))

    def fits(self, places: Sequence[int]) -> bool:
        """Whether every budget is met, to within rounding."""
        used = self.used(places)
        return all(
            used[name] <= m.limit + _ROUNDING * max(1.0, abs(m.limit))
            for name, m in self.measures.items()
        )

    def tables(self, weights: Mapping[str, float]) -> list[tuple[tuple[int, ...], Numbers]]:
        """Prices plus the weighed measures as functions of one or two layers; constants are left out."""
        single = [price.copy() for price in self.prices]
        pairs: dict[tuple[int, int], Numbers] = {}
        for name, measure in self.measures.items():
            for layer, table in measure.single.items():
                single[layer] += weights[name] * table
            for pair, table in measure.pairs.items():
                pairs[pair] = pairs.get(pair, 0.0) + weights[name] * table
        return [((layer,), table) for layer, table in enumerate(single)] + list(pairs.items())


def _used(measure: Measure, places: Sequence[int]) -> float:
    single = sum(table[places[layer]] for layer, table in measure.single.items())
    pairs = sum(table[places[one], places[other]] for (one, other), table in measure.pairs.items())
    return float(measure.constant + single + pairs)


def price_of_keeping(prices: Numbers, counts: Counts) -> Numbers:
    """The sum of the smallest prices that go where so many stay, for each of the counts.

    >>> price_of_keeping(np.array([3.0, 1.0, 2.0]), np.array([1, 2, 3])).tolist()
    [3.0, 1.0, 0.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(np.sort(prices))])
    return np.asarray(sums[len(prices) - counts])

r"""The cut as a mixed-integer linear program for HiGHS, over the counts that a bound has left.

One binary x_{lv} says that layer l keeps v entities. A product of two widths is a table over both, so
each pair of layers that a weight joins has p_{uv} >= 0 with

.. math::  \sum_v p_{uv} = x_{lu}, \qquad \sum_u p_{uv} = x_{mv},

which makes p the product of both for binary x. On a graph without cycles this is tight: without
budgets the linear relaxation is integral, so its bound is that of `exact_cut_bound`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spr_or.pruning.exact_cut_program import Counts, Numbers, Program

_PAIRS = 40_000  # variables p: about so many are solved in seconds


class Answer(NamedTuple):
    """Positions of a best solution found (None without any), and a lower bound."""

    places: list[int] | None
    bound: float


def solve_milp(
    program: Program,
    held: Sequence[Numbers],
    start: Sequence[int],
    seconds: float,
    gap: float,
) -> Answer:
    """Solve by HiGHS from a feasible ``start``, over counts whose bound ``held`` is below its price.

    If these are too many, those with the smallest bounds are taken; then the smallest of the others
    limits the bound. Stops at the relative ``gap`` or after ``seconds``.
    """
    import highspy

    from spr_or.solvers.highs_thread import run_highs
    from spr_or.solvers.time_limit import TimeLimit

    ceiling = program.price(start)
    level = _level(program, held, start, ceiling)
    left = [
        np.union1d(np.flatnonzero(bound < level), [place])
        for bound, place in zip(held, start, strict=True)
    ]
    unit = max(ceiling, 1e-300)  # HiGHS's tolerances are absolute
    columns, lp = _linear_program(program, left, unit, highspy)
    highs = highspy.Highs()
    highs.silent()
    highs.setOptionValue("mip_rel_gap", gap)
    highs.setOptionValue("mip_abs_gap", 0.0)
    highs.setOptionValue("threads", 1)
    highs.passModel(lp)
    ones = [c[0] + int(np.searchsorted(k, p)) for c, k, p in zip(columns, left, start, strict=True)]
    highs.setSolution(len(ones), np.array(ones, dtype=np.int32), np.ones(len(ones)))
    run_highs(highs, TimeLimit(seconds))
    values = np.array(highs.getSolution().col_value)
    found = None
    if len(values):
        found = [int(k[values[c[0] : c[1]].argmax()]) for c, k in zip(columns, left, strict=True)]
    proven = float(highs.getInfo().mip_dual_bound)
    return Answer(found, min(level, max(proven, 0.0) * unit))


def _level(
    program: Program, held: Sequence[Numbers], start: Sequence[int], ceiling: float
) -> float:
    """Counts with a bound below this make few enough pairs; at most ``ceiling``."""
    pairs = {pair for m in program.measures.values() for pair in m.pairs}

    def size(level: float) -> int:
        numbers = [int((bound < level).sum()) + 1 for bound in held]
        return sum(numbers[one] * numbers[other] for one, other in pairs)

    levels = np.unique(np.concatenate([*held, [ceiling]]))
    levels = levels[levels <= ceiling]
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(levels[middle]) <= _PAIRS else (low, middle - 1)
    return float(levels[low])


def _linear_program(
    program: Program, left: Sequence[Counts], unit: float, highspy: object
) -> tuple[list[tuple[int, int]], object]:
    """Where each layer's binaries stand, and the model."""
    ends = np.cumsum([0, *(len(k) for k in left)])
    columns = [(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    pairs = sorted({pair for m in program.measures.values() for pair in m.pairs})
    first = {}
    total = int(ends[-1])
    for one, other in pairs:
        first[one, other] = total
        total += len(left[one]) * len(left[other])
    cost = np.zeros(total)
    for (a, b), price, kept in zip(columns, program.prices, left, strict=True):
        cost[a:b] = price[kept] / unit
    rows: list[tuple[Counts, Numbers, float, float]] = [
        (np.arange(a, b), np.ones(b - a), 1.0, 1.0) for a, b in columns
    ]
    for one, other in pairs:
        grid = first[one, other] + np.arange(len(left[one]) * len(left[other])).reshape(
            len(left[one]), -1
        )
        for layer, lines in ((one, grid), (other, grid.T)):
            for number, line in enumerate(lines):
                where = np.append(line, columns[layer][0] + number)
                rows.append((where, np.append(np.ones(len(line)), -1.0), 0.0, 0.0))
    for measure in program.measures.values():
        row = np.zeros(total)
        for layer, table in measure.single.items():
            a, b = columns[layer]
            row[a:b] += table[left[layer]]
        for (one, other), table in measure.pairs.items():
            part = table[np.ix_(left[one], left[other])].ravel()
            row[first[one, other] : first[one, other] + len(part)] += part
        where = np.flatnonzero(row)
        rows.append((where, row[where], -np.inf, measure.limit - measure.constant))
    return columns, _model(cost, int(ends[-1]), rows, highspy)


def _model(
    cost: Numbers,
    binaries: int,
    rows: list[tuple[Counts, Numbers, float, float]],
    highspy: object,
) -> object:
    lp = highspy.HighsLp()  # type: ignore[attr-defined]
    lp.num_col_, lp.num_row_ = len(cost), len(rows)
    lp.col_cost_ = cost
    lp.col_lower_, lp.col_upper_ = np.zeros(len(cost)), np.ones(len(cost))
    lp.row_lower_ = np.array([row[2] for row in rows])
    lp.row_upper_ = np.array([row[3] for row in rows])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise  # type: ignore[attr-defined]
    lp.a_matrix_.start_ = np.cumsum([0, *(len(row[0]) for row in rows)])
    lp.a_matrix_.index_ = np.concatenate([row[0] for row in rows])
    lp.a_matrix_.value_ = np.concatenate([row[1] for row in rows])
    kinds = [highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous]  # type: ignore[attr-defined]
    lp.integrality_ = [kinds[0]] * binaries + [kinds[1]] * (len(cost) - binaries)
    return lp

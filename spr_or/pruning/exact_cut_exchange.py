"""A better choice of counts near a given one: local search by exchanges between two layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spr_or.pruning.exact_cut_program import Numbers, Program

_REACH = 4  # positions that one layer moves at most
_MOVES = 300
_TRIES = 30  # exchanges whose use is computed in full, the best first


def exchanged(program: Program, places: Sequence[int]) -> list[int]:
    """The choice after exchanges that lower its price and fit, until there is none.

    ``places`` must fit. A move of one layer is looked at, and every pair of moves of two.
    """
    now = list(places)
    for _ in range(_MOVES):
        better = _better(program, now)
        if better is None:
            break
        now = better
    return now


def _better(program: Program, now: list[int]) -> list[int] | None:
    steps = [
        (layer, step)
        for layer, counts in enumerate(program.counts)
        for step in range(-_REACH, _REACH + 1)
        if step and 0 <= now[layer] + step < len(counts)
    ]
    if not steps:
        return None
    gains = _along(program.prices, now, steps)
    used = np.stack([_changes(program, now, name, steps) for name in program.measures])
    room = np.array([m.limit - program.used(now)[n] for n, m in program.measures.items()])
    # The last row and column stand for no second move.
    gains, used = np.append(gains, 0.0), np.hstack([used, np.zeros((len(used), 1))])
    total = gains[:, None] + gains[None, :]
    layers = np.array([layer for layer, _ in steps] + [-1])
    # What two moves use together is taken as the sum, to within a small part of the room.
    fits = (used[:, :, None] + used[:, None, :] <= room[:, None, None] + 1e-2).all(0)
    open_ = fits & (layers[:, None] != layers[None, :]) & (total < 0)
    order = np.argsort(np.where(open_, total, np.inf), axis=None)[: 2 * _TRIES : 2]
    for flat in order:
        first, second = np.unravel_index(flat, total.shape)
        if not open_[first, second]:
            break
        moved = list(now)
        for number in (int(first), int(second)):
            if number < len(steps):
                moved[steps[number][0]] += steps[number][1]
        if program.fits(moved) and program.price(moved) < program.price(now):
            return moved
    return None


def _changes(program: Program, now: list[int], name: str, steps: list[tuple[int, int]]) -> Numbers:
    """What each single move changes in the use of a measure."""
    measure = program.measures[name]
    row = [np.zeros(len(counts)) for counts in program.counts]
    for layer, table in measure.single.items():
        row[layer] += table
    for (one, other), table in measure.pairs.items():
        row[one] += table[:, now[other]]
        row[other] += table[now[one], :]
    return _along(row, now, steps)


def _along(rows: Sequence[Numbers], now: list[int], steps: list[tuple[int, int]]) -> Numbers:
    """The change of a layer's row by each single move."""
    return np.array(
        [rows[layer][now[layer] + step] - rows[layer][now[layer]] for layer, step in steps]
    )

r"""The cut that meets budgets at the lowest price, with a proof of how low it can be.

`spr_or.pruning.budget.choose` goes by rank: entities in the order of N(w_i)/u_i, until enough is saved.
What a channel saves depends on what else goes, so this can be far from the cheapest choice. Here the
sum of the prices of what goes is minimised as an integer program
(`spr_or.pruning.exact_cut_program`): a Lagrangian bound excludes most counts, HiGHS decides the rest,
and the cut by rank is where it starts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from spr_or.pruning.exact_cut_bound import best_bound
from spr_or.pruning.exact_cut_exchange import exchanged
from spr_or.pruning.exact_cut_milp import solve_milp
from spr_or.pruning.exact_cut_program import Program

GAP = 1e-4  # relative: where a choice counts as optimal
SECONDS = 10.0
_STARTS = 3  # of the choices known, the cheapest, from which exchanges are tried


class OutOfReach(ValueError):
    """Budgets that no choice meets."""


class Choice(NamedTuple):
    """Numbers of entities that layers keep, what the others cost, and a lower bound on that.

    ``places`` are positions in the program's counts.
    """

    places: list[int]
    price: float
    bound: float
    seconds: float

    @property
    def gap(self) -> float:
        """(price - bound) / price."""
        return (self.price - self.bound) / self.price if self.price > 0 else 0.0


def cheapest(
    program: Program,
    start: Sequence[int] | None = None,
    seconds: float = SECONDS,
    gap: float = GAP,
) -> Choice:
    """Solve the program to a relative ``gap``; ``start``: positions of a choice that may fit.

    What is found by the time limit is returned with its bound. Raises `OutOfReach` naming a budget,
    and `spr_or.pruning.exact_cut_bound.TooEntangled`.
    """
    began = time.monotonic()
    _check_reach(program)
    bound = best_bound(program)
    known = [places for places in bound.places if program.fits(places)]
    if start is not None and program.fits(start):
        known.append(list(start))
    starts = sorted(known, key=program.price)[:_STARTS]
    best = min((exchanged(program, places) for places in starts), key=program.price)
    lower = min(bound.value, program.price(best))
    left = seconds - (time.monotonic() - began)
    if program.price(best) - lower > gap * program.price(best) and left > 0:
        answer = solve_milp(program, bound.held, best, left, gap)
        lower = max(lower, answer.bound)
        if answer.places is not None and program.fits(answer.places):
            best = min((best, answer.places), key=program.price)
    price = program.price(best)
    return Choice(best, price, min(lower, price), time.monotonic() - began)


def _check_reach(program: Program) -> None:
    """Raise `OutOfReach` where keeping the least does not meet a budget."""
    least = [0] * len(program.counts)
    if program.fits(least):
        return
    used = program.used(least)
    missed = {
        name: f"{100 - used[name]:.1f} % of {name}"
        for name, m in program.measures.items()
        if used[name] > m.limit
    }
    asked = {name: f"{100 - program.measures[name].limit:g} % of {name}" for name in missed}
    raise OutOfReach(
        f"{' and '.join(asked.values())} cannot be removed: with as few entities as allowed in "
        f"each layer, {' and '.join(missed.values())} go"
    )

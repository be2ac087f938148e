r"""The check of a certificate: what it proves, from the problem's own data and nothing else.

**Theorem.**  Let every record of the tree be admissible (`tree`), and let b be the least of the bounds of its
leaves and of the far sides of its fixings, each computed as in `bounds`.  Then every solution of

.. math::  \min\; \frac1n \sum_m \ell(x_m w, y_m) + \lambda \sum_i u_i [\alpha \lVert w^i\rVert^2
           + (1-\alpha) y_i], \qquad |w^i_j| \le M_i y_i,\; y_i \in \{0, 1\}

that obeys the problem's rules and signs costs at least b; and it costs at least 0, for no term is negative.
*Proof.*  A solution follows the tree from the root: at a branching it takes the side that its y says; at a
fixing it agrees, or it is on the far side, whose bound is in the minimum.  It ends in a leaf or on a far
side, and the bound there, or one inherited from above it, holds for it.  To a record whose fixings leave no
solution that obeys the rules, none comes.

**Roundings.**  X, y, lambda, u, alpha and M are taken as the floats they are.  Everything computed from them
is enclosed (`rounding`): sums over samples and columns, the forming of X'X/n, Cholesky's method, the prices.
A stated bound has to lie below b as it comes out, rounded down: no allowance.

**Allowance.**  The objective is what the weights cost at most, its rounding included; the stated one may
differ from it by `ROUNDINGS` times its own rounding, and by `ALLOWANCE` of the loss at zero at most: so much
can the order of a sum change on another machine.  There is no absolute term: a problem in other units has the
same verdict.  Numbers so large or small that their squares leave the range of float64 are refused (`data`).

**An objective of zero.**  A relative gap says nothing of a solution whose cost is 0 but for rounding.  Such a
solution is optimal, since none costs less than 0.  So its gap is 0 if 0 is among the values that its cost may
have within its rounding, and if they are all

- below `VANISHING` of the loss at zero: weights that cancel could hide a larger cost in their rounding;
- below the smallest price of an entity, so that what uses one costs more.  A solution that pays a price is
  none that costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.formulations.certificate import relative_gap
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.bounds import Bounds
from spr_or.proof.data import NEGLIGIBLE, Data, data_of
from spr_or.proof.exact import ExactBounds, refuse
from spr_or.proof.losses import size_at_zero, sum_of_losses
from spr_or.proof.rounding import SAFE, UNIT, Array, gamma, total
from spr_or.proof.tree import Evaluate, Record, Rules, Walked, silent, structure, walk

ALLOWANCE = 1e-10
ROUNDINGS = 8  # of the enclosed rounding, which holds for both values
VANISHING = 1e-10


class Stated(NamedTuple):
    """What a certificate claims: weights (P,), indicators (N,), the objective, the bound, the tree."""

    weights: Array
    indicators: Array
    objective: float
    bound: float
    records: list[Record]


def prove(problem: SparseTrainingProblem, records: list[Record], exact: bool = False) -> Walked:
    """The bound that a tree proves for a problem; see the theorem at the top.

    ``exact``: in rational arithmetic, for the squared loss and small problems (``ValueError`` else).
    """
    return _prove(data_of(problem), problem, records, exact)


def _prove(
    data: Data,
    problem: SparseTrainingProblem,
    records: list[Record],
    exact: bool,
    tell: Callable[[int, int], None] = silent,
) -> Walked:
    if exact:
        refuse(problem)
    faults = list(structure(records, data.shape))
    if faults:
        return Walked(-math.inf, faults, {})
    with np.errstate(all="ignore"):
        evaluate: Evaluate = ExactBounds(data, problem, records) if exact else Bounds(data, records)
        rules = Rules(data.must, data.priced, data.most, data.needs, data.forbidden)
        found = walk(records, data.shape, evaluate, rules, tell)
    # Losses and penalties are not negative: 0 is a bound of every tree that is one.
    return found if found.faults else found._replace(bound=max(found.bound, 0.0))


class ProofCheck(NamedTuple):
    """The outcome of a check: whether everything holds, the numbers found, and what was wrong.

    ``vanishes``: the objective is zero but for rounding.
    """

    ok: bool
    objective: float
    bound: float
    problems: list[str]
    vanishes: bool = False

    @property
    def gap(self) -> float:
        """`relative_gap` of objective and bound; 0 where the objective vanishes."""
        return 0.0 if self.vanishes else relative_gap(self.objective, self.bound)


def check(
    problem: SparseTrainingProblem,
    stated: Stated,
    exact: bool = False,
    tell: Callable[[int, int], None] = silent,
) -> ProofCheck:
    """Evaluate the solution and the tree again.

    ``exact``: in rational arithmetic, for the squared loss and small problems (``ValueError`` else); nothing
    is rounded then but the objective.  The bound returned is the one proven here, at most the objective.
    ``tell(done, of)`` hears how many records of the tree are done.
    """
    data = data_of(problem)
    with np.errstate(all="ignore"):
        faults = _solution_faults(data, stated)
        value, error = (math.nan, 0.0) if faults else objective_of(data, problem, stated)
        objective = value + error  # at least what the weights cost
        size = size_at_zero(problem)
        allowance = min(ALLOWANCE * size, ROUNDINGS * error)
    if not faults and not (
        math.isfinite(objective) and abs(objective - stated.objective) <= allowance
    ):
        faults.append(f"the objective is {objective!r}, not {stated.objective!r} as stated")
    bound, wrong, idle = _prove(data, problem, stated.records, exact, tell)
    proven = _float_below(bound)
    faults += wrong
    if not wrong and not stated.bound <= bound:
        faults.append(f"the tree proves the bound {proven!r}, not {stated.bound!r} as stated")
        faults += [f"record {number}: {reason}" for number, reason in list(idle.items())[:3]]
    if not wrong and not math.isnan(objective) and not proven <= objective:
        faults.append(f"the bound {proven!r} lies above the objective {objective!r} of a solution")
    if not stated.bound <= stated.objective:
        faults.append(f"the bound {stated.bound!r} lies above the objective {stated.objective!r}")
    nothing = _is_nothing(problem, stated, value, error)
    return ProofCheck(not faults, objective, min(proven, objective), faults, nothing)


def vanishes(problem: SparseTrainingProblem, stated: Stated) -> bool:
    """Whether a stated solution costs nothing but for rounding; see "An objective of zero" at the top."""
    size = size_at_zero(problem)
    if not stated.objective <= max(VANISHING * size, NEGLIGIBLE):
        return False
    data = data_of(problem)
    with np.errstate(all="ignore"):
        return not _solution_faults(data, stated) and _is_nothing(
            problem, stated, *objective_of(data, problem, stated)
        )


def _is_nothing(problem: SparseTrainingProblem, stated: Stated, value: float, error: float) -> bool:
    if not value <= error:
        return False
    prices = problem.lam * problem.u.numpy() * (1 - problem.alpha)
    if prices[stated.indicators == 1].any():
        return False
    least = min(prices[prices > 0], default=math.inf)
    most = max(VANISHING * size_at_zero(problem), NEGLIGIBLE)
    return value + error <= most and value + error < least


def _float_below(bound: Any) -> float:
    """A bound, which may be a fraction too large or small for a float, as a float not above it."""
    if not bound > -1e300:
        return -math.inf
    if isinstance(bound, float):
        return bound
    return math.nextafter(float(min(bound, 10**300)), -math.inf)


def _solution_faults(data: Data, stated: Stated) -> list[str]:
    weights, y = stated.weights, stated.indicators
    size = sum(at.size for at in data.at)
    if weights.shape != (size,) or not np.isfinite(weights).all():
        return [f"the weights are not {size} finite numbers"]
    if y.shape != (data.priced,) or not ((y == 0) | (y == 1)).all():
        return ["the indicators are not 0 or 1, one for each entity"]
    faults = rule_faults(data, y == 1)
    used = np.concatenate([y, np.ones(len(data.at) - data.priced)])
    counts = np.array([at.size for at in data.at])
    owner = np.repeat(np.arange(len(counts)), counts)
    W = weights[np.concatenate([at.ravel() for at in data.at])]
    outside = ~(np.abs(W) <= (data.M * used)[owner])
    if outside.any():
        at = int(outside.argmax())
        return [f"entity {owner[at]} has a weight of {abs(W[at]):g} outside M y"]
    signed = np.repeat(data.signed[np.concatenate(data.columns)], data.Y.shape[1])
    negative = signed & (W < 0)
    if negative.any():
        i = owner[int(negative.argmax())]
        return [f"entity {i} has a negative weight, which its column must not have"]
    return faults


def rule_faults(data: Data, used: NDArray[np.bool_]) -> list[str]:
    """Which rules of the problem the support ``used`` (N,) breaks."""
    missing = np.flatnonzero(data.must[: data.priced] & ~used)
    faults = [f"entity {i} is required and not used" for i in missing[:3]]
    if data.most is not None and used.sum() > data.most:
        faults.append(f"{used.sum()} entities are used, {data.most} are the most")
    if (data.forbidden == used).all(axis=1).any():
        faults.append("its support is one of those that do not count")
    faults += [
        f"entity {i} is used without entity {p}, which it needs"
        for i, p in data.needs.tolist()
        if used[i] and not used[p]
    ]
    return faults


def objective_of(data: Data, problem: SparseTrainingProblem, stated: Stated) -> tuple[float, float]:
    """The objective of formulation (1) at the stated solution, and how far rounding can put it off."""
    used = np.flatnonzero(np.concatenate([stated.indicators, np.ones(len(data.at) - data.priced)]))
    columns = np.concatenate([data.columns[i] for i in used]) if len(used) else np.arange(0)
    q = data.Y.shape[1]
    parts = [stated.weights[data.at[i]].reshape(-1, q) for i in used]
    W = np.concatenate(parts) if parts else np.zeros((0, q))
    X = data.X[:, columns]
    prediction = X @ W
    off = gamma(len(columns) + 2) * (np.abs(X) @ np.abs(W))
    loss, error = sum_of_losses(data, prediction, off)
    priced = used[used < data.priced]
    weight = problem.lam * problem.u.numpy()[priced]
    squares = np.array([float(np.square(part).sum()) for part in parts[: len(priced)]])
    penalty, more = total(weight * (problem.alpha * squares + (1 - problem.alpha)))
    more += gamma(data.k * q + 8) * abs(penalty)
    value = loss / data.n + penalty
    if data.loss == "squared" and not (data.Y.any() or stated.weights.any() or len(used)):
        return 0.0, 0.0  # nothing to explain, and nothing used for it: no rounding either
    return value, SAFE * (error / data.n + more) + 4 * UNIT * abs(value)

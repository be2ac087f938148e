r"""The mixed-integer optimum by training on every support: no relaxation, no proximal operator.

The supports come in the order of what their indicators cost, c(S) = lambda (1 - alpha) sum_S u_i.
Since a smaller support never fits better, every support costs at least c(S) + F, with F a lower
bound on the loss and ridge of the full support.  The enumeration
therefore ends at the first S whose c(S) + F reaches the incumbent. If it is stopped before, c(S) + F
of the next S is the bound.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers import fixed_support
from spr_or.solvers.certificate import Certificate, Solved, certify
from spr_or.solvers.linear_data import linear_data
from spr_or.solvers.time_limit import TimeLimit

MAX_ENTITIES = 20


def solve(problem: SparseTrainingProblem, time_limit: float | None = None) -> Certificate:
    """The optimum of (1)-(3) for a linear problem, by up to 2^N calls of `fixed_support.fit`.

    Raises ``ValueError`` for a network and for more than 20 entities.

    >>> X = [[1.0, 0.0], [0.0, 1.0]]
    >>> p = SparseTrainingProblem.linear(X, [1, 0], [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> certificate = solve(p)
    >>> certificate.indicators.tolist(), round(certificate.objective, 6), certificate.status
    ([1.0, 0.0], 0.095455, 'optimal')
    """
    clock = TimeLimit(time_limit)
    cost = linear_data(problem, "enumeration").cost
    count = len(cost)
    if count > MAX_ENTITIES:
        raise ValueError(
            f"enumeration visits 2^N supports and takes N <= {MAX_ENTITIES} entities, got {count}: "
            "use spr_or.solvers.outer_approximation or branch and bound"
        )
    best, best_y = fixed_support.SupportFit(torch.zeros(0), float("inf"), 0.0), torch.zeros(0)
    bound, status = 0.0, "optimal"  # no loss is negative
    try:
        # Row s of `supports` holds the digits of s.
        supports = (np.arange(2**count, dtype=np.int32)[:, None] >> np.arange(count)) & 1
        costs = supports @ cost
        proven = float("inf")
        full = fixed_support.fit(problem, torch.ones(count))
        floor = full.bound - float(cost.sum())
        best, best_y = full, torch.ones(count)
        for s in np.argsort(costs, kind="stable"):
            bound = min(proven, floor + float(costs[s]))
            if floor + costs[s] >= best.value:
                break
            if clock.spent:
                status = "time_limit"
                break
            y = torch.from_numpy(supports[s])
            found = fixed_support.fit(problem, y)
            proven = min(proven, found.bound)
            if found.value < best.value:
                best, best_y = found, y
        else:
            bound = proven
    except KeyboardInterrupt:
        status = "interrupted"
    solved = len(best_y) > 0
    return certify(
        problem,
        Solved("enumeration", "integer", "enumeration", version("spr-or")),
        status=status,
        bound=bound,
        seconds=clock.seconds,
        weights=best.weights if solved else None,
        indicators=best_y if solved else None,
    )

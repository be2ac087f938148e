"""The mixed-integer optimum of a network by solving every support.

With y fixed, only the ReLUs and the products of weights remain to be branched on. So the result
depends on the encoding of the network, but not on how the formulation treats the indicators.
"""

from __future__ import annotations

import itertools
import math

import torch

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers import scip
from spr_or.solvers.certificate import Certificate, Solved, certify
from spr_or.solvers.time_limit import TimeLimit

MAX_ENTITIES = 6


def solve(problem: SparseTrainingProblem, time_limit: float | None = None) -> Certificate:
    """The optimum of (1)-(3) for a network: SCIP on each of the 2^N supports.

    The bound is the smallest over the supports; a support that the time limit (seconds) left
    out has the bound zero, since no loss is negative.  Raises ``ValueError`` for a linear problem, which
    `spr_or.solvers.enumeration` solves, and for more than 6 entities.
    """
    if problem.convex:
        raise ValueError("network_enumeration is for networks: use spr_or.solvers.enumeration")
    count = len(problem.entities)
    if count > MAX_ENTITIES:
        raise ValueError(
            f"enumeration of a network takes N <= {MAX_ENTITIES} entities, got {count}"
        )
    clock = TimeLimit(time_limit)
    best: Certificate | None = None
    bound, status = math.inf, "optimal"
    for y in itertools.product((0.0, 1.0), repeat=count):
        if clock.spent:
            bound, status = min(bound, 0.0), "time_limit"
            break
        left = None if time_limit is None else clock.left()
        found = scip.solve(
            problem, "bigm", time_limit=left, fixed=torch.tensor(y, dtype=torch.float64)
        )
        bound = min(bound, found.bound)
        if best is None or found.objective < best.objective:
            best = found
        if found.status in ("time_limit", "interrupted"):
            status = found.status
        if found.status == "interrupted":
            bound = min(bound, 0.0)
            break
    return certify(
        problem,
        Solved("enumeration", "integer", "scip by support", best.version if best else ""),
        status=status,
        bound=bound,
        seconds=clock.seconds,
        weights=best.weights if best else None,
        indicators=best.indicators if best else None,
    )

"""Verification: every formulation by every solver that applies, checked against each other.

big-M relaxation <= perspective relaxation = projected optimum <= MIP optimum: a ladder of bounds.
Each of these values (a rung of the ladder) is computed by solvers that share no code, and
re-evaluated outside them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from spr_or.formulations import projected
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.certificate import Certificate
from spr_or.verification import claims
from spr_or.verification.ladder import Ladder, Rung, formulation_name

MAX_ENUMERATED = 10  # entities of a linear model: 2^10 convex problems
MAX_ENUMERATED_NETWORK = 3  # entities of a network: 2^3 nonconvex problems


def verify(
    problem: SparseTrainingProblem,
    *,
    time_limit: float = 60.0,
    variant: str = "exact",
    progress: Callable[[str], None] | None = None,
) -> Ladder:
    """Compute the bounds of a problem by every solver that applies, and check every claim.

    Parameters
    ----------
    time_limit : seconds for each solver; one that is cut short keeps an honest gap, and the claims are
        then checked on the intervals [bound, value]
    variant : the closed form that is claimed to be the projection (`spr_or.formulations.projected.VARIANTS`);
        anything but "exact" makes claims fail, which is the point of being able to ask
    progress : called with "formulation integrality, solver" before each computation

    Returns a `Ladder`; ``ladder.ok`` tells whether every claim holds.  Ctrl-C returns what was found
    so far, with ``ladder.interrupted``.  Raises ``ValueError`` for an unknown variant.

    >>> X, y = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [1.0, 0.0, 1.0]
    >>> p = SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> verify(p).ok
    True
    """
    if variant not in projected.VARIANTS:
        known = ", ".join(projected.VARIANTS)
        raise ValueError(f"variant must be one of {known}, got {variant!r}")
    rungs: list[Rung] = []
    stopped = False
    try:
        for label, solve in solvers(problem, time_limit):
            if progress:
                progress(label)
            rungs.append(Rung.of(solve()))
            if rungs[-1].status == "interrupted":
                break
    except KeyboardInterrupt:
        stopped = True
    if variant != "exact":
        rungs = [_restated(problem, rung, variant) for rung in rungs]
    relaxation = min(
        (r for r in rungs if _is_solved_perspective_relaxation(r)),
        key=lambda r: r.value,
        default=None,
    )
    printed = math.nan
    if relaxation is not None:
        printed = float(problem.projected_objective(relaxation.certificate.weights, "printed"))
    ladder = Ladder(
        problem.name, problem.convex, len(problem.entities), rungs, [], printed, stopped
    )
    if ladder.interrupted:
        return ladder
    try:
        ladder.checks.extend(claims.check_all(problem, ladder, relaxation, variant))
    except KeyboardInterrupt:  # a claim asks a solver too
        return dataclasses.replace(ladder, stopped=True)
    return ladder


def solvers(
    problem: SparseTrainingProblem, time_limit: float
) -> Iterator[tuple[str, Callable[[], Certificate]]]:
    """(label, computation) for every formulation and solver that applies to the problem."""
    from spr_or.solvers import (
        conic,
        enumeration,
        highs,
        network_enumeration,
        network_sgd,
        outer_approximation,
        projected_first_order,
        scip,
    )

    limited: dict[str, Any] = {"time_limit": time_limit}
    formulations = ("bigm", "perspective")
    if not problem.convex:
        for relaxed in (True, False):
            for formulation in formulations:
                yield (
                    f"{formulation_name(formulation)} {'relaxed' if relaxed else 'integer'}, SCIP",
                    partial(
                        scip.solve, problem, formulation=formulation, relaxed=relaxed, **limited
                    ),
                )
        yield "projected relaxed, proximal SGD", partial(network_sgd.solve, problem)
        if len(problem.entities) <= MAX_ENUMERATED_NETWORK:
            yield (
                "enumeration, SCIP on each support",
                partial(network_enumeration.solve, problem, **limited),
            )
        return
    if highs.applies(problem, relaxed=True):
        yield "big-M relaxed, HiGHS", partial(highs.solve, problem, relaxed=True, **limited)
    for formulation in formulations:
        yield (
            f"{formulation_name(formulation)} relaxed, Clarabel",
            partial(conic.solve, problem, formulation=formulation, **limited),
        )
    yield (
        "perspective relaxed, cut loop",
        partial(outer_approximation.solve, problem, relaxed=True, **limited),
    )
    yield "projected relaxed, first order", partial(projected_first_order.solve, problem, **limited)
    if highs.applies(problem, relaxed=False):
        yield "big-M integer, HiGHS", partial(highs.solve, problem, relaxed=False, **limited)
    for formulation in formulations:
        yield (
            f"{formulation_name(formulation)} integer, SCIP",
            partial(scip.solve, problem, formulation=formulation, relaxed=False, **limited),
        )
    yield (
        "perspective integer, cut loop",
        partial(outer_approximation.solve, problem, relaxed=False, **limited),
    )
    if len(problem.entities) <= MAX_ENUMERATED:
        yield "enumeration", partial(enumeration.solve, problem, **limited)


def _restated(problem: SparseTrainingProblem, rung: Rung, variant: str) -> Rung:
    """A projected value as another variant of the closed form would have it."""
    if rung.formulation != "projected":
        return rung
    value = float(problem.projected_objective(rung.certificate.weights, variant))
    return dataclasses.replace(rung, value=value)


def _is_solved_perspective_relaxation(rung: Rung) -> bool:
    named = (rung.formulation, rung.integrality) == ("perspective", "relaxed")
    return named and rung.closed

"""Verification: every formulation by every solver that applies, checked against each other.

big-M relaxation <= perspective relaxation = projected optimum <= MIP optimum: a ladder of bounds.
Each of these values (a rung of the ladder) is computed by solvers that share no code, and
re-evaluated outside them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

from spr_or.formulations import projected
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.verification import claims
from spr_or.verification.answers import ask, proof_check
from spr_or.verification.ladder import Check, Ladder, Rung, scale_of
from spr_or.verification.normalised import normalised
from spr_or.verification.routes import Route, routes


def verify(
    problem: SparseTrainingProblem,
    *,
    time_limit: float = 60.0,
    variant: str = "exact",
    progress: Callable[[str], None] | None = None,
    routes_of: Callable[[SparseTrainingProblem, float], Iterable[Route]] | None = None,
) -> Ladder:
    """Compute the bounds of a problem by every solver that applies, and check every claim.

    Parameters
    ----------
    time_limit : seconds for each solver; one that is cut short keeps an honest gap, and what cannot be
        decided from the interval [bound, value] was not tested
    variant : the closed form that is claimed to be the projection (`spr_or.formulations.projected.VARIANTS`);
        anything but "exact" makes claims fail, which is the point of being able to ask
    progress : called with "formulation integrality, solver" before each computation
    routes_of : gives the routes for a problem and a time limit, by default every one that applies
        (`spr_or.verification.routes`); a claim about a relaxation is made only if a route computes one

    Returns a `Ladder`; ``ladder.ok`` tells whether every claim was tested and holds,
    ``ladder.verdict`` which of the three it is.  A solver that raises or returns nonsense is named in
    a claim of its own and takes part in no other.  Ctrl-C returns what was found so far, with
    ``ladder.interrupted``.  Raises ``ValueError`` for an unknown variant.

    The solvers get the problem `normalised`, so that their absolute tolerances mean the same on every
    problem; values, bounds and claims are about the problem as it is.

    >>> X, y = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [1.0, 0.0, 1.0]
    >>> p = SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> verify(p).ok
    True
    """
    if variant not in projected.VARIANTS:
        known = ", ".join(projected.VARIANTS)
        raise ValueError(f"variant must be one of {known}, got {variant!r}")
    scale = scale_of(problem)
    inner, units = normalised(problem)
    rungs: list[Rung] = []
    checks: list[Check] = []
    stopped = False
    try:
        for route in (routes_of or routes)(inner, time_limit):
            if progress:
                progress(route.label)
            rung, check, returned = ask(route, problem, units, scale)
            rungs.append(rung)
            if rung.status == "interrupted":
                break
            checks.append(check)
            if route.check is not None:
                checks.append(proof_check(route, returned))
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
        problem.name, problem.convex, len(problem.entities), rungs, checks, printed, stopped, scale
    )
    if ladder.interrupted:
        return ladder
    try:
        for check in claims.check_all(problem, ladder, relaxation, variant):
            checks.append(check)
            if check.reason == claims.INTERRUPTED:
                return dataclasses.replace(ladder, stopped=True)
    except KeyboardInterrupt:  # a claim asks a solver too
        return dataclasses.replace(ladder, stopped=True)
    return dataclasses.replace(ladder, notes=list(claims.notes(problem, ladder)))


def _restated(problem: SparseTrainingProblem, rung: Rung, variant: str) -> Rung:
    """A projected value as another variant of the closed form would have it."""
    if (rung.formulation, rung.integrality) != ("projected", "relaxed") or rung.fault:
        return rung
    value = float(problem.projected_objective(rung.certificate.weights, variant))
    return dataclasses.replace(rung, value=value)


def _is_solved_perspective_relaxation(rung: Rung) -> bool:
    named = (rung.formulation, rung.integrality) == ("perspective", "relaxed")
    return named and rung.closed and not rung.fault

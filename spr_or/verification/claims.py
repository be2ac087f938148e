"""The claims that `spr_or.verification.ladder_of_bounds` checks, each a function that gives `Check`s.

Where every solver has closed its gap the claims compare values; one that a time limit cut short takes
part with its interval [bound, value], so that a claim fails only when it is refuted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from spr_or.formulations import projected
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.verification.ladder import Check, Ladder, Rung, formulation_name, tolerance

INDICATOR_TOLERANCE = 2e-3  # a value flat in y within 1e-9 leaves y free within about 1e-4
GRADIENT_TOLERANCE = 1e-5
DUALS_TOLERANCE = 1e-3
INTEGRALITY_TOLERANCE = 1e-6  # of the MIP solvers: they take a smaller indicator for zero


def check_all(
    problem: SparseTrainingProblem, ladder: Ladder, relaxation: Rung | None, variant: str
) -> Iterator[Check]:
    """Every claim that applies; ``relaxation`` is the perspective relaxation to look at closely."""
    yield from bounds_below_values(ladder)
    yield at_most(ladder, "big-M relaxation <= perspective relaxation", "bigm", "perspective")
    yield from agreement(ladder)
    if problem.convex:
        yield same(
            "perspective relaxation = projected optimum",
            ladder.of("relaxed", "perspective", "projected"),
        )
    else:
        yield above_bound(ladder)
    below = ("perspective", "projected") if problem.convex else ("perspective",)
    for formulation in below:
        yield at_most(ladder, f"{formulation} relaxation <= MIP optimum", formulation, None)
    if relaxation is not None:
        yield projection_value(problem, relaxation, variant)
        yield projection_indicator(problem, relaxation)
        yield finite_differences(problem, relaxation, variant)
        if problem.convex:
            yield cone_duals(problem, variant)
    yield from bound_on_weights(problem, ladder)
    yield printed_variant(ladder)


def bounds_below_values(ladder: Ladder) -> Iterator[Check]:
    """A lower bound of any solver lies below the value of every solver of the same optimum."""
    worst = math.inf
    place = "no bound was proven"
    for a, b in itertools.product(ladder.rungs, repeat=2):
        if a.integrality == b.integrality and _same_optimum(a, b) and math.isfinite(a.bound):
            slack = b.value - a.bound + tolerance(b.value)
            if slack < worst:
                worst, place = slack, f"tightest: {a.label} below {b.label}"
    yield Check(f"every bound <= every value of its optimum ({place})", not worst < 0, worst)


def _same_optimum(a: Rung, b: Rung) -> bool:
    """Integer formulations share one optimum; relaxed ones do within big-M, and within perspective."""
    if a.integrality == "integer":
        return True
    return (a.formulation == "bigm") == (b.formulation == "bigm") and b.formulation != "projected"


def at_most(ladder: Ladder, claim: str, lower: str, upper: str | None) -> Check:
    """A relaxation lies below a tighter one, or below the MIP (``upper`` None)."""
    below = ladder.proven("relaxed", lower)
    above = ladder.value("integer") if upper is None else ladder.value("relaxed", upper)
    if not (math.isfinite(below) and math.isfinite(above)):
        return Check(f"{claim} (not tested: no bound or no solution)", True, math.inf)
    slack = above - below + tolerance(above)
    return Check(claim, slack >= 0, slack)


def agreement(ladder: Ladder) -> Iterator[Check]:
    """Solvers of the same optimum agree."""
    for formulation in ("bigm", "perspective"):
        rungs = ladder.of("relaxed", formulation)
        if len(rungs) > 1:
            yield same(
                f"same {formulation_name(formulation)} relaxation by {_solvers(rungs)}", rungs
            )
    rungs = ladder.of("integer")
    if len(rungs) > 1:
        yield same(f"same MIP optimum by {len(rungs)} solvers: {_solvers(rungs)}", rungs)


def same(claim: str, rungs: list[Rung]) -> Check:
    """All closed values agree, and no bound refutes a value."""
    slack = math.inf
    for a, b in itertools.combinations(rungs, 2):
        allowed = tolerance(a.value, b.value)
        if a.closed and b.closed:
            slack = min(slack, allowed - abs(a.value - b.value))
        else:
            slack = min(slack, b.value - a.bound + allowed, a.value - b.bound + allowed)
    still_open = [rung.solver for rung in rungs if not rung.closed]
    if still_open:
        claim += f" (as intervals: {', '.join(still_open)} not closed)"
    return Check(claim, slack >= 0, slack)


def above_bound(ladder: Ladder) -> Check:
    """Training cannot beat the global optimum of the projected problem that it descends."""
    bound = ladder.proven("relaxed", "perspective")
    found = ladder.value("relaxed", "projected")
    excess = found - bound
    claim = (
        f"global optimum of the projected problem <= best SGD run (which lands {excess:.2g} above)"
    )
    if not math.isfinite(excess):
        return Check(
            "global optimum of the projected problem <= best SGD run (not tested)", True, math.inf
        )
    slack = excess + tolerance(found)
    return Check(claim, slack >= 0, slack)


def projection_value(problem: SparseTrainingProblem, relaxation: Rung, variant: str) -> Check:
    """The closed form at the relaxation's weights is the relaxation's value."""
    closed_form = float(problem.projected_objective(relaxation.certificate.weights, variant))
    slack = tolerance(closed_form) - abs(closed_form - relaxation.value)
    return Check(
        "closed form z at the relaxation's weights = the relaxation's value", slack >= 0, slack
    )


def projection_indicator(problem: SparseTrainingProblem, relaxation: Rung) -> Check:
    """y~ is the relaxation's y, for entities whose weights are not all (nearly) zero.

    At alpha = 1 the indicator costs nothing and y may be anything where w = 0; a weight within the
    solver's tolerance of zero says as little.
    """
    rows = problem.entities.rows(relaxation.certificate.weights)
    closed_form = projected.indicator(rows, problem.alpha, problem.M)
    matters = rows.abs().amax(-1) > 1e-4 * problem.M
    distance = torch.where(matters, (closed_form - relaxation.certificate.indicators).abs(), 0.0)
    slack = INDICATOR_TOLERANCE - float(distance.max())
    return Check("closed-form indicator = the relaxation's y", slack >= 0, slack)


def finite_differences(problem: SparseTrainingProblem, relaxation: Rung, variant: str) -> Check:
    """projected.gradient against central differences of the closed form claimed to be exact.

    Taken near the relaxation's weights, off the kinks: entities whose two largest weights nearly
    tie, and coordinates near zero, are nudged by the random perturbation.
    """
    generator = torch.Generator().manual_seed(0)
    rows = problem.entities.rows(relaxation.certificate.weights)
    real = problem.entities.index < problem.entities.n_parameters
    noise = torch.rand(rows.shape, generator=generator, dtype=rows.dtype) * 0.2 + 0.05
    rows = torch.where(real, rows * 0.7 + noise * problem.M.unsqueeze(-1), 0.0)
    analytic = projected.gradient(rows, problem.alpha, problem.M)
    worst = 0.0
    for j in range(rows.shape[1]):
        h = 1e-6 * problem.M * real[:, j]
        ahead, behind = rows.clone(), rows.clone()
        ahead[:, j] += h
        behind[:, j] -= h
        difference = projected.value(ahead, problem.alpha, problem.M, variant) - projected.value(
            behind, problem.alpha, problem.M, variant
        )
        numeric = torch.where(real[:, j], difference / (2 * h.clamp(min=1e-300)), 0.0)
        scale = 1 + analytic.abs().amax(-1)
        worst = max(worst, float(((numeric - analytic[:, j]).abs() / scale).max()))
    slack = GRADIENT_TOLERANCE - worst
    return Check("gradient of the closed form = finite differences", slack >= 0, slack)


def cone_duals(problem: SparseTrainingProblem, variant: str) -> Check:
    """At the relaxation's optimum the closed gradient is what the cone's multipliers say."""
    from spr_or.solvers import conic

    certificate, slopes = conic.solve_with_duals(problem)
    if certificate.status == "interrupted":
        raise KeyboardInterrupt
    rows = problem.entities.rows(certificate.weights)
    price = (problem.lam * problem.u).unsqueeze(-1)
    closed_form = price * projected.gradient(rows, problem.alpha, problem.M, variant)
    inside = (rows.abs().amax(-1) < problem.M * (1 - 1e-5)) & (
        rows.abs().amax(-1) > 1e-3 * problem.M
    )
    distance = (closed_form - slopes).abs().amax(-1)
    size = 1 + slopes.abs().amax(-1)
    worst = float(torch.where(inside & _smooth(rows), distance / size, 0.0).max())
    slack = DUALS_TOLERANCE - worst
    return Check(
        "gradient of the closed form = the duals of the perspective cone", slack >= 0, slack
    )


def _smooth(rows: torch.Tensor) -> torch.Tensor:
    """Entities whose largest weight is attained once: elsewhere z has many subgradients."""
    if rows.shape[-1] == 1:
        return torch.ones(rows.shape[:-1], dtype=torch.bool)
    first, second = rows.abs().topk(2, dim=-1).values.unbind(-1)
    return first - second > 1e-3 * first


def bound_on_weights(problem: SparseTrainingProblem, ladder: Ladder) -> Iterator[Check]:
    """Whether M is active is said; an M so loose that solvers may cheat with y ~ 0 is refused."""
    best = min(ladder.of("integer"), key=lambda r: r.value, default=None)
    if best is None or not math.isfinite(best.value):
        return
    active = best.certificate.m_active.nonzero().flatten().tolist()
    peaks = problem.entities.rows(best.certificate.weights).abs().amax(-1) / problem.M
    if active:
        names = ", ".join(map(str, active))
        yield Check(
            f"M is active at the MIP optimum, in entities {names}: optimal for this M, "
            f"a larger one may do better (no failure)",
            True,
            0.0,
        )
    else:
        yield Check("M is not active at the MIP optimum", True, 1 - float(peaks.max()))
    chosen = peaks[(best.certificate.indicators > 0.5) & (peaks > 0)]
    if len(chosen):
        slack = float(chosen.min()) - INTEGRALITY_TOLERANCE
        yield Check(
            f"no chosen entity has ||w||_inf / M inside the integrality tolerance "
            f"(smallest {float(chosen.min()):.1e})",
            slack >= 0,
            slack,
        )


def printed_variant(ladder: Ladder) -> Check:
    """Whether the printed closed form exceeds the MIP optimum is stated: no relaxation does."""
    slack = ladder.value("integer") - ladder.printed
    if slack < -tolerance(ladder.printed):
        claim = "the printed closed form exceeds the MIP optimum, so it is not a relaxation"
    else:
        claim = "the printed closed form does not exceed the MIP optimum here"
    return Check(
        f"{claim} ({ladder.printed:.6g} against {ladder.value('integer'):.6g})", True, slack
    )


def _solvers(rungs: list[Rung]) -> str:
    return ", ".join(
        rung.solver
        if rung.solver == rung.formulation
        else f"{formulation_name(rung.formulation)} {rung.solver}"
        for rung in rungs
    )

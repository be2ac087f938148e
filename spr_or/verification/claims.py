"""The claims that `spr_or.verification.ladder_of_bounds` checks, each a function that gives `Check`s.

A claim about optima is decided by intervals: [bound, value] of each rung, a point where the gap is
closed.  What holds for every optimum in the intervals holds, what holds for none is refuted, and the
rest was not tested.  Every tolerance is relative: to the values compared, to the loss at zero weights,
or to the gradient there.  A comparison with nan says "not tested", never "holds".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from spr_or.formulations import perspective, projected
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.verification.ladder import Check, Ladder, Rung, formulation_name, verdict_of
from spr_or.verification.normalised import normalised

INDICATOR_TOLERANCE = 2e-3  # a value flat in y within 1e-9 leaves y free within about 1e-4
FLATNESS = 1e-8  # what the solvers' tolerances leave of a penalty, relative to the loss at zero
GRADIENT_TOLERANCE = 1e-5
FORMULA_TOLERANCE = 1e-12  # between two ways to evaluate one formula in float64
DUALS_TOLERANCE = 1e-3
INTEGRALITY_TOLERANCE = 1e-6  # of the MIP solvers: they take a smaller indicator for zero
INTERRUPTED = "interrupted by Ctrl-C"  # the reason of a claim whose solver was stopped
_STEPS = 100  # of the search for the best indicator: to rounding


def check_all(
    problem: SparseTrainingProblem, ladder: Ladder, relaxation: Rung | None, variant: str
) -> Iterator[Check]:
    """Every claim that applies; ``relaxation`` is the perspective relaxation to look at closely."""
    yield bounds_below_values(ladder)
    if _relaxed(ladder):
        yield at_most(ladder, "big-M relaxation <= perspective relaxation", "bigm", "perspective")
    yield from agreement(ladder)
    if _relaxed(ladder):
        yield from _about_relaxations(problem, ladder, relaxation, variant)
    yield least_penalty(problem, relaxation, variant)
    yield finite_differences(problem, relaxation, variant)
    if problem.convex:
        yield from cone_duals(problem, ladder, variant)
    yield from indicators_resolved(problem, ladder)
    if problem.alpha < 1 - 1e-6:  # at 1 the printed form is the exact one
        yield printed_variant(problem, relaxation)


def _relaxed(ladder: Ladder) -> bool:
    """Whether a relaxation was to be computed at all."""
    return any(rung.integrality == "relaxed" for rung in ladder.rungs)


def _about_relaxations(
    problem: SparseTrainingProblem, ladder: Ladder, relaxation: Rung | None, variant: str
) -> Iterator[Check]:
    if problem.convex:
        yield same(
            ladder,
            "perspective relaxation = projected optimum",
            ladder.of("relaxed", "perspective", "projected"),
            needed=("perspective", "projected"),
        )
    else:
        yield above_bound(ladder)
    below = ("perspective", "projected") if problem.convex else ("perspective",)
    for formulation in below:
        yield at_most(ladder, f"{formulation} relaxation <= MIP optimum", formulation, None)
    yield projection_value(problem, ladder, relaxation, variant)
    yield projection_indicator(problem, ladder, relaxation)


def _compared(claim: str, slack: float, reason: str = "") -> Check:
    """A claim that is decided by ``slack`` >= 0; the reason is told unless it holds."""
    verdict = verdict_of(slack)
    if verdict == "holds":
        return Check(claim, verdict, slack)
    return Check(claim, verdict, slack, reason or ("nan" if math.isnan(slack) else ""))


def _untested(claim: str, reason: str) -> Check:
    return Check(claim, "not tested", math.nan, reason)


def bounds_below_values(ladder: Ladder) -> Check:
    """The lower bound of a solver lies below the value that every other solver of the optimum has."""
    pairs = [
        (b.value - a.bound + ladder.tolerance(b.value), a, b)
        for a, b in itertools.permutations(ladder.of("relaxed") + ladder.of("integer"), 2)
        if a.integrality == b.integrality and _same_optimum(a, b) and a.bound > -math.inf
    ]
    claim = "every bound <= every value of its optimum by another solver"
    if not pairs:
        return _untested(claim, "no two solvers to compare")
    slack, a, b = min(pairs, key=lambda pair: pair[0])
    wrong = [
        f"{a.label} {a.bound:.9g} above {b.label} {b.value:.9g}" for s, a, b in pairs if not s >= 0
    ]
    return _compared(f"{claim} (tightest: {a.label} below {b.label})", slack, "; ".join(wrong))


def _same_optimum(a: Rung, b: Rung) -> bool:
    """Integer formulations share one optimum; relaxed ones do within big-M, and within perspective."""
    if a.integrality == "integer":
        return True
    return (a.formulation == "bigm") == (b.formulation == "bigm") and b.formulation != "projected"


def at_most(ladder: Ladder, claim: str, lower: str, upper: str | None) -> Check:
    """The optimum of a relaxation lies below that of a tighter one, or of the MIP (``upper`` None)."""
    below = ladder.of("relaxed", lower)
    above = ladder.of("integer") if upper is None else ladder.of("relaxed", upper)
    missing = [name for name, rungs in (("lower", below), ("upper", above)) if not rungs]
    if missing:
        return _untested(claim, f"no answer for the {' and the '.join(missing)} side")
    least, most = max(r.proven for r in below), min(r.value for r in below)
    floor, ceiling = max(r.proven for r in above), min(r.value for r in above)
    if not ceiling - least + ladder.tolerance(ceiling) >= 0:
        names = f"{_solvers(below)} against {_solvers(above)}"
        return _compared(claim, ceiling - least + ladder.tolerance(ceiling), names)
    slack = floor - most + ladder.tolerance(floor)
    if not slack >= 0:
        return _untested(claim, f"open: {_open(below + above) or 'the intervals overlap'}")
    return _compared(claim, slack)


def agreement(ladder: Ladder) -> Iterator[Check]:
    """Solvers of the same optimum agree; an optimum that one route has is compared elsewhere."""
    for formulation in ("bigm", "perspective"):
        asked = [
            r for r in ladder.rungs if (r.formulation, r.integrality) == (formulation, "relaxed")
        ]
        if len(asked) > 1:
            rungs = ladder.of("relaxed", formulation)
            name = formulation_name(formulation)
            yield same(ladder, f"same {name} relaxation by {_solvers(rungs)}", rungs)
    rungs = ladder.of("integer")
    yield same(ladder, f"same MIP optimum by {len(rungs)} solvers: {_solvers(rungs)}", rungs)


def same(ladder: Ladder, claim: str, rungs: list[Rung], needed: tuple[str, ...] = ()) -> Check:
    """All closed values agree and no bound refutes a value; open rungs leave it untested.

    ``needed``: formulations that must be among those compared.
    """
    slack, wrong = math.inf, []
    for a, b in itertools.combinations(rungs, 2):
        allowed = ladder.tolerance(a.value, b.value)
        if a.closed and b.closed:
            left = allowed - abs(a.value - b.value)
        else:
            left = min(b.value - a.bound, a.value - b.bound) + allowed
        if not left >= 0:
            wrong.append(f"{a.label} {a.value:.9g}, {b.label} {b.value:.9g}")
        slack = min(slack, left)
    if wrong:
        return Check(claim, "refuted", slack, "; ".join(wrong))
    missing = sorted(set(needed) - {rung.formulation for rung in rungs})
    if missing:
        return _untested(claim, f"no answer for {', '.join(map(formulation_name, missing))}")
    if len(rungs) < 2:
        return _untested(claim, "fewer than two answers to compare")
    if _open(rungs):
        return _untested(claim, f"open: {_open(rungs)}")
    return _compared(claim, slack)


def above_bound(ladder: Ladder) -> Check:
    """Training cannot beat the global optimum of the projected problem that it descends."""
    claim = "global optimum of the projected problem <= best SGD run"
    relaxed, found = ladder.of("relaxed", "perspective"), ladder.of("relaxed", "projected")
    if not relaxed or not found:
        return _untested(claim, "no answer for one of them")
    bound, value = max(r.proven for r in relaxed), min(r.value for r in found)
    slack = value - bound + ladder.tolerance(value)
    if slack >= 0 and not any(r.closed for r in relaxed):
        return _untested(claim, f"open: {_open(relaxed)}")
    return _compared(
        f"{claim} (which lands {value - bound:.2g} above)", slack, f"{value:.9g} < {bound:.9g}"
    )


_NO_RELAXATION = "the perspective relaxation was not solved"


def projection_value(
    problem: SparseTrainingProblem, ladder: Ladder, relaxation: Rung | None, variant: str
) -> Check:
    """The closed form at the relaxation's weights is the relaxation's value."""
    claim = "closed form z at the relaxation's weights = the relaxation's value"
    if relaxation is None:
        return _untested(claim, _NO_RELAXATION)
    closed_form = float(problem.projected_objective(relaxation.certificate.weights, variant))
    slack = ladder.tolerance(closed_form, relaxation.value) - abs(closed_form - relaxation.value)
    return _compared(claim, slack, f"{closed_form:.9g} against {relaxation.value:.9g}")


def projection_indicator(
    problem: SparseTrainingProblem, ladder: Ladder, relaxation: Rung | None
) -> Check:
    """y~ is the relaxation's y, or as good to the accuracy that the relaxation was solved to.

    Where the penalty hardly depends on y (w = 0 and alpha = 1, or a price far below the loss), the
    relaxation's y can only be compared by what it costs; y~ must never cost more.
    """
    claim = "closed-form indicator = the relaxation's y"
    if relaxation is None:
        return _untested(claim, _NO_RELAXATION)
    rows = problem.entities.rows(relaxation.certificate.weights)
    y = relaxation.certificate.indicators
    closed_form = projected.indicator(rows, problem.alpha, problem.M)
    price = problem.lam * problem.u
    cost = price * perspective.penalty(rows, y, problem.alpha)
    least = price * perspective.penalty(rows, closed_form, problem.alpha)
    left = max(0.0, relaxation.value - relaxation.bound) + FLATNESS * ladder.scale
    dearer = FORMULA_TOLERANCE * cost - (least - cost)
    as_good = torch.maximum(
        1 - (closed_form - y).abs() / INDICATOR_TOLERANCE, 1 - (cost - least) / left
    )
    slack = float(torch.minimum(as_good, dearer).min())
    worst = (closed_form - y).abs()
    return _compared(claim, slack, f"they differ by {float(worst.max()):.3g}")


def least_penalty(problem: SparseTrainingProblem, relaxation: Rung | None, variant: str) -> Check:
    """The closed form is the least of the perspective penalty over y, found by search."""
    rows = _points(problem, relaxation)
    least = _searched(problem, rows)
    z = projected.value(rows, problem.alpha, problem.M, variant)
    slack = FORMULA_TOLERANCE - float(((z - least).abs() / least).max())
    return _compared("closed form z = the least penalty over y, by search", slack)


def _searched(problem: SparseTrainingProblem, rows: Tensor) -> Tensor:
    """min over ||w||_inf / M <= y <= 1 of the perspective penalty, convex in y, by thirds."""
    low, high = rows.abs().amax(-1) / problem.M, torch.ones_like(problem.M)
    best = torch.minimum(
        perspective.penalty(rows, low, problem.alpha),
        perspective.penalty(rows, high, problem.alpha),
    )
    for _ in range(_STEPS):
        third = (high - low) / 3
        a = perspective.penalty(rows, low + third, problem.alpha)
        b = perspective.penalty(rows, high - third, problem.alpha)
        best = torch.minimum(best, torch.minimum(a, b))
        left = a <= b
        low, high = torch.where(left, low, low + third), torch.where(left, high - third, high)
    return best


def _points(problem: SparseTrainingProblem, relaxation: Rung | None) -> Tensor:
    """Rows (N, k_max) inside the box, near the relaxation's weights (or zero) and off the kinks.

    Entities whose two largest weights nearly tie, and coordinates near zero, are moved by chance.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(problem.entities.index.shape, dtype=torch.float64)
    if relaxation is not None:
        rows = problem.entities.rows(relaxation.certificate.weights)
    real = problem.entities.index < problem.entities.n_parameters
    noise = torch.rand(rows.shape, generator=generator, dtype=rows.dtype) * 0.2 + 0.05
    return torch.where(real, rows * 0.7 + noise * problem.M.unsqueeze(-1), 0.0)


def finite_differences(
    problem: SparseTrainingProblem, relaxation: Rung | None, variant: str
) -> Check:
    """projected.gradient against central differences of the closed form claimed to be exact."""
    rows = _points(problem, relaxation)
    real = problem.entities.index < problem.entities.n_parameters
    analytic = projected.gradient(rows, problem.alpha, problem.M)
    scale = analytic.abs().amax(-1)
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
        off = torch.where(real[:, j], (numeric - analytic[:, j]).abs() / scale, 0.0)
        worst = _larger(worst, float(off.max()))
    slack = GRADIENT_TOLERANCE - worst
    return _compared(
        "gradient of the closed form = finite differences", slack, f"off by {worst:.3g}"
    )


def cone_duals(problem: SparseTrainingProblem, ladder: Ladder, variant: str) -> Iterator[Check]:
    """At the relaxation's optimum the closed form and its slopes are what the cone's multipliers say.

    With the slopes s from the multipliers, z(w) + z*(s) = <w, s> (Fenchel and Young), kinks included;
    where z is differentiable, s is its gradient.  An instance without such an entity has one claim.
    """
    from spr_or.solvers import conic

    meet = "closed form and its conjugate meet at the duals of the perspective cone"
    equal = "gradient of the closed form = the duals of the perspective cone"
    inner, units = normalised(problem)
    try:
        certificate, slopes = conic.solve_with_duals(inner)
    except Exception as error:  # as any route, it may raise anything
        yield _untested(meet, f"{type(error).__name__}: {error}".splitlines()[0])
        return
    if certificate.status == "interrupted":
        yield _untested(meet, INTERRUPTED)
        return
    rows = problem.entities.rows(certificate.weights * units.weights)
    slopes = slopes * (units.objective / units.weights)
    price = problem.lam * problem.u
    z = projected.value(rows, problem.alpha, problem.M, variant)
    conjugate = projected.conjugate(slopes / price.unsqueeze(-1), problem.alpha, problem.M)
    apart = float((price * (z + conjugate) - (rows * slopes).sum(-1)).abs().sum())
    unit = _gradient_at_zero(problem)
    reach = float((price * z).sum()) + float((rows.abs() * unit).sum())
    slack = DUALS_TOLERANCE * reach + ladder.tolerance() - apart
    yield _compared(
        meet, slack if certificate.status == "optimal" else math.nan, f"{apart:.3g} apart"
    )
    closed_form = projected.gradient(rows, problem.alpha, problem.M, variant) * price.unsqueeze(-1)
    peak = rows.abs().amax(-1)
    inside = (peak < problem.M * (1 - 1e-5)) & (peak > 1e-3 * problem.M) & _smooth(rows)
    if bool(inside.any()):
        distance = (closed_form - slopes).abs().amax(-1)[inside]
        size = unit + slopes.abs().amax(-1)[inside]
        slack = DUALS_TOLERANCE - float((distance / size).max())
        yield _compared(equal, slack, f"they differ by {float(distance.max()):.3g}")


def _gradient_at_zero(problem: SparseTrainingProblem) -> float:
    """The largest slope of the loss at w = 0: what a slope is small against."""
    zero = torch.zeros((problem.n, problem.n_outputs), dtype=torch.float64)
    nu = LOSSES[problem.loss].gradient(zero, problem.y)
    return float((problem.X.mT @ nu).abs().max()) / problem.n


def _smooth(rows: Tensor) -> Tensor:
    """Entities whose largest weight is attained once: elsewhere z has many subgradients."""
    if rows.shape[-1] == 1:
        return torch.ones(rows.shape[:-1], dtype=torch.bool)
    first, second = rows.abs().topk(2, dim=-1).values.unbind(-1)
    return first - second > 1e-3 * first


def _best(ladder: Ladder) -> Rung | None:
    """The best integer solution."""
    return min(ladder.of("integer"), key=lambda r: r.value, default=None)


def indicators_resolved(problem: SparseTrainingProblem, ladder: Ladder) -> Iterator[Check]:
    """An M so loose that a solver can keep an entity at y ~ 0 is refused; absent if none is chosen."""
    claim = "no chosen entity has ||w||_inf / M inside the integrality tolerance"
    best = _best(ladder)
    if best is None or not any(rung.closed for rung in ladder.of("integer")):
        yield _untested(claim, "no solver has closed the MIP")
        return
    peaks = problem.entities.rows(best.certificate.weights).abs().amax(-1) / problem.M
    chosen = peaks[(best.certificate.indicators > 0.5) & (peaks > 0)]
    if len(chosen):
        smallest = float(chosen.min())
        slack = smallest - INTEGRALITY_TOLERANCE
        yield _compared(f"{claim} (smallest {smallest:.1e})", slack)


def printed_variant(problem: SparseTrainingProblem, relaxation: Rung | None) -> Check:
    """The printed closed form is not the least penalty over y: somewhere it lies elsewhere."""
    rows = _points(problem, relaxation)
    least = _searched(problem, rows)
    printed = projected.value(rows, problem.alpha, problem.M, "printed")
    apart = _larger(0.0, float(((printed - least).abs() / least).max()))
    claim = f"the printed closed form is not the least penalty over y (up to {apart:.2g} off)"
    return _compared(claim, apart - 10 * FORMULA_TOLERANCE, "it agrees with the search")


def notes(problem: SparseTrainingProblem, ladder: Ladder) -> Iterator[str]:
    """What is worth knowing and is no claim: whether M is active, where the printed form stands."""
    best = _best(ladder)
    if best is None or not best.closed:
        return
    active = best.certificate.m_active.nonzero().flatten().tolist()
    if active:
        yield (
            f"M is active at the MIP optimum, in entities {', '.join(map(str, active))}: optimal for "
            "this M, a larger one may do better"
        )
    else:
        yield "M is not active at the MIP optimum"
    if math.isfinite(ladder.printed):
        above = ladder.printed - best.value > ladder.tolerance(ladder.printed)
        says = "exceeds the MIP optimum, so it is not a relaxation"
        yield (
            f"the printed closed form at the relaxation's minimiser "
            f"{says if above else 'does not exceed the MIP optimum here'} "
            f"({ladder.printed:.6g} against {best.value:.6g})"
        )


def _larger(a: float, b: float) -> float:
    """The larger of two numbers, nan if one is: max() would drop it."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _open(rungs: list[Rung]) -> str:
    """The rungs whose gap is not closed, with what ended them."""
    return ", ".join(
        f"{r.label} ({r.status})" for r in rungs if not r.closed and r.status != "heuristic"
    )


def _solvers(rungs: list[Rung]) -> str:
    return ", ".join(
        rung.solver
        if rung.solver == rung.formulation
        else f"{formulation_name(rung.formulation)} {rung.solver}"
        for rung in rungs
    )

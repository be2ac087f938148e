"""One answer of one route, judged without its solver: is it a point, what is it worth, what is proven?

Nothing that a route returns is trusted.  An answer with a fault becomes a `Rung` that takes part in no
comparison, and its claim says what is wrong: a contradiction refutes it, an answer that is absent or not
a number leaves it untested.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import NamedTuple

import torch

from spr_or.formulations import bigm, perspective
from spr_or.formulations.certificate import Certificate
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.verification.ladder import NEAR_ZERO, RELATIVE, Check, Rung, Verdict
from spr_or.verification.normalised import Units
from spr_or.verification.routes import Route

ROUNDING = 1e-9  # what evaluating an objective or a bound on weights again may change, relatively
OPTIMAL_GAP = 2e-5  # the largest gap, relative to objective and scale, that may be called optimal


class Answer(NamedTuple):
    """A rung, the claim about it, and what the solver returned (None where it raised)."""

    rung: Rung
    check: Check
    returned: object


class Judgement(NamedTuple):
    """What an answer is worth; one that is ``comparable`` has a point, its objective and a bound."""

    verdict: Verdict
    reason: str = ""
    comparable: bool = False


def ask(route: Route, problem: SparseTrainingProblem, units: Units, scale: float) -> Answer:
    """Run a route, which solves the problem in its ``units``, and judge what comes back.

    ``problem`` is the problem itself, ``scale`` its `scale_of`.  Ctrl-C passes through.
    """
    began = time.perf_counter()
    returned: object = None
    try:
        returned = route.solve()
        if not isinstance(returned, Certificate):
            raise TypeError(f"returned {type(returned).__name__}, not a Certificate")
        certificate = units.restored(returned)
        judgement = judged(problem, route, certificate, scale)
        rung = Rung.of(certificate)
    except Exception as error:  # a solver may raise anything, and the others are still to run
        judgement = Judgement("not tested", _first_line(error))
        rung = Rung(
            *route[:3], math.nan, math.nan, time.perf_counter() - began, "failed",
            certificate=None,  # type: ignore[arg-type]
        )  # fmt: skip
    slack = math.nan
    if judgement.verdict == "holds":
        slack = rung.value - rung.bound
    if not judgement.comparable:  # under the route's own name, whatever the answer calls itself
        rung = dataclasses.replace(
            rung, formulation=route.formulation, integrality=route.integrality,
            solver=route.solver, fault=judgement.reason,
        )  # fmt: skip
    what = "a feasible point with its objective"
    if rung.status != "heuristic":
        what += ", and a bound that meets it"
    check = Check(f"{route.label}: {what}", judgement.verdict, slack, judgement.reason)
    return Answer(rung, check, returned)


def judged(
    problem: SparseTrainingProblem, route: Route, answer: Certificate, scale: float
) -> Judgement:
    """What is wrong with an answer, if anything."""
    if (answer.formulation, answer.integrality) != (route.formulation, route.integrality):
        return Judgement("refuted", f"answers for {answer.formulation} {answer.integrality}")
    if math.isnan(answer.objective) or math.isnan(answer.bound):
        return Judgement("not tested", f"objective {answer.objective}, bound {answer.bound}")
    if answer.objective == math.inf:
        return Judgement("not tested", f"no solution, {answer.status}")
    wrong = _infeasible(problem, answer)
    if wrong:
        return Judgement("refuted", wrong)
    worth = objective_of(problem, answer)
    if not abs(answer.objective - worth) <= ROUNDING * (abs(worth) + scale):
        stated = f"states the objective {answer.objective:.9g}"
        return Judgement("refuted", f"{stated}, but its point has {worth:.9g}")
    gap = answer.objective - answer.bound
    allowed = RELATIVE * abs(worth) + NEAR_ZERO * scale
    if not gap >= -allowed:
        return Judgement(
            "refuted", f"states the bound {answer.bound:.9g} above its objective {worth:.9g}"
        )
    if answer.status == "heuristic":
        return Judgement("holds", comparable=True)
    if answer.status != "optimal":
        reason = f"{answer.status}, bound {answer.bound:.6g} for {worth:.6g}"
        return Judgement("not tested", reason, comparable=True)
    if not gap <= OPTIMAL_GAP * (abs(worth) + scale):
        return Judgement(
            "refuted", f"says optimal with the bound {answer.bound:.9g} for {worth:.9g}"
        )
    return Judgement("holds", comparable=True)


def _infeasible(problem: SparseTrainingProblem, answer: Certificate) -> str:
    """Which constraint the point of an answer breaks; empty if none."""
    entities = problem.entities
    w, y = answer.weights, answer.indicators
    for name, values, count in (
        ("weights", w, entities.n_parameters), ("indicators", y, len(entities)),
    ):  # fmt: skip
        if not isinstance(values, torch.Tensor) or values.shape != (count,):
            shape = tuple(getattr(values, "shape", ()))
            return f"{name} of shape {shape}, not ({count},)"
        if not bool(values.isfinite().all()):
            return f"{name} that are not finite"
    if not bool(((y >= 0) & (y <= 1)).all()):
        return "indicators outside [0, 1]"
    if answer.integrality == "integer" and not bool(((y == 0) | (y == 1)).all()):
        return "indicators that are not 0 or 1"
    reach = problem.M * y * (1 + ROUNDING)
    if not bool((entities.rows(w).abs().amax(-1) <= reach).all()):
        return "weights outside |w| <= M y"
    if not bool((w[entities.free].abs() <= problem.M_free * (1 + ROUNDING)).all()):
        return "free weights outside |w| <= M_free"
    return ""


def objective_of(problem: SparseTrainingProblem, answer: Certificate) -> float:
    """The objective of an answer's point in the formulation it names."""
    rows = problem.entities.rows(answer.weights)
    cone = answer.integrality == "relaxed" and answer.formulation in ("perspective", "projected")
    penalty = (perspective if cone else bigm).penalty(rows, answer.indicators, problem.alpha)
    with torch.no_grad():
        return float(problem.objective(answer.weights, penalty))


def proof_check(route: Route, certificate: object) -> Check:
    """The proof that a certificate carries, checked by the route's checker."""
    claim = f"{route.label}: its proof is checked"
    if route.check is None or not isinstance(certificate, Certificate):
        return Check(claim, "not tested", math.nan, "it returned no proof")
    try:
        outcome = route.check(certificate)
    except Exception as error:  # a proof that cannot be evaluated is not a proof
        return Check(claim, "not tested", math.nan, _first_line(error))
    if outcome.ok:
        return Check(claim, "holds", outcome.objective - outcome.bound)
    return Check(claim, "refuted", -math.inf, "; ".join(map(str, outcome.problems[:3])))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]

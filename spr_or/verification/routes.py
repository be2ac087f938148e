"""The routes: every formulation by every solver that applies to a problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

from spr_or.formulations.certificate import Certificate
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.verification.ladder import formulation_name

MAX_ENUMERATED = 10  # entities of a linear model: 2^10 convex problems
MAX_ENUMERATED_NETWORK = 3  # entities of a network: 2^3 nonconvex problems
PROOF_GAP = 1e-6  # of the certified branch and bound: below what the claims tell apart


class Route(NamedTuple):
    """A formulation, relaxed or integer, and a solver for it; ``solve`` computes the answer.

    ``check``, where the answer carries a proof, gives what came of it: a `spr_or.proof.check.ProofCheck`.
    """

    formulation: str
    integrality: str
    solver: str
    solve: Callable[[], Certificate]
    check: Callable[[Any], Any] | None = None

    @property
    def label(self) -> str:
        """What a rung of this route is called."""
        return f"{formulation_name(self.formulation)} {self.integrality} ({self.solver})"


def routes(problem: SparseTrainingProblem, time_limit: float) -> Iterator[Route]:
    """Every route that applies to the problem; ``time_limit`` in seconds for each."""
    limited: dict[str, Any] = {"time_limit": time_limit}
    yield from (_linear if problem.convex else _network)(problem, limited)


def _linear(problem: SparseTrainingProblem, limited: dict[str, Any]) -> Iterator[Route]:
    from spr_or.certified_solver import solver as certified
    from spr_or.solvers import conic, enumeration, highs, outer_approximation, scip
    from spr_or.solvers import projected_first_order as first_order

    solve: Callable[[], Certificate]
    if highs.applies(problem, relaxed=True):
        solve = partial(highs.solve, problem, relaxed=True, **limited)
        yield Route("bigm", "relaxed", "highs", solve)
    for formulation in ("bigm", "perspective"):
        solve = partial(conic.solve, problem, formulation=formulation, **limited)
        yield Route(formulation, "relaxed", "clarabel", solve)
    solve = partial(outer_approximation.solve, problem, relaxed=True, **limited)
    yield Route("perspective", "relaxed", "highs-cuts", solve)
    yield Route(
        "projected", "relaxed", "first-order", partial(first_order.solve, problem, **limited)
    )
    if highs.applies(problem, relaxed=False):
        solve = partial(highs.solve, problem, relaxed=False, **limited)
        yield Route("bigm", "integer", "highs", solve)
    for formulation in ("bigm", "perspective"):
        solve = partial(scip.solve, problem, formulation=formulation, relaxed=False, **limited)
        yield Route(formulation, "integer", "scip", solve)
    solve = partial(outer_approximation.solve, problem, relaxed=False, **limited)
    yield Route("perspective", "integer", "highs-cuts", solve)
    if problem.loss in ("squared", "logistic"):
        solve = partial(certified.branch_and_bound, problem, gap=PROOF_GAP, **limited)
        yield Route("projected", "integer", "branch_and_bound", solve, lambda found: found.check())
    if len(problem.entities) <= MAX_ENUMERATED:
        solve = partial(enumeration.solve, problem, **limited)
        yield Route("enumeration", "integer", "enumeration", solve)


def _network(problem: SparseTrainingProblem, limited: dict[str, Any]) -> Iterator[Route]:
    from spr_or.solvers import network_enumeration, network_sgd, scip

    for integrality in ("relaxed", "integer"):
        for formulation in ("bigm", "perspective"):
            solve = partial(
                scip.solve, problem, formulation=formulation,
                relaxed=integrality == "relaxed", **limited,
            )  # fmt: skip
            yield Route(formulation, integrality, "scip", solve)
    yield Route("projected", "relaxed", "SGD", partial(network_sgd.solve, problem))
    if len(problem.entities) <= MAX_ENUMERATED_NETWORK:
        solve = partial(network_enumeration.solve, problem, **limited)
        yield Route("enumeration", "integer", "scip by support", solve)


def larger_network_routes(problem: SparseTrainingProblem, time_limit: float) -> Iterator[Route]:
    """The routes to the MIP optimum of a network with one hidden layer and samples in the plane.

    Many training runs, SCIP on the model that their best solution tightens, and activation patterns
    (which take seconds, not the whole ``time_limit``).  Big-M relaxations with exact ReLUs are left out:
    SCIP does not close them for more than ten samples or so.

    Raises ``ValueError`` for other problems.
    """
    from spr_or.proof.check import ProofCheck
    from spr_or.proof.network_tree import Stated, check_patterns
    from spr_or.solvers import network_patterns, network_sgd, scip

    reason = network_patterns.reason_against(problem)
    if reason:
        raise ValueError(f"the set networks cannot take {problem.name!r}: {reason}")
    trained = cache(partial(network_sgd.solve, problem))

    def sgd() -> Certificate:
        return network_sgd.rounded(problem, trained())

    def tightened() -> Certificate:
        start = trained().weights
        return scip.solve(problem, "bigm", time_limit=time_limit, start=start)

    def patterns() -> Certificate:
        return network_patterns.solve(problem, time_limit=time_limit, start=trained().weights)

    def check(found: network_patterns.PatternCertificate) -> ProofCheck:
        claimed = {name: getattr(found, name) for name in Stated._fields}
        return check_patterns(problem, Stated(**claimed))

    yield Route("bigm", "integer", "SGD", sgd)
    yield Route("bigm", "integer", "scip", tightened)
    yield Route("bigm", "integer", "patterns", patterns, check)

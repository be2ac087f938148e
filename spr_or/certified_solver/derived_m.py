"""M auto: a bound on the weights of every optimum of the problem without bounds, proven from the data.

The search and the perspective need some M, and an M chosen too small cuts off the optimum unseen.  The
bounds themselves are `spr_or.proof.weight_bounds`; here they serve a search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.design import design_of, theta_of
from spr_or.certified_solver.solver import branch_and_bound, without_more
from spr_or.formulations import bigm
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof import weight_bounds as proof_bounds
from spr_or.proof.certificate import ProofCertificate, SearchProgress
from spr_or.solvers.time_limit import TimeLimit

# No optimum touches the M in use: what `Certificate.m_active` then shows is an M chosen by hand.
CLEARANCE = 1e-3
# Of the largest bound, in units of the predictions: 0 is no bound to solve with.
_SMALLEST = 1e-3


class AutomaticBound(NamedTuple):
    """M (N,) and what proves it: weights (P,) of an incumbent and of a dual point (or None).

    ``M_free`` bounds the weights of free columns.
    """

    M: Tensor
    incumbent: Tensor
    point: Tensor | None
    M_free: float = 1.0

    def of(self, problem: SparseTrainingProblem) -> SparseTrainingProblem:
        """The problem with this bound as M."""
        return dataclasses.replace(problem, M=self.M, M_free=self.M_free)


def value_without_bounds(problem: SparseTrainingProblem, theta: Tensor) -> float:
    """The objective of the problem without M at theta (P,): entities that are not zero are paid."""
    rows = problem.entities.rows(theta)
    used = (rows != 0).any(-1).to(theta)
    if problem.rules is not None:
        used = torch.maximum(used, problem.rules.required.to(theta))
    return float(problem.objective(theta, bigm.penalty(rows, used, problem.alpha)))


def weight_bounds(
    problem: SparseTrainingProblem, incumbent: Tensor, point: Tensor | None = None
) -> Tensor:
    """`spr_or.proof.weight_bounds.weight_bounds` as an M to solve with: positive, (N,) and behind it
    one for each free column.

    An entity that no optimum uses, whose bound is 0, gets a small share of what the largest bound
    allows any entity to add to the predictions: its columns may have other units than the others.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=1)
    >>> bounds = weight_bounds(p, torch.tensor([1.8, 0.0]))  # the optimum is (1.818..., 0)
    >>> bool(bounds[0] > 1.81), bool(bounds[0] < 2.2)
    (True, True)
    """
    near = None if point is None else point.double().numpy()
    bounds = torch.from_numpy(proof_bounds.weight_bounds(problem, incumbent.double().numpy(), near))
    design = design_of(problem)
    squares = (design.X.square().sum(0) / design.n)[design.columns] * design.real
    size = (squares + design.ridge.unsqueeze(1)).amax(1).sqrt()
    most = float((bounds * size).max())
    if most == 0:
        return torch.where(bounds > 0, bounds, 1.0)
    return torch.maximum(bounds, torch.where(size > 0, _SMALLEST * most / size, 1.0))


def solve_without_bounds(
    problem: SparseTrainingProblem,
    gap: float = 1e-4,
    time_limit: float | None = None,
    device: str | torch.device = "cpu",
    *,
    start: Tensor | None = None,
    progress: Callable[[SearchProgress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[ProofCertificate, AutomaticBound]:
    """Solve the linear problem as if M were infinite: `branch_and_bound` with an M proven here.

    A first round of the search, with bounds from ``start`` (or from zero weights), gives an incumbent
    and a dual point; the bounds these two prove serve the search proper.  Arguments, time limit,
    ``stop`` and Ctrl-C as in `branch_and_bound`; ``problem.M`` is not used.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=1)
    >>> certificate, bound = solve_without_bounds(p)
    >>> round(float(certificate.weights[0]), 6), bool(certificate.m_active.any())
    (1.818182, False)
    """
    clock = TimeLimit(time_limit)
    incumbent = _smallest_solution(problem)
    if start is not None and _is_better(problem, start, incumbent):
        incumbent = start
    found = _bound(problem, weight_bounds(problem, incumbent), incumbent, None)
    ended = False

    def after_the_first_round() -> bool:
        nonlocal ended
        ended = True
        return True

    pilot = branch_and_bound(
        found.of(problem), gap, _left(clock), device=device, start=start,
        progress=progress, stop=after_the_first_round,
    )  # fmt: skip
    if pilot.status == "interrupted" and ended and not stop() and clock.spent:
        pilot = dataclasses.replace(pilot, status="time_limit")
    if not ended or pilot.status != "interrupted" or stop():
        return pilot, found
    try:
        tight = _tightened(problem, pilot)
        certificate = branch_and_bound(
            tight.of(problem), gap, _left(clock), device=device,
            start=pilot.weights, relaxed=tight.point, progress=progress, stop=stop,
        )  # fmt: skip
    except KeyboardInterrupt:
        return pilot, found
    return certificate, tight


def _smallest_solution(problem: SparseTrainingProblem) -> Tensor:
    """Weights (P,) of a solution: zero, or of few entities where the rules ask for some."""
    zero = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    rules = problem.rules
    if rules is None or bool(rules.allow(rules.required)):
        return zero
    design = design_of(problem)
    return theta_of(problem, design, without_more(design).W)


def _tightened(problem: SparseTrainingProblem, pilot: ProofCertificate) -> AutomaticBound:
    """The bounds from the incumbent of a first round and the point of its root."""
    root = pilot.proof.records[0]
    design = design_of(problem)
    W = torch.zeros(design.shape, dtype=torch.float64)
    W[root.entities] = torch.from_numpy(root.W)
    point = theta_of(problem, design, W)
    tight = _bound(problem, weight_bounds(problem, pilot.weights, point), pilot.weights, point)
    M, M_free = torch.minimum(tight.M, pilot.problem.M), min(tight.M_free, pilot.problem.M_free)
    return tight._replace(M=M, M_free=M_free)


def _bound(
    problem: SparseTrainingProblem, bounds: Tensor, incumbent: Tensor, point: Tensor | None
) -> AutomaticBound:
    """What `weight_bounds` gives, with some clearance."""
    M, loose = ((1 + CLEARANCE) * bounds).tensor_split([len(problem.entities)])
    return AutomaticBound(M, incumbent, point, float(loose.max()) if len(loose) else float(M.max()))


def _is_better(problem: SparseTrainingProblem, start: Tensor, incumbent: Tensor) -> bool:
    """Whether ``start`` is a solution, and better than ``incumbent``."""
    used = (problem.entities.rows(start) != 0).any(-1)
    if problem.rules is not None and not bool(problem.rules.allow(used | problem.rules.required)):
        return False
    if problem.nonnegative is not None:
        signed = problem.nonnegative.repeat_interleave(problem.n_outputs)
        if bool((start[signed] < 0).any()):
            return False
    return value_without_bounds(problem, start) < value_without_bounds(problem, incumbent)


def _left(clock: TimeLimit) -> float | None:
    return None if clock.limit == float("inf") else clock.left()

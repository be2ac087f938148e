"""Many short training runs on the projected problem of a network: what training finds by itself.

Networks are not convex, so a run proves nothing: the certificate is a feasible point of the
relaxation with bound -inf and status "heuristic".  Beside the global optimum it shows how far
training ends from the minimum of the objective that it minimises.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from spr_or.formulations import projected
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.certificate import Certificate, Solved, certify


def solve(
    problem: SparseTrainingProblem,
    *,
    starts: int = 48,
    steps: int = 500,
    lr: float = 0.05,
    momentum: float = 0.9,
    batch: int | None = None,
    seed: int = 0,
) -> Certificate:
    """The best of ``starts`` runs of proximal SGD, all runs in one batched computation.

    Every run descends the mean loss of ``batch`` random samples (default: half of them; all of them
    in the last fifth of the steps, so that it settles), then applies `projected.prox` with the same
    step to the entities and the box to the free parameters.  The step decays along a cosine.

    Raises ``ValueError`` for a linear problem, which `spr_or.solvers.projected_first_order` solves exactly.
    """
    if problem.convex:
        raise ValueError("descent is for networks: a linear problem has first_order.solve")
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    batch = batch or math.ceil(problem.n / 2)
    entities = problem.entities
    shape = (starts, entities.n_parameters)
    theta = torch.randn(shape, generator=generator, dtype=torch.float64) * _start_scale(problem)
    velocity = torch.zeros_like(theta)
    gradient = torch.func.vmap(torch.func.grad(_batch_loss, argnums=1), in_dims=(None, 0, 0))
    everything = torch.arange(problem.n).expand(starts, -1)
    for step in range(steps):
        rate = lr * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-6
        settling = step >= 0.8 * steps
        order = torch.rand((starts, problem.n), generator=generator).argsort(1)
        chosen = everything if settling else order[:, :batch]
        velocity = momentum * velocity + gradient(problem, theta, chosen)
        theta = _proximal(problem, theta - rate * velocity, rate / (1 - momentum))
    values = torch.stack([problem.projected_objective(t) for t in theta])
    best = theta[values.argmin()]
    indicators = projected.indicator(entities.rows(best), problem.alpha, problem.M)
    return certify(
        problem,
        Solved("projected", "relaxed", f"SGD, best of {starts}", torch.__version__),
        status="heuristic",
        bound=-math.inf,
        seconds=time.perf_counter() - began,
        weights=best,
        indicators=indicators,
    )


def rounded(problem: SparseTrainingProblem, found: Certificate) -> Certificate:
    """The same weights as a solution of the integer problem (1)-(3): indicators raised to 1.

    ``found`` is what `solve` returns; its objective is that of the relaxation, which may be lower.
    """
    used = (problem.entities.rows(found.weights) != 0).any(-1)
    return certify(
        problem,
        Solved("bigm", "integer", found.solver, found.version),
        status="heuristic",
        bound=-math.inf,
        seconds=found.seconds,
        weights=found.weights,
        indicators=used.double(),
    )


def _batch_loss(problem: SparseTrainingProblem, theta: Tensor, chosen: Tensor) -> Tensor:
    return problem.loss_value(theta, chosen)


def _proximal(problem: SparseTrainingProblem, theta: Tensor, step: float) -> Tensor:
    entities = problem.entities
    rows = projected.prox(
        entities.rows(theta), step * problem.lam * problem.u, problem.alpha, problem.M
    )
    free = theta[..., entities.free].clamp(-problem.M_free, problem.M_free)
    return entities.flat(rows, free)


def _start_scale(problem: SparseTrainingProblem) -> Tensor:
    """Standard deviation of the starts: half of each parameter's bound."""
    rows = problem.M.unsqueeze(-1).expand(-1, problem.entities.index.shape[1])
    free = torch.full((len(problem.entities.free),), problem.M_free, dtype=torch.float64)
    return problem.entities.flat(rows.contiguous(), free) / 2

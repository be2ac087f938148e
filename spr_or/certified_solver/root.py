"""The relaxation over all entities, by a working set: entities at zero cost two products with X."""

from __future__ import annotations

import torch
from torch import Tensor

from spr_or.certified_solver import node_fista
from spr_or.certified_solver.bounds import Terms, dual_bound, penalty_of
from spr_or.certified_solver.design import Design
from spr_or.certified_solver.nodes import Node
from spr_or.formulations import projected
from spr_or.formulations.losses import LOSSES
from spr_or.solvers.time_limit import TimeLimit

_FIRST = 64
_ROUNDS = 40


def relax(design: Design, clock: TimeLimit, tolerance: float) -> Node:
    """The root node of a design without fixings, within ``tolerance`` (relative) or out of time."""
    node = at_zero(design)
    X, everything, none = design.X, node.position, node.one
    working = node.score.argsort(descending=True)[:_FIRST]  # type: ignore[union-attr]
    for _ in range(_ROUNDS):
        small = design.restrict(working)
        small = small.with_moments() if design.loss == "squared" else small
        free = torch.ones((1, len(working)), dtype=torch.bool, device=X.device)
        scale = max(abs(node.bound), 1e-12)
        solved = node_fista.solve(
            node_fista.smooth_part(small), node.W[working].unsqueeze(0), Terms(None, free, ~free),
            tolerance=0.5 * tolerance * scale, iterations=3000, stop=lambda: clock.spent,
        )  # fmt: skip
        trial = Node(everything, none, torch.zeros_like(node.W), None)
        trial.W[working] = solved.W[0]
        _bound(design, trial)
        assert trial.score is not None
        if trial.bound > node.bound:
            node = trial
        done = float(solved.value) - node.bound <= tolerance * scale
        wanted = trial.score.clone()
        wanted[working] = -torch.inf
        found = wanted.argsort(descending=True)[: max(32, len(working) // 2)]
        found = found[wanted[found] > 0]
        if done or len(found) == 0 or clock.spent:
            break
        used = working[(trial.W[working] != 0).any(-1).any(-1)]
        working = torch.cat([used, found])
    return node


def at_zero(design: Design) -> Node:
    """The root bounded at W = 0."""
    N, k, q = design.shape
    X = design.X
    none = torch.zeros(N, dtype=torch.bool, device=X.device)
    node = Node(torch.arange(N, device=X.device), none, X.new_zeros((N, k, q)), None)
    _bound(design, node)
    return node


def _bound(design: Design, node: Node) -> None:
    """Bound, scores and indicators at node.W from the samples of all entities."""
    used = (node.W != 0).any(-1).any(-1).nonzero().flatten()
    value, slope = _loss_slope(design, used, node.W[used])
    gradient = _gradient(design, slope)
    terms = Terms(None, node.free.unsqueeze(0), node.one.unsqueeze(0))
    bound, score = dual_bound(
        penalty_of(design), value.unsqueeze(0), gradient.unsqueeze(0), node.W.unsqueeze(0), terms
    )
    node.own = node.bound = float(bound)
    node.score = score[0]
    node.indicator = projected.indicator(node.W.flatten(-2), design.alpha, design.M)


def _loss_slope(design: Design, used: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss () and its slope in the predictions (rows, q)."""
    loss = LOSSES[design.loss]
    prediction = torch.zeros_like(design.Y)
    if len(used):
        prediction = design.restrict(used).block() @ W.flatten(0, 1)
    value = loss.value(prediction, design.Y).sum() / design.n
    return value, loss.gradient(prediction, design.Y) / design.n


def _gradient(design: Design, slope: Tensor) -> Tensor:
    """(N, k, q)."""
    per_column = design.X.mT @ slope
    return per_column[design.columns] * design.real.unsqueeze(-1)

"""The relaxation over all entities, by a working set: entities at zero cost two products with X."""

from __future__ import annotations

import torch
from torch import Tensor

from spr_or.certified_solver import column_nodes, node_fista
from spr_or.certified_solver.bounds import Terms, dual_bound, penalty_of
from spr_or.certified_solver.design import Design, sample_sum, slopes
from spr_or.certified_solver.nodes import Node
from spr_or.formulations import projected
from spr_or.formulations.losses import LOSSES
from spr_or.solvers.time_limit import TimeLimit

_FIRST, _FIRST_SINGLE = (
    64,
    160,
)  # columns; single ones are so cheap that most small designs take one round
_ROUNDS = 40
_TRIALS = 14  # of the multiplier


def multiplier(design: Design, clock: TimeLimit, tolerance: float) -> float:
    """A multiplier of the rule that at most m entities are used, near the best: with it, the relaxation
    uses about m.  By bisection, for the bound is concave in it."""
    assert design.rules is not None and design.rules.most is not None
    zero = at_zero(design)
    assert zero.score is not None
    low, high = 0.0, float(torch.where(zero.free, zero.score, 0.0).amax().clamp(min=0))
    most = design.rules.most
    best, at = -torch.inf, 0.0
    start = None
    for trial in range(_TRIALS):
        shadow = (low * high) ** 0.5 if low > 0.01 * high else (low + high) / 4
        shadow = shadow if trial else 0.0
        node = relax(design.with_shadow(shadow), clock, tolerance, start)
        assert node.indicator is not None
        if node.own > best:
            best, at = node.own, shadow
        used = float(torch.where(node.one, 1.0, node.indicator).sum())
        if (shadow == 0 and used <= most) or abs(used - most) < 0.01 or clock.spent:
            break
        low, high = (shadow, high) if used > most else (low, shadow)
        start = node.W
    return at


def relax(design: Design, clock: TimeLimit, tolerance: float, start: Tensor | None = None) -> Node:
    """The root node of a design without fixings but the entities required, within ``tolerance`` (relative)
    or out of time; from weights ``start`` (N, k, q), or zero."""
    node = at_zero(design)
    everything, one = node.position, node.one
    assert node.score is not None
    promise = torch.where(one, torch.inf, node.score)
    if start is not None:
        node.W = start
        promise = torch.where((start != 0).any(-1).any(-1), torch.inf, promise)
    least = _FIRST_SINGLE if design.shape[1:] == (1, 1) else _FIRST
    first = max(least, int(promise.isinf().sum()))
    working = promise.argsort(descending=True)[:first]
    for _ in range(_ROUNDS):
        small = design.restrict(working)
        small = small.with_moments() if design.loss == "squared" else small
        at_one = one[working].unsqueeze(0)
        scale = max(abs(node.bound), 1e-12)
        W = node.W[working].unsqueeze(0)
        W, value = _relax_small(small, W, at_one, 0.5 * tolerance * scale, clock)
        trial = Node(everything, one, torch.zeros_like(node.W), None)
        trial.W[working] = W[0]
        _bound(design, trial)
        assert trial.score is not None
        if trial.bound > node.bound:
            node = trial
        done = value - node.bound <= tolerance * scale
        wanted = trial.score.clone()
        wanted[working] = -torch.inf
        found = wanted.argsort(descending=True)[: max(32, len(working) // 2)]
        found = found[wanted[found] > 0]
        if done or len(found) == 0 or clock.spent:
            break
        used = working[(trial.W[working] != 0).any(-1).any(-1) | one[working]]
        working = torch.cat([used, found])
    return node


def _relax_small(
    design: Design, W: Tensor, one: Tensor, tolerance: float, clock: TimeLimit
) -> tuple[Tensor, float]:
    """Weights (1, N, k, q) near the solution of one relaxation, from W, and its value there."""
    if column_nodes.applies(design):
        near = column_nodes.relax(design, W, one, tolerance)
        if near.done:
            return near.W, float(near.value)
        W = near.W
    solved = node_fista.solve(
        node_fista.smooth_part(design), W, Terms(None, ~one, one),
        tolerance=tolerance, iterations=3000, stop=lambda: clock.spent,
    )  # fmt: skip
    return solved.W, float(solved.value)


def at_zero(design: Design) -> Node:
    """The root bounded at W = 0."""
    N, k, q = design.shape
    X = design.X
    node = Node(torch.arange(N, device=X.device), design.must(), X.new_zeros((N, k, q)), None)
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
    alpha, _, factor = design.scaled
    rows = factor[:, None] * node.W.flatten(-2)
    node.indicator = torch.where(node.one, 1.0, projected.indicator(rows, alpha, factor * design.M))


def _loss_slope(design: Design, used: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss () and its slope in the predictions (rows, q)."""
    prediction = torch.zeros_like(design.Y)
    if len(used):
        prediction = design.restrict(used).block() @ W.flatten(0, 1)
    value = sample_sum(design, LOSSES[design.loss].value(prediction, design.Y)) / design.n
    return value, slopes(design, prediction)


def _gradient(design: Design, slope: Tensor) -> Tensor:
    """(N, k, q)."""
    per_column = design.X.mT @ slope
    return per_column[design.columns] * design.real.unsqueeze(-1)

"""Good integer points: round, polish exactly on the support, and search the neighbourhood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spr_or.certified_solver import column_nodes, node_fista, support_newton
from spr_or.certified_solver.block_curvature import SplitEngine
from spr_or.certified_solver.bounds import Terms, penalty_of, scores
from spr_or.certified_solver.design import Design, design_of, loss_and_gradient, theta_of
from spr_or.certified_solver.nodes import Node
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem

if TYPE_CHECKING:
    from scipy import optimize

_BATCH = 32


class Incumbent(NamedTuple):
    """support (N,) bool, W (N, k, q), and the objective of the integer problem there."""

    objective: float
    support: Tensor
    W: Tensor


def polish(design: Design, supports: list[Tensor]) -> list[Incumbent]:
    """The incumbents with the best weights on ``supports``, each (N,) bool.

    The squared loss is solved to rounding: with one output by Newton's method, with several by its
    normal equations where these leave the box alone; other losses by Newton's method where the box
    does not matter; all else by the first-order method, whose objective is an upper bound anyhow.
    """
    if column_nodes.applies(design):
        return _by_columns(design, supports)
    if design.signed is not None and design.loss == "squared":
        return [in_box(design, support) for support in supports]
    if design.loss != "squared":
        return _by_smooth_steps(design, supports)
    if design.moments is None:
        return _on_union(design, supports)
    if design.shape[2] > 1:
        return _by_normal_equations(design, supports)
    return _by_newton(design, supports)


class SupportSolution(NamedTuple):
    """support (N,) bool, the best weights (P,) on it, and the objective of the integer problem."""

    objective: float
    support: Tensor
    weights: Tensor


def best_on_supports(
    problem: SparseTrainingProblem, supports: Sequence[Tensor]
) -> list[SupportSolution]:
    """The best weights on each of some ``supports`` (N,) bool, for a linear problem with squared loss.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=4)
    >>> (found,) = best_on_supports(p, [torch.tensor([True, False])])
    >>> round(found.objective, 6), found.weights.round(decimals=4).tolist()
    (0.236818, [1.8182, 0.0])
    """
    design = design_of(problem).with_moments()
    return [
        SupportSolution(found.objective, found.support, theta_of(problem, design, found.W))
        for found in polish(design, list(supports))
    ]


def local_search(
    design: Design, start: Incumbent, stop: Callable[[], bool], width: int = 6
) -> Incumbent:
    """Add, drop and swap single entities while that improves; ``stop`` is asked between rounds.

    Adding is ranked by the score at the current weights, dropping by the quadratic the loss puts on an
    entity's own weights; the best ones are polished, also in pairs.
    """
    penalty = penalty_of(design)
    best, seen = start, {_key(start.support)}
    while not stop():
        _, gradient = loss_and_gradient(design, best.W.unsqueeze(0))
        score = scores(penalty, gradient, None)[0]
        cost = _drop_cost(design, best.W)
        inside, outside = best.support.nonzero().flatten(), (~best.support).nonzero().flatten()
        adds = outside[score[outside].argsort(descending=True)[: 2 * width]].tolist()
        drops = inside[cost[inside].argsort()[: 4 * width]].tolist()
        moves = [(i,) for i in adds + drops] + list(product(drops[:width], adds[:width]))
        table = best.support.cpu().numpy()[None].repeat(len(moves), 0)
        for row, move in zip(table, moves, strict=True):
            row[list(move)] ^= True
        candidates = []
        for row in table:
            if (key := row.tobytes()) not in seen:
                seen.add(key)
                support = torch.from_numpy(row).to(best.support.device)
                if design.allow(support):
                    candidates.append(support)
        found = min(polish(design, candidates), key=lambda x: x.objective) if candidates else best
        if not found.objective < best.objective - 1e-12 * abs(best.objective):
            break
        best = found
    return best


def _key(support: Tensor) -> bytes:
    return support.cpu().numpy().tobytes()


def _drop_cost(design: Design, W: Tensor) -> Tensor:
    if design.moments is not None:
        N, k, _ = design.shape
        blocks = design.moments.G.view(N, k, N, k).diagonal(dim1=0, dim2=2)  # (k, k, N)
        return torch.einsum("iaq,abi,ibq->i", W, blocks, W)
    return W.square().sum((1, 2))


def _on_union(design: Design, supports: list[Tensor]) -> list[Incumbent]:
    """By the Gram matrix of the entities that any support has."""
    if not supports:
        return []
    union = torch.stack(supports).any(0).nonzero().flatten()
    if len(union) == 0:
        return _incumbents(design, design.X.new_zeros((len(supports), *design.shape)), supports)
    small = design.restrict(union).with_moments()
    result = []
    for found in polish(small, [support[union] for support in supports]):
        support = torch.zeros_like(supports[0])
        support[union] = found.support
        W = design.X.new_zeros(design.shape)
        W[union] = found.W
        result.append(Incumbent(found.objective, support, W))
    return result


def _by_columns(design: Design, supports: list[Tensor]) -> list[Incumbent]:
    if not supports:
        return []
    W, objectives = column_nodes.best_weights(design, torch.stack(supports))
    return [Incumbent(*found) for found in zip(objectives, supports, W, strict=True)]


def _by_newton(design: Design, supports: list[Tensor]) -> list[Incumbent]:
    # One step of nothing: with every indicator fixed the relaxation is the problem itself.
    engine = SplitEngine(design, mu=0.0, steps=0, curvature_one=torch.inf)
    assert design.moments is not None
    # With y = 1 it does not matter how much of Q is moved, if it is something, of each column's own size.
    diagonal = design.quadratic().diagonal()
    if not bool(
        (diagonal > 0).any()
    ):  # columns of zeros, no ridge: all weights are as good as none
        return _incumbents(design, design.X.new_zeros((len(supports), *design.shape)), supports)
    diagonal = torch.where(diagonal > 0, diagonal, diagonal.amax())
    share = torch.diag_embed(1e-6 * diagonal.view(design.real.shape))
    result = []
    supports = sorted(supports, key=lambda s: int(s.sum()))
    for start in range(0, len(supports), _BATCH):
        chunk = supports[start : start + _BATCH]
        nodes = []
        for support in chunk:
            at = support.nonzero().flatten()
            one = torch.ones(len(at), dtype=torch.bool, device=at.device)
            zero = design.X.new_zeros((len(at), design.shape[1], 1))
            nodes.append(Node(at, one, zero, share[at]))
        engine(nodes, torch.inf)
        W = design.X.new_zeros((len(chunk), *design.shape))
        for b, node in enumerate(nodes):
            W[b, node.position] = node.W
        result += _incumbents(design, W, chunk)
    return result


def _by_normal_equations(design: Design, supports: list[Tensor]) -> list[Incumbent]:
    assert design.moments is not None
    G, C, c0 = design.moments
    k = design.columns.shape[1]
    result = []
    for support in supports:
        columns = support.repeat_interleave(k).nonzero().flatten()
        Q, right = G[columns][:, columns], C[columns]
        Q.diagonal().add_(design.ridge[support].repeat_interleave(k))
        L, singular = torch.linalg.cholesky_ex(Q)
        solved = torch.linalg.pinv(Q, hermitian=True) @ right
        if not int(singular):
            solved = torch.cholesky_solve(right, L)
        W = design.X.new_zeros(design.shape)
        W[support] = solved.view(-1, *design.shape[1:])
        if bool((W.abs() > design.M[:, None, None]).any()):
            result.append(in_box(design, support))
            continue
        objective = c0 - (right * solved).sum() + design.price[support].sum()
        result.append(Incumbent(float(objective), support, W))
    return result


def in_box(design: Design, support: Tensor, refine: bool = False) -> Incumbent:
    """The best weights on a support as exactly as a library can find them, whatever the conditioning.

    With every indicator fixed this is a convex problem in a box: bounded least squares by an active
    set for each output of the squared loss, L-BFGS-B for other losses (both of scipy).  ``refine``: least
    squares once more, for what the first ones left.
    """
    from scipy import optimize  # a third of a second, which most searches do not need

    at = support.nonzero().flatten()
    if len(at) == 0:
        return _incumbents(design, design.X.new_zeros((1, *design.shape)), [support])[0]
    small = design.restrict(at)
    real = small.real.flatten().cpu().numpy()
    block = small.block().cpu().numpy()[:, real]
    Y, q = design.Y.cpu().numpy(), design.shape[2]
    limit = small.M.repeat_interleave(design.shape[1]).cpu().numpy()[real]
    ridge = small.ridge.repeat_interleave(design.shape[1]).cpu().numpy()[real]
    lower = -limit
    if small.signed is not None:
        lower = np.where(small.signed.flatten().cpu().numpy()[real], 0.0, lower)
    if design.loss == "squared":
        rows = np.concatenate([block / math.sqrt(design.n), np.diag(np.sqrt(ridge))])
        zeros = np.zeros(len(ridge))
        columns = []
        for y in Y.T:
            target, w = np.concatenate([y / math.sqrt(design.n), zeros]), zeros
            for _ in range(2 if refine else 1):
                w = w + optimize.lsq_linear(
                    rows, target - rows @ w, (lower - w, limit - w), method="bvls", tol=1e-15
                ).x  # fmt: skip
            columns.append(np.clip(w, lower, limit))
        found = np.stack(columns, axis=1)
    else:
        box = optimize.Bounds(np.repeat(lower, q), np.repeat(limit, q))
        found = _smooth_in_box(block, design, ridge, box).reshape(-1, q)
    W = design.X.new_zeros((1, *design.shape))
    table = np.zeros((len(real), q))
    table[real] = found
    W[0, at] = torch.from_numpy(table).to(W).view(len(at), *design.shape[1:])
    return _incumbents(design, W, [support])[0]


def towards_zero(design: Design, support: Tensor) -> Incumbent:
    """`in_box` for a loss that vanishes, and with the logistic loss as far as the box reaches in the same
    direction: where weights separate the samples, the loss falls all the way, and no gradient shows it."""
    found = in_box(design, support, refine=True)
    if design.loss != "logistic":
        return found
    room = design.M[:, None, None] / found.W.abs()
    farther = found.W * room.amin().clamp(1.0, 1e300)
    return min(
        found, *_incumbents(design, farther.unsqueeze(0), [support]), key=lambda x: x.objective
    )


def _smooth_in_box(
    block: NDArray[np.float64], design: Design, ridge: NDArray[np.float64], box: optimize.Bounds
) -> NDArray[np.float64]:
    from scipy import optimize

    loss, q = LOSSES[design.loss], design.shape[2]
    Y = design.Y.cpu()
    size = 1.0 if design.size is None else design.size.cpu()

    def value_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = flat.reshape(-1, q)
        prediction = torch.from_numpy(block @ w)
        value = float((size * loss.value(prediction, Y).unsqueeze(1)).sum()) / design.n
        slope = block.T @ (size * loss.gradient(prediction, Y)).numpy() / design.n
        pull = ridge[:, None] * w
        return value + float((pull * w).sum()), (slope + 2 * pull).ravel()

    start = np.zeros(len(box.lb))
    settings = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0.0, "gtol": 1e-12, "maxcor": 30}
    return optimize.minimize(
        value_and_gradient, start, jac=True, method="L-BFGS-B",
        bounds=box, options=settings,
    ).x  # fmt: skip


def _by_smooth_steps(design: Design, supports: list[Tensor]) -> list[Incumbent]:
    """By Newton's method, and by proximal gradient steps what that leaves."""
    if not supports:
        return []
    union = torch.stack(supports).any(0).nonzero().flatten()
    if len(union) == 0:
        return _incumbents(design, design.X.new_zeros((len(supports), *design.shape)), supports)
    small = design.restrict(union)
    result = []
    for start in range(0, len(supports), _BATCH):
        chunk = supports[start : start + _BATCH]
        one = torch.stack(chunk)[:, union]
        best, found = support_newton.minimise(small, one)
        if not bool(found.all()):
            rest = one[~found]
            terms = Terms(None, torch.zeros_like(rest), rest)
            best[~found] = node_fista.solve(
                node_fista.smooth_part(small), torch.zeros_like(best[~found]), terms,
                tolerance=1e-9, iterations=500,
            ).W  # fmt: skip
        W = design.X.new_zeros((len(chunk), *design.shape))
        W[:, union] = best
        result += _incumbents(design, W, chunk)
    return result


def _incumbents(design: Design, W: Tensor, supports: list[Tensor]) -> list[Incumbent]:
    chosen = torch.stack(supports)
    inside = chosen.any(0).nonzero().flatten()
    if len(inside) == 0:
        inside = torch.zeros(1, dtype=torch.int64, device=W.device)
    small = design.restrict(inside)
    value, _ = loss_and_gradient(small, W[:, inside])
    cost = design.ridge * W.square().sum((2, 3)) + design.price * chosen
    total = (value + cost.sum(-1)).tolist()
    return [Incumbent(total[b], supports[b], W[b]) for b in range(len(supports))]

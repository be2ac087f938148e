r"""Nodes of single columns, with one output and the squared loss: Newton's method on the pieces.

The penalty of a single column is linear, then quadratic, then bounded
(`spr_or.formulations.single_weights`), so that a node's relaxation is a piecewise quadratic problem: once
it is known which column is at zero, on which piece, or at its bound, the weights solve linear equations.
A proximal gradient step with a step of its own for each column tells the pieces from a point near the
solution, and a parent's solution is near.  So most nodes take one or two systems of as many equations as
columns are in use, where first-order steps take dozens.  This is the semismooth Newton method of
`node_newton` in the form that it has here.

Where such a step does not lower the value, the node goes on with an active set (`column_steps`), which
always ends at the solution.  With more columns than samples that is what most nodes need.  Where
rounding stops it too, first-order steps go on; with moved curvature the node keeps the best bound
that it has, for every point gives one (`bounds`).

All arithmetic is NumPy's: narrow trees have few nodes at a time, and an operator of torch costs as much as
a hundred columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spr_or.certified_solver.column_batches import (
    Array,
    Batch,
    Mask,
    Points,
    batch_of,
    evaluate,
    smooth_of,
)
from spr_or.certified_solver.column_steps import by_active_set, by_pieces
from spr_or.certified_solver.design import Design
from spr_or.certified_solver.nodes import FirstOrderEngine, Node

_STEPS = 100
_FAILURES = 2  # in a row: by the pieces or growing, and once more without growing
_RELATIVE = 0.3  # as in `node_fista`
_EXACT = 1e-13  # of the loss at zero weights


def applies(design: Design) -> bool:
    """Whether this is for a design: single columns, one output, squared loss, moments, on a CPU."""
    narrow = design.shape[1:] == (1, 1) and design.moments is not None
    return narrow and design.loss == "squared" and design.X.device.type == "cpu"


class ColumnEngine:
    """Solves nodes to a ``tolerance`` (absolute), each with the curvature d that it has, or the ridge."""

    def __init__(self, design: Design, tolerance: float) -> None:
        assert design.moments is not None
        self.design, self.tolerance = design, tolerance
        self.smooth = smooth_of(design)
        self.slowly = FirstOrderEngine(design, tolerance)

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        places = [node.position.numpy() for node in nodes]
        columns = places[0] if len(nodes) == 1 else np.unique(np.concatenate(places))
        shape = (len(nodes), len(columns))
        w, alive, one = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)
        smooth = self.smooth.of(columns)
        moved = any(node.d is not None for node in nodes)
        d = np.tile(smooth.ridge, (len(nodes), 1)) if moved else None
        for b, node in enumerate(nodes):
            at = places[b] = np.searchsorted(columns, places[b])
            w[b, at], alive[b, at], one[b, at] = node.W.numpy().ravel(), True, node.one.numpy()
            if d is not None and node.d is not None:
                d[b, at] = node.d.numpy().ravel()
        batch = batch_of(smooth, alive, one, d)
        found = solve(batch, w, self.tolerance, cutoff)
        y = np.where(one, 1.0, batch.entities.indicator(found.w))
        for b, (node, at) in enumerate(zip(nodes, places, strict=True)):
            node.W = torch.from_numpy(found.w[b, at]).view(-1, 1, 1)
            node.score, node.indicator = map(torch.from_numpy, (found.gain[b, at], y[b, at]))
            node.own = float(found.bound[b])
            node.bound = max(node.bound, node.own)
        far = ~_done(found.bound, found.value, self.tolerance, cutoff)
        rest = [node for node, slow in zip(nodes, far, strict=True) if slow and node.d is None]
        if rest:
            self.slowly(rest, cutoff)


class Relaxed(NamedTuple):
    """Weights W (1, N, 1, 1), the ``value`` (1,) of the relaxation there, and whether it is accurate."""

    W: Tensor
    value: Tensor
    done: bool


def relax(design: Design, W: Tensor, one: Tensor, tolerance: float) -> Relaxed:
    """The relaxation of a design that `applies` takes, with the entities ``one`` (1, N) in use and the
    others free, from W (1, N, 1, 1), to ``tolerance`` (absolute)."""
    batch = batch_of(smooth_of(design), np.ones(tuple(one.shape), bool), one.numpy(), None)
    found = solve(batch, W.numpy()[..., 0, 0], tolerance, np.inf)
    done = bool(_done(found.bound, found.value, tolerance, np.inf).all())
    return Relaxed(torch.from_numpy(found.w).view(W.shape), torch.from_numpy(found.value), done)


def best_weights(design: Design, supports: Tensor) -> tuple[Tensor, list[float]]:
    """The best weights (B, N, 1, 1) on supports (B, N) of a design that `applies` takes, and the objective
    of the integer problem there."""
    columns = supports.any(0).nonzero().squeeze(1).numpy()
    smooth, one = smooth_of(design).of(columns), supports.numpy()[:, columns]
    W = np.zeros(tuple(supports.shape))
    batch = batch_of(smooth, one, one, None)
    found = solve(batch, W[:, columns], _EXACT * smooth.c0, np.inf)
    W[:, columns] = found.w
    objective = found.value + smooth.credit
    if design.shadow:
        objective -= design.shadow * np.add.reduce(one & design.penalised.numpy()[columns], 1)
    return torch.from_numpy(W).view(*W.shape, 1, 1), objective.tolist()


@np.errstate(all="ignore")  # what overflows is no better than what was known
def solve(batch: Batch, w: Array, tolerance: float, cutoff: float) -> Points:
    """From weights w (B, P), until each node is within ``tolerance`` or its bound passes ``cutoff``."""
    now = evaluate(batch, w)
    best = Points(*(field.copy() for field in now))
    rows, state = np.arange(len(w)), _State.start(len(w))
    for _ in range(_STEPS):
        left = ~_done(best.bound[rows], best.value[rows], tolerance, cutoff) & ~state.stuck
        if not left.all():
            rows, state, now, batch = rows[left], state.of(left), now.of(left), batch.of(left)
        if len(rows) == 0:
            break
        new, reached = _step(batch, now, state)
        found = evaluate(batch, new)
        up = found.bound > best.bound[rows]
        for field, better in zip(best[:4], found[:4], strict=True):
            field[rows[up]] = better[up]
        lower = found.value < now.value
        best.value[rows] = np.minimum(best.value[rows], found.value)
        if lower.all():
            now = found
        else:
            now = Points(*(_choose(lower, *fields) for fields in zip(found, now, strict=True)))
        state = state.after(lower, reached)
    return best


def _step(batch: Batch, now: Points, state: _State) -> tuple[Array, Mask]:
    """New weights (B, P), and where the stationary point was reached, or is not known to be missed."""
    careful = state.careful
    if not careful.any():
        return by_pieces(batch, now), ~careful
    if careful.all():
        return by_active_set(batch, now, state.grow)
    new, reached = now.w.copy(), ~careful
    new[~careful] = by_pieces(batch.of(~careful), now.of(~careful))
    new[careful], reached[careful] = by_active_set(
        batch.of(careful), now.of(careful), state.grow[careful]
    )
    return new, reached


class _State(NamedTuple):
    """Of B nodes: whether their steps are those of the active set, whether it may grow, and how often in
    a row no step lowered the value."""

    careful: Mask
    grow: Mask
    failed: NDArray[np.int64]

    @staticmethod
    def start(B: int) -> _State:
        return _State(np.zeros(B, bool), np.ones(B, bool), np.zeros(B, np.int64))

    @property
    def stuck(self) -> Mask:
        """Where neither kind of step has helped, growing or not."""
        return self.failed > _FAILURES

    def of(self, rows: Mask) -> _State:
        return _State(self.careful[rows], self.grow[rows], self.failed[rows])

    def after(self, lower: Mask, reached: Mask) -> _State:
        grow = np.where(lower, reached, ~self.grow | ~self.careful)
        return _State(self.careful | ~lower, grow, np.where(lower, 0, self.failed + 1))


def _choose(rows: Mask, new: Array, old: Array) -> Array:
    return np.where(rows if new.ndim == 1 else rows[:, None], new, old)


def _done(bound: Array, value: Array, tolerance: float, cutoff: float) -> Mask:
    """As `node_fista.done`."""
    wanted: Array | float = tolerance
    if cutoff < np.inf:
        wanted = np.maximum(_RELATIVE * (cutoff - bound), tolerance)
    return (value - bound <= wanted) | (bound >= cutoff)

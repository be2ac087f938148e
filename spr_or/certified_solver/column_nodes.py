r"""Nodes whose entities are single columns, with one output and the squared loss: Newton's method on the pieces.

The penalty of a single column is linear, then quadratic, then bounded
(`spr_or.formulations.single_weights`), so that a node's relaxation is a piecewise quadratic problem: once it is
known which column is at zero, on which piece, or at its bound, the weights solve linear equations.  A proximal
gradient step with a step of its own for each column tells the pieces from a point near the solution, and a
parent's solution is near.  So most nodes take one or two systems of as many equations as columns
are in use, where first-order steps take dozens.  This is the semismooth Newton method of `node_newton` in the
form that it has here.  A step that does not lower the value is halved, and where that does not help the node
keeps the best bound that it has, for every point gives one (`bounds`).

All arithmetic is NumPy's: trees of narrow nodes have few at a time, and an operator of torch costs as much as a
hundred columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spr_or.certified_solver.bounds import penalty_of
from spr_or.certified_solver.design import Design
from spr_or.certified_solver.nodes import Node
from spr_or.formulations.single_weights import SingleWeights, single_weights

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_STEPS = 20
_HALVINGS = 6
_RELATIVE = 0.3  # as in `node_fista`
_DAMPING = 1e-11  # of the diagonal, for more columns in use than samples
_EXACT = 1e-14  # of the loss at zero weights


def applies(design: Design) -> bool:
    """Whether this is for the nodes of a design: single columns, one output, squared loss, moments, a CPU."""
    narrow = design.shape[1:] == (1, 1) and design.moments is not None
    return narrow and design.loss == "squared" and design.X.device.type == "cpu"


class Points(NamedTuple):
    """Of B nodes: weights w, slopes of the smooth part and gains (B, P), bounds and values (B,)."""

    w: Array
    slope: Array
    gain: Array
    bound: Array
    value: Array

    def of(self, rows: Mask) -> Points:
        """Those of some nodes."""
        return Points(*(field[rows] for field in self))


class ColumnEngine:
    """Solves nodes to a ``tolerance`` (absolute), each with the curvature d that it has, or with the ridge."""

    def __init__(self, design: Design, tolerance: float) -> None:
        assert design.moments is not None
        self.design, self.tolerance = design, tolerance
        self.smooth = _smooth(design)

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
        batch = _batch(smooth, alive, one, d)
        found = solve(batch, w, self.tolerance, cutoff)
        y = np.where(one, 1.0, batch.entities.indicator(found.w))
        for b, (node, at) in enumerate(zip(nodes, places, strict=True)):
            node.W = torch.from_numpy(found.w[b, at]).view(-1, 1, 1)
            node.score, node.indicator = map(torch.from_numpy, (found.gain[b, at], y[b, at]))
            node.own = float(found.bound[b])
            node.bound = max(node.bound, node.own)


class Relaxed(NamedTuple):
    """Weights W (B, N, 1, 1) and the values (B,) of relaxations there."""

    W: Tensor
    value: Tensor


def relax(design: Design, W: Tensor, one: Tensor, tolerance: float) -> Relaxed:
    """The relaxations of a design that `applies` takes, within ``tolerance`` (absolute): with the entities
    ``one`` (B, N) in use and the others free, from W (B, N, 1, 1)."""
    alive = np.ones(tuple(one.shape), bool)
    batch = _batch(_smooth(design), alive, one.numpy(), None)
    found = solve(batch, W.numpy()[..., 0, 0], tolerance, np.inf)
    return Relaxed(torch.from_numpy(found.w).view(W.shape), torch.from_numpy(found.value))


def best_weights(design: Design, supports: Tensor) -> Tensor:
    """The best weights (B, N, 1, 1) on supports (B, N) of a design that `applies` takes."""
    columns = supports.any(0).nonzero().squeeze(1).numpy()
    smooth, one = _smooth(design).of(columns), supports.numpy()[:, columns]
    W = np.zeros(tuple(supports.shape))
    batch = _batch(smooth, one, one, None)
    W[:, columns] = solve(batch, W[:, columns], _EXACT * smooth.c0, np.inf).w
    return torch.from_numpy(W).view(*W.shape, 1, 1)


class _Smooth(NamedTuple):
    """The loss and the penalty of the columns ``at`` (P,): G of all columns, the others of these only.

    With ``c0`` and ``credit`` the loss is w'Gw - 2 c'w + c0, and ``credit`` is taken off.
    """

    G: Array
    c0: float
    credit: float
    at: NDArray[np.int64]
    c: Array
    curvature: Array
    ridge: Array
    price: Array
    M: Array
    signed: Mask | None

    def of(self, at: NDArray[np.int64]) -> _Smooth:
        """Of some columns of all."""
        signed = None if self.signed is None else self.signed[at]
        return _Smooth(
            self.G, self.c0, self.credit, at, *(field[at] for field in self[4:9]), signed
        )

    def product(self, w: Array) -> Array:
        """G w for each row of w (B, P)."""
        used = (w != 0).any(0).nonzero()[0]
        whole = w[:, used] @ self.G[self.at[used]]
        return whole if len(self.at) == len(self.G) else whole[:, self.at]


def _smooth(design: Design) -> _Smooth:
    assert design.moments is not None
    G, C, c0 = design.moments
    penalty = penalty_of(design)
    signed = None if penalty.signed is None else penalty.signed[:, 0].numpy()
    return _Smooth(
        G.numpy(), float(c0), penalty.credit, np.arange(len(G)), C[:, 0].numpy(),
        G.diagonal().numpy(), penalty.ridge.numpy(), penalty.price.numpy(), penalty.M.numpy(), signed,
    )  # fmt: skip


class _Batch(NamedTuple):
    """The problems of B nodes: what they share, and (B, P) what they do not.

    excess : ridge less moved curvature, or None
    step : of a proximal gradient step, (P,) or (B, P); with it, a column leaves zero where it has moved further
        than ``start``, is on the second piece beyond ``turn``, and at its bound beyond ``end``
    floor : what a column pays at least: nothing, or what it gains
    """

    smooth: _Smooth
    alive: Mask
    entities: SingleWeights
    excess: Array | None
    step: Array
    start: Array
    turn: Array
    end: Array
    floor: Array

    def of(self, rows: Mask) -> _Batch:
        """Those of some nodes."""

        def some(field: Array) -> Array:
            return field[rows] if field.ndim > 1 else field

        excess = None if self.excess is None else self.excess[rows]
        return _Batch(
            self.smooth, self.alive[rows], self.entities.of(rows), excess, *map(some, self[4:])
        )


def _batch(smooth: _Smooth, alive: Mask, one: Mask, d: Array | None) -> _Batch:
    """``d`` (B, P) is the curvature in the penalty, None: the ridge."""
    entities = single_weights(smooth.ridge if d is None else d, smooth.price, smooth.M)
    # What is used in any case has no first piece.
    entities = entities._replace(kink=np.where(one, -1.0, entities.kink))
    excess = None if d is None else smooth.ridge - d
    bend = 2 * smooth.curvature + (0.0 if excess is None else 2 * excess)
    step = 1 / np.where(bend > 0, bend, 1.0)
    start = np.where(one, -1.0, step * entities.slope)
    start[~alive] = np.inf
    end = smooth.M * (1 + 2 * step * entities.ridge)
    return _Batch(
        smooth, alive, entities, excess, step, start, entities.kink + start, end,
        np.where(one, -np.inf, 0.0),
    )  # fmt: skip


def solve(batch: _Batch, w: Array, tolerance: float, cutoff: float) -> Points:
    """From weights w (B, P), until each node is within ``tolerance`` or its bound passes ``cutoff``."""
    now = evaluate(batch, w)
    best = Points(*(field.copy() for field in now))
    rows = np.arange(len(w))
    for _ in range(_STEPS):
        left = ~_done(best.bound[rows], best.value[rows], tolerance, cutoff)
        if not left.all():
            rows, now, batch = rows[left], now.of(left), batch.of(left)
        if len(rows) == 0:
            break
        found = _lower(batch, now, newton(batch, now))
        up = found.bound > best.bound[rows]
        for field, new in zip(best[:4], found[:4], strict=True):
            field[rows[up]] = new[up]
        lower = found.value < now.value
        best.value[rows] = np.minimum(best.value[rows], found.value)
        if not lower.all():  # some have come as far as this method takes them
            rows, batch, found = rows[lower], batch.of(lower), found.of(lower)
        now = found
    return best


def _done(bound: Array, value: Array, tolerance: float, cutoff: float) -> Mask:
    """As `node_fista.done`."""
    wanted: Array | float = tolerance
    if cutoff < np.inf:
        wanted = np.maximum(_RELATIVE * (cutoff - bound), tolerance)
    return (value - bound <= wanted) | (bound >= cutoff)


def _lower(batch: _Batch, now: Points, w: Array) -> Points:
    """At w, or on the way there from ``now``, where the value is lower."""
    found = evaluate(batch, w)
    for _ in range(_HALVINGS):
        higher = ~(found.value < now.value)
        if not higher.any():
            break
        w = np.where(higher[:, None], 0.5 * (w + now.w), w)
        found = evaluate(batch, w)
    return found


def evaluate(batch: _Batch, w: Array) -> Points:
    """Bounds and values at w (B, P)."""
    smooth = batch.smooth
    half = smooth.product(w) - smooth.c
    if batch.excess is not None:
        half += batch.excess * w
    value = np.einsum("bp,bp->b", half - smooth.c, w) + (smooth.c0 - smooth.credit)
    slope = 2 * half
    pull = np.abs(slope)
    if smooth.signed is not None:
        pull = np.where(smooth.signed, np.maximum(-slope, 0.0), pull)
    gain = batch.entities.gain(pull)
    paid = np.einsum("bp,bp->b", np.maximum(gain, batch.floor), batch.alive)
    bound = value - np.einsum("bp,bp->b", slope, w) - paid
    return Points(w, slope, gain, bound, value + np.add.reduce(batch.entities.cost(w), 1))


def newton(batch: _Batch, at: Points) -> Array:
    """The weights (B, P) that are stationary on the pieces where a proximal gradient step ends."""
    smooth, entities = batch.smooth, batch.entities
    V = at.w - batch.step * at.slope
    size = np.abs(V)
    if smooth.signed is not None:
        size = np.where(smooth.signed, np.maximum(V, 0.0), size)
    inside = size > batch.start
    if smooth.signed is not None:
        inside &= (size > 0) | ~smooth.signed
    quadratic = size > batch.turn
    held = inside & quadratic & (size >= batch.end)
    inside &= ~held
    sign = np.sign(V)
    w = np.where(held, smooth.M * sign, 0.0)
    most = int(np.add.reduce(inside, 1).max(initial=0))
    if most == 0:
        return w
    # The columns inside stand first, and padding behind them as equations x = 0.
    columns = np.argsort(~inside, axis=1, kind="stable")[:, :most]
    rows = np.arange(len(w))[:, None]
    real = inside[rows, columns]
    places = smooth.at[columns]
    A = smooth.G[places[:, :, None], places[:, None, :]]
    if not real.all():
        A *= real[:, :, None] & real[:, None, :]
    bend = np.where(quadratic, entities.ridge, 0.0)
    if batch.excess is not None:
        bend += batch.excess
    diagonal = np.einsum("bii->bi", A)
    diagonal += np.where(real, bend[rows, columns] + _DAMPING * diagonal, 1.0)
    right = smooth.c - np.where(quadratic, 0.0, 0.5 * entities.slope * sign)
    if held.any():
        right = right - smooth.product(w)
    right = np.where(real, right[rows, columns], 0.0)
    try:
        w[inside] = np.linalg.solve(A, right[:, :, None])[real, 0]
    except np.linalg.LinAlgError:
        return at.w
    # Across zero, or across its bound, a column is on another piece: the next step tells.
    across = inside & ~quadratic & (w * sign < 0)
    w[across] = 0.0
    w = np.minimum(np.maximum(w, -smooth.M), smooth.M)
    return w if np.isfinite(w).all() else at.w

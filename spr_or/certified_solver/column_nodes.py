r"""Nodes of single columns, with one output and the squared loss: Newton's method on the pieces.

The penalty of a single column is linear, then quadratic, then bounded
(`spr_or.formulations.single_weights`), so that a node's relaxation is a piecewise quadratic problem: once
it is known which column is at zero, on which piece, or at its bound, the weights solve linear equations.
A proximal gradient step with a step of its own for each column tells the pieces from a point near the
solution, and a parent's solution is near.  So most nodes take one or two systems of as many equations as
columns are in use, where first-order steps take dozens.  This is the semismooth Newton method of
`node_newton` in the form that it has here.

Where a step does not lower the value, the next one takes the loss to bend more along each column (a
Levenberg-Marquardt step).  Where that does not help either, as may be with more columns than samples and
little ridge, first-order steps go on; with moved curvature the node keeps the best bound that it has, for
every point gives one (`bounds`).

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

from spr_or.certified_solver.bounds import penalty_of
from spr_or.certified_solver.design import Design
from spr_or.certified_solver.nodes import FirstOrderEngine, Node
from spr_or.formulations.single_weights import SingleWeights, single_weights

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_STEPS = 20
_STIFFER, _STIFFEST = 4.0, 1e5
_RELATIVE = 0.3  # as in `node_fista`
_DAMPING = 1e-11  # of the diagonal, for more columns in use than samples
_EXACT = 1e-13  # of the loss at zero weights


def applies(design: Design) -> bool:
    """Whether this is for a design: single columns, one output, squared loss, moments, on a CPU."""
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
    """Solves nodes to a ``tolerance`` (absolute), each with the curvature d that it has, or the ridge."""

    def __init__(self, design: Design, tolerance: float) -> None:
        assert design.moments is not None
        self.design, self.tolerance = design, tolerance
        self.smooth = _smooth(design)
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
        batch = _batch(smooth, alive, one, d)
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
    batch = _batch(_smooth(design), np.ones(tuple(one.shape), bool), one.numpy(), None)
    found = solve(batch, W.numpy()[..., 0, 0], tolerance, np.inf)
    done = bool(_done(found.bound, found.value, tolerance, np.inf).all())
    return Relaxed(torch.from_numpy(found.w).view(W.shape), torch.from_numpy(found.value), done)


def best_weights(design: Design, supports: Tensor) -> tuple[Tensor, list[float]]:
    """The best weights (B, N, 1, 1) on supports (B, N) of a design that `applies` takes, and the objective
    of the integer problem there."""
    columns = supports.any(0).nonzero().squeeze(1).numpy()
    smooth, one = _smooth(design).of(columns), supports.numpy()[:, columns]
    W = np.zeros(tuple(supports.shape))
    batch = _batch(smooth, one, one, None)
    found = solve(batch, W[:, columns], _EXACT * smooth.c0, np.inf)
    W[:, columns] = found.w
    objective = found.value + smooth.credit
    if design.shadow:
        objective -= design.shadow * np.add.reduce(one & design.penalised.numpy()[columns], 1)
    return torch.from_numpy(W).view(*W.shape, 1, 1), objective.tolist()


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
        return self._replace(
            at=at, c=self.c[at], curvature=self.curvature[at], ridge=self.ridge[at],
            price=self.price[at], M=self.M[at], signed=signed,
        )  # fmt: skip

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
    step : of a proximal gradient step, (P,) or (B, P); with it, a column leaves zero where it has moved
        further than ``start``, is on the second piece beyond kappa + start, and at its bound beyond
        M + ``stretch``
    floor : what a column pays at least: nothing, or what it gains
    """

    smooth: _Smooth
    alive: Mask
    entities: SingleWeights
    excess: Array | None
    step: Array
    start: Array
    stretch: Array
    floor: Array

    def of(self, rows: Mask) -> _Batch:
        """Those of some nodes."""

        def some(field: Array) -> Array:
            return field[rows] if field.ndim > 1 else field

        excess = None if self.excess is None else self.excess[rows]
        return _Batch(
            self.smooth, self.alive[rows], self.entities.of(rows), excess, *map(some, self[4:])
        )


@np.errstate(all="ignore")
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
    stretch = 2 * step * entities.ridge * smooth.M
    floor = np.where(one, -np.inf, 0.0)
    return _Batch(smooth, alive, entities, excess, step, start, stretch, floor)


@np.errstate(all="ignore")  # what overflows is no better than what was known
def solve(batch: _Batch, w: Array, tolerance: float, cutoff: float) -> Points:
    """From weights w (B, P), until each node is within ``tolerance`` or its bound passes ``cutoff``."""
    now = evaluate(batch, w)
    best = Points(*(field.copy() for field in now))
    rows, stiff = np.arange(len(w)), np.ones(len(w))
    for _ in range(_STEPS):
        left = ~_done(best.bound[rows], best.value[rows], tolerance, cutoff)
        if not left.all():
            rows, stiff, now, batch = rows[left], stiff[left], now.of(left), batch.of(left)
        if len(rows) == 0:
            break
        found = evaluate(batch, newton(batch, now, stiff))
        up = found.bound > best.bound[rows]
        for field, new in zip(best[:4], found[:4], strict=True):
            field[rows[up]] = new[up]
        lower = found.value < now.value
        best.value[rows] = np.minimum(best.value[rows], found.value)
        if lower.all():
            now, stiff = found, np.maximum(stiff / _STIFFER, 1.0)
        else:
            now = Points(*(_choose(lower, *fields) for fields in zip(found, now, strict=True)))
            stiff = np.where(lower, np.maximum(stiff / _STIFFER, 1.0), _STIFFER * stiff)
            going = stiff <= _STIFFEST  # the others have come as far as this method takes them
            rows, stiff, now, batch = rows[going], stiff[going], now.of(going), batch.of(going)
    return best


def _choose(rows: Mask, new: Array, old: Array) -> Array:
    return np.where(rows if new.ndim == 1 else rows[:, None], new, old)


def _done(bound: Array, value: Array, tolerance: float, cutoff: float) -> Mask:
    """As `node_fista.done`."""
    wanted: Array | float = tolerance
    if cutoff < np.inf:
        wanted = np.maximum(_RELATIVE * (cutoff - bound), tolerance)
    return (value - bound <= wanted) | (bound >= cutoff)


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


def newton(batch: _Batch, at: Points, stiff: Array) -> Array:
    """The weights (B, P) that are stationary on the pieces where a proximal gradient step ends.

    ``stiff`` (B,) is at least 1: the smooth part is taken to bend so much more along each column as
    makes the gradient step shorter by this factor.
    """
    smooth, entities = batch.smooth, batch.entities
    short = 1 / stiff[:, None]
    V = at.w - short * batch.step * at.slope
    size = np.abs(V)
    if smooth.signed is not None:
        size = np.where(smooth.signed, np.maximum(V, 0.0), size)
    start = short * batch.start
    inside = size > start
    if smooth.signed is not None:
        inside &= (size > 0) | ~smooth.signed
    quadratic = size > entities.kink + start
    held = inside & quadratic & (size >= smooth.M + short * batch.stretch)
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
    right = smooth.c - np.where(quadratic, 0.0, 0.5 * entities.slope * sign)
    if (stiff > 1).any():
        more = (stiff - 1)[:, None] * (0.5 / batch.step)
        bend, right = bend + more, right + more * at.w
    diagonal = np.einsum("bii->bi", A)
    diagonal += np.where(real, bend[rows, columns] + _DAMPING * diagonal, 1.0)
    if held.any():
        right = right - smooth.product(w)
    right = np.where(real, right[rows, columns], 0.0)
    try:
        w[inside] = np.linalg.solve(A, right[:, :, None])[real, 0]
    except np.linalg.LinAlgError:
        return at.w
    # Across zero, or across its bound, a column is on another piece: the next step tells.
    across = inside & ~quadratic & (w * sign < 0)
    if smooth.signed is not None:
        across |= smooth.signed & (w < 0)
    w[across] = 0.0
    w = np.minimum(np.maximum(w, -smooth.M), smooth.M)
    return w if np.isfinite(w).all() else at.w

"""Several nodes of single columns at a time: their data as NumPy arrays, and bounds and values at weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.certified_solver.bounds import penalty_of
from spr_or.certified_solver.design import Design
from spr_or.formulations.single_weights import SingleWeights, single_weights

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


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


class Smooth(NamedTuple):
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

    def of(self, at: NDArray[np.int64]) -> Smooth:
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


def smooth_of(design: Design) -> Smooth:
    """Of all columns of a design of single columns, with moments."""
    assert design.moments is not None
    G, C, c0 = design.moments
    penalty = penalty_of(design)
    signed = None if penalty.signed is None else penalty.signed[:, 0].numpy()
    return Smooth(
        G.numpy(), float(c0), penalty.credit, np.arange(len(G)), C[:, 0].numpy(),
        G.diagonal().numpy(), penalty.ridge.numpy(), penalty.price.numpy(), penalty.M.numpy(), signed,
    )  # fmt: skip


class Batch(NamedTuple):
    """The problems of B nodes: what they share, and (B, P) what they do not.

    excess : ridge less moved curvature, or None
    step : of a proximal gradient step, (P,) or (B, P); with it, a column leaves zero where it has moved
        further than ``start``, is on the second piece beyond kappa + start, and at its bound beyond
        M + ``stretch``
    floor : what a column pays at least: nothing, or what it gains
    """

    smooth: Smooth
    alive: Mask
    entities: SingleWeights
    excess: Array | None
    step: Array
    start: Array
    stretch: Array
    floor: Array

    def of(self, rows: Mask) -> Batch:
        """Those of some nodes."""

        def some(field: Array) -> Array:
            return field[rows] if field.ndim > 1 else field

        excess = None if self.excess is None else self.excess[rows]
        return Batch(
            self.smooth, self.alive[rows], self.entities.of(rows), excess, *map(some, self[4:])
        )


@np.errstate(all="ignore")
def batch_of(smooth: Smooth, alive: Mask, one: Mask, d: Array | None) -> Batch:
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
    return Batch(smooth, alive, entities, excess, step, start, stretch, floor)


def evaluate(batch: Batch, w: Array) -> Points:
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

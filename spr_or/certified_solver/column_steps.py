r"""Steps between weights of nodes of single columns: by the pieces, and by an active set.

With H = G + excess + the ridge of the columns on the second piece, the weights that are stationary on given
pieces solve H_AA w_A = c_A less half the slopes of the first piece.  `by_pieces` takes the pieces where a
proximal gradient step ends: near the solution they are its pieces, so that one or two systems do, but nothing
makes the value fall.  `by_active_set` keeps the pieces of the weights at hand and goes towards their
stationary point only as far as the value falls, so that it ends at the solution in finitely many steps, as
the simplex method does; each step adds or drops few columns.  (For the lasso this is the feature-sign search
of Lee, Battle, Raina and Ng, 2006.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spr_or.certified_solver.column_batches import Array, Batch, Mask, Points

# Of the diagonal, for more columns in use than samples.  The least changes weights by no more than rounding
# does.  The other keeps moves along what the samples cannot tell below 1e8 times the slope, whose rounding
# would hide where they should end.
_LEAST_DAMPING, _DAMPING = 1e-11, 1e-8


def by_pieces(batch: Batch, at: Points) -> Array:
    """The weights (B, P) that are stationary on the pieces where a proximal gradient step ends."""
    smooth, entities = batch.smooth, batch.entities
    V = at.w - batch.step * at.slope
    size = np.abs(V)
    if smooth.signed is not None:
        size = np.where(smooth.signed, np.maximum(V, 0.0), size)
    inside = size > batch.start
    if smooth.signed is not None:
        inside &= (size > 0) | ~smooth.signed
    quadratic = size > entities.kink + batch.start
    held = inside & quadratic & (size >= smooth.M + batch.stretch)
    inside &= ~held
    sign = np.sign(V)
    w = np.where(held, smooth.M * sign, 0.0)
    right = smooth.c - np.where(quadratic, 0.0, 0.5 * entities.slope * sign)
    if held.any():
        right = right - smooth.product(w)
    w = w + _stationary(batch, inside, quadratic, right, _LEAST_DAMPING)
    # Across zero, or across its bound, a column is on another piece: the next step tells.
    across = inside & ~quadratic & (w * sign < 0)
    if smooth.signed is not None:
        across |= smooth.signed & (w < 0)
    w[across] = 0.0
    w = np.minimum(np.maximum(w, -smooth.M), smooth.M)
    return w if np.isfinite(w).all() else at.w


def by_active_set(batch: Batch, at: Points, grow: Mask) -> tuple[Array, Mask]:
    """Weights (B, P) of a value that is no higher, and where (B,) the stationary point was reached.

    The columns between zero and their bounds may move, with their signs and pieces.  Where ``grow`` (B,),
    one more may, which gains most by a small step.  It should grow where the stationary point was
    reached; before that, the column that joined may want to go to the other side, and nothing moves.
    """
    smooth, entities, w = batch.smooth, batch.entities, at.w
    size, forced = np.abs(w), entities.kink < 0  # forced: used in any case
    at_bound = size >= smooth.M
    active = ((w != 0) | forced) & ~at_bound
    pull = -at.slope
    if smooth.signed is not None:
        active &= ~smooth.signed | (w != 0)
        pull = np.where(smooth.signed, np.maximum(pull, 0.0), pull)
    sign = np.where(w != 0, np.sign(w), np.sign(pull))
    quadratic = forced | (size > entities.kink)
    slope = at.slope + np.where(quadratic, 2 * entities.ridge * w, entities.slope * sign)
    inwards = np.where(at_bound, slope * sign, -slope * sign)
    wishes = np.where(active | ~batch.alive | (pull == 0) & (w == 0), 0.0, inwards)
    rows, best = np.arange(len(w)), wishes.argmax(1)
    joins = grow & (wishes[rows, best] > 0)
    active[rows[joins], best[joins]] = True
    move = _stationary(batch, active, quadratic, -0.5 * slope, _DAMPING)
    move[~np.isfinite(move).all(1)] = 0.0
    return _best_on_line(batch, at, move)


def _stationary(batch: Batch, inside: Mask, quadratic: Mask, right: Array, damping: float) -> Array:
    """x (B, P) with H x = ``right`` over the columns ``inside``, and 0 elsewhere."""
    x = np.zeros(inside.shape)
    most = int(np.add.reduce(inside, 1).max(initial=0))
    if most == 0:
        return x
    # The columns inside stand first, and padding behind them as equations x = 0.
    columns = np.argsort(~inside, axis=1, kind="stable")[:, :most]
    rows = np.arange(len(x))[:, None]
    real = inside[rows, columns]
    places = batch.smooth.at[columns]
    H = batch.smooth.G[places[:, :, None], places[:, None, :]]
    if not real.all():
        H *= real[:, :, None] & real[:, None, :]
    bend = np.where(quadratic, batch.entities.ridge, 0.0)
    if batch.excess is not None:
        bend += batch.excess
    diagonal = np.einsum("bii->bi", H)
    diagonal += np.where(real, bend[rows, columns] + damping * diagonal, 1.0)
    try:
        solved = np.linalg.solve(H, np.where(real, right[rows, columns], 0.0)[:, :, None])
    except np.linalg.LinAlgError:
        solved = np.full((*real.shape, 1), np.nan)
    x[inside] = solved[real, 0]
    return x


@np.errstate(all="ignore")
def _best_on_line(batch: Batch, at: Points, move: Array) -> tuple[Array, Mask]:
    """The best of w + t ``move`` (B, P) in the box, 0 <= t <= 1, and where t = 1 (B,).

    The value is convex in t and quadratic between breakpoints: where a weight is zero or at its kink.  Its
    slope at the end of a piece, from within, tells whether the best t lies beyond.
    """
    smooth, entities, w = batch.smooth, batch.entities, at.w
    lowest = -smooth.M if smooth.signed is None else np.where(smooth.signed, 0.0, -smooth.M)
    room = np.where(move > 0, (smooth.M - w) / move, (lowest - w) / move)
    room[move == 0] = np.inf
    end = np.minimum(np.minimum.reduce(room, 1), 1.0)

    crossing = -w / move
    breaks = np.concatenate(
        [crossing, (entities.kink - w) / move, (-entities.kink - w) / move, end[:, None]], 1
    )
    inner = (breaks > 0) & (breaks < end[:, None])
    breaks = np.sort(np.where(inner, breaks, end[:, None]), 1)
    bend = smooth.product(move)
    if batch.excess is not None:
        bend = bend + batch.excess * move
    first = np.einsum("bp,bp->b", at.slope, move)
    second = 2 * np.einsum("bp,bp->b", bend, move)
    rows = np.arange(len(w))
    # Where the second piece is empty, rounding may not enter it: the slope there would be too low.
    kink = np.where(entities.kink >= smooth.M, np.inf, entities.kink)

    def within(piece: NDArray[np.int64]) -> tuple[Array, Array, Array, Array]:
        """Start and end of each node's piece, and slope and curvature in its middle."""
        start = np.where(piece > 0, breaks[rows, piece - 1], 0.0)
        stop = breaks[rows, piece]
        middle = 0.5 * (start + stop)
        x = w + middle[:, None] * move
        on_first = np.abs(x) <= kink
        of_penalty = np.where(on_first, entities.slope * np.sign(x), 2 * entities.ridge * x)
        slope = first + middle * second + np.einsum("bp,bp->b", of_penalty, move)
        more = np.where(on_first, 0.0, 2 * entities.ridge * move) * move
        return start, stop, slope, second + np.add.reduce(more, 1)

    low, high = np.zeros(len(w), int), np.full(len(w), breaks.shape[1] - 1)
    while (low < high).any():
        piece = (low + high) // 2
        start, stop, slope, curvature = within(piece)
        beyond = slope + 0.5 * (stop - start) * curvature < 0
        low, high = np.where(beyond & (low < high), piece + 1, low), np.where(beyond, high, piece)
    start, stop, slope, curvature = within(low)
    straight = np.where(slope > 0, start, stop)
    step = np.where(curvature > 0, 0.5 * (start + stop) - slope / curvature, straight)
    t = np.minimum(np.maximum(step, start), stop)
    x = w + t[:, None] * move
    x[crossing == t[:, None]] = 0.0
    at_bound = room == t[:, None]
    x = np.where(at_bound & (move > 0), smooth.M, np.where(at_bound, lowest, x))
    return np.where(t[:, None] > 0, x, w), t >= 1.0

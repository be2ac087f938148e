r"""The losses of the check: their sums with all rounding, slopes, and conjugates with directed rounding.

A conjugate is finite only in its domain, in which `slope` stays in spite of rounding: any nu there gives
a bound, and one near the derivative a good one.

**Poisson loss**, exp(f) - y f + y log y - y: with s = nu + y >= 0 its conjugate is s log s - s less
y log y - y.  s is known within delta; t log t - t varies over an interval of that length which ends at t
by at most

.. math::  \int_0^\delta |\log t|\,dt + \delta \log^+ (t) \le \delta (1 + |\log \delta| + \log^+ t) .
"""

from __future__ import annotations

import numpy as np

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.data import Data
from spr_or.proof.rounding import SAFE, TINY, UNIT, Array, down, total


def sum_of_losses(data: Data, prediction: Array, off: Array) -> tuple[float, float]:
    """The sum of the losses (weighted) at predictions (rows, q) that are known within ``off``, and how far it
    can be off."""
    if data.loss == "squared":
        residual = np.abs(prediction - data.Y)
        loss, error = total(np.square(residual))
        return loss, error + float((2 * residual * off + np.square(off)).sum()) + 8 * UNIT * loss
    size = 1.0 if data.size is None else data.size
    if data.loss == "logistic":
        loss, error = total(size * np.logaddexp(0.0, -data.Y * prediction))
        largest = float(np.max(size))
        return loss, error + float((size * off).sum()) + 16 * UNIT * (
            loss + largest * prediction.size
        )
    rate, Y = np.exp(prediction), data.Y
    loss, error = total(size * np.stack([rate, -Y * prediction, _xlogx(Y) - Y]))
    steep = (np.exp(prediction + off) * (1 + 16 * UNIT) + Y) * off
    parts = rate + np.abs(Y * prediction) + np.abs(_xlogx(Y)) + Y
    return loss, error + float((size * (steep + 16 * UNIT * parts)).sum())


def slope(data: Data, prediction: Array) -> Array:
    """nu near the derivative of the loss at the prediction, in the domain of its conjugate; times the weights
    of the samples."""
    if data.loss == "squared":
        return 2 * (prediction - data.Y)
    with np.errstate(over="ignore"):
        if data.loss == "poisson":
            nu = np.maximum(np.exp(prediction) - data.Y, -data.Y * (1 - 8 * UNIT))
            return nu if data.size is None else data.size * nu
        share = 1 / (1 + np.exp(data.Y * prediction))
    if data.size is None:
        return -data.Y * np.clip(share, 0.0, 1.0)
    return -data.Y * (data.size * np.clip(share, 0.0, 1 - 8 * UNIT))


def conjugate(data: Data, nu: Array) -> float:
    """A lower bound of -(1/n) sum l*(nu)."""
    if data.loss == "squared":  # l*(nu) = nu y + nu^2 / 4
        value, error = total(np.stack([nu * data.Y, np.square(nu) / 4]))
        error += 4 * UNIT * float(np.abs(nu * data.Y).sum() + np.square(nu).sum())
    elif data.loss == "poisson":
        value, error = _poisson_conjugate(data, nu)
    else:  # with p = -nu y in [0, 1]: p log p + (1 - p) log(1 - p)
        p = np.abs(nu)
        if data.size is None:
            value, error = total(np.stack([_xlogx(p), _xlogx(1 - p)]))
            error += 32 * UNIT * nu.size
        else:  # p t as it was rounded is t times a p of another last digit
            p = np.minimum(p / data.size, 1.0)
            value, error = total(data.size * np.stack([_xlogx(p), _xlogx(1 - p)]))
            error += 256 * UNIT * float(data.size.sum())
    mean = down(-value, error) / data.n
    return mean - 4 * UNIT * abs(mean)


def _poisson_conjugate(data: Data, nu: Array) -> tuple[float, float]:
    """The sum of the conjugates, times the weights of the samples, and how far it can be off; see the top."""
    size = np.ones_like(nu) if data.size is None else data.size
    Y, own = data.Y, nu / size
    s = np.maximum(own + Y, 0.0)
    delta = 4 * UNIT * (np.abs(own) + Y) + TINY
    moved = delta * (1 + np.abs(np.log(delta)) + np.log1p(s + delta))
    value, error = total(size * np.stack([_xlogx(s) - s, Y - _xlogx(Y)]))
    parts = np.abs(_xlogx(s)) + s + Y + np.abs(_xlogx(Y))
    return value, error + SAFE * float((size * (moved + 16 * UNIT * parts)).sum())


def size_at_zero(problem: SparseTrainingProblem) -> float:
    """The mean size of the terms in the loss of the prediction 0: what tolerances are relative to.

    It is that loss itself, but for the Poisson loss, whose terms cancel: it is 0 where every target is 1.
    """
    Y = problem.y.numpy()
    if problem.loss == "squared":
        return total(np.square(Y))[0] / problem.n
    size = 1.0 if problem.sample_weight is None else problem.sample_weight.numpy()[:, None]
    each = np.log(2.0) if problem.loss == "logistic" else 1.0 + np.abs(_xlogx(Y)) + Y
    return float((size * each * np.ones_like(Y)).sum()) / problem.n


def _xlogx(p: Array) -> Array:
    return p * np.log(np.where(p > 0, p, 1.0))

r"""Formulation (5) for entities of one weight, in NumPy: a piecewise quadratic function with known pieces.

With ridge r = lambda u alpha, price p = lambda u (1 - alpha) and a bound M on the weight, the projected
penalty (`spr_or.formulations.projected`) of a single weight w is

.. math::  e\,z(w) = \min_{|w|/M \le y \le 1} r w^2 / y + p y
           = \begin{cases} \tau |w| & |w| \le \kappa \\ r w^2 + p & \kappa \le |w| \le M \end{cases},
           \qquad \kappa = \min\bigl(\sqrt{p/r},\, M\bigr), \quad \tau = r\kappa + p/\kappa ,

because the best indicator is y = |w| / kappa up to one.  Where kappa < M, tau = 2 r kappa, so that the slope
does not jump at kappa: the one kink is at zero.  Where kappa = M, the second piece is empty.

`projected` is for batches of wide nodes, on any device.  What is here serves solvers of narrow ones, where
calls to torch would cost more than the arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class SingleWeights(NamedTuple):
    """Entities of one weight: r, p, M, kappa, tau and 1 / (2 r), each (..., N) float64."""

    ridge: Array
    price: Array
    M: Array
    kink: Array
    slope: Array
    half_inverse: Array

    def of(self, rows: NDArray[np.bool_]) -> SingleWeights:
        """Those of some rows of a batch; fields without a batch stay as they are."""
        return SingleWeights(*(field[rows] if field.ndim > 1 else field for field in self))

    def indicator(self, w: Array) -> Array:
        """The best y for the weights w (..., N).

        >>> entities = single_weights(np.array([1.0]), np.array([4.0]), np.array([3.0]))
        >>> float(entities.indicator(np.array([0.5]))[0])
        0.25
        """
        size = np.abs(w)
        return np.minimum(size / np.maximum(self.kink, 1e-200), 1.0)

    def cost(self, w: Array) -> Array:
        """e z(w) of each weight, (..., N).

        >>> entities = single_weights(np.array([1.0]), np.array([1.0]), np.array([3.0]))
        >>> [float(entities.cost(np.array([w]))[0]) for w in (0.5, 2.0)]
        [1.0, 5.0]
        """
        size = np.abs(w)
        return np.where(size <= self.kink, self.slope * size, self.ridge * size * size + self.price)

    def gain(self, pull: Array) -> Array:
        """max over 0 <= x <= M of pull x - r x^2, less the price: what y = 1 gains, (..., N).

        ``pull`` (..., N) is at least 0.  This is `projected.gain_of` for one weight, less the price.

        >>> entities = single_weights(np.array([1.0]), np.array([1.0]), np.array([3.0]))
        >>> float(entities.gain(np.array([4.0]))[0])
        3.0
        """
        x = np.minimum(pull * self.half_inverse, self.M)
        return x * (pull - self.ridge * x) - self.price


def single_weights(ridge: Array, price: Array, M: Array) -> SingleWeights:
    """The entities with these numbers, each (..., N).

    >>> entities = single_weights(np.array([1.0, 0.0]), np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    >>> entities.kink.tolist(), entities.slope.tolist()
    ([1.0, 4.0], [2.0, 0.5])
    """
    tiny = 1e-200  # whose quotients do not overflow
    kink = np.minimum(np.sqrt(price / np.maximum(ridge, tiny)), M)
    slope = ridge * kink + price / np.maximum(kink, tiny)
    return SingleWeights(ridge, price, M, kink, slope, 0.5 / np.maximum(ridge, tiny))

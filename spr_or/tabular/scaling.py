"""Columns and targets in the units of a problem, and its weights back in the units of the data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spr_or.tabular.source import Array
from spr_or.tabular.variables import constant


class Scaling(NamedTuple):
    """A problem has (x - centre) / scale and (y - y_centre) / y_scale.

    centre, scale : (p,); y_centre, y_scale : (q,); zeros and ones where nothing is done
    """

    centre: Array
    scale: Array
    y_centre: Array
    y_scale: Array

    def entered(self, X: Array, y: Array, free_intercept: bool) -> tuple[Array, Array]:
        """Columns X (n, p) and targets y (n, q) as the problem has them; a ``free_intercept`` adds a last
        column of ones.

        >>> one, nothing = np.ones(1), np.zeros(1)
        >>> how = Scaling(2 * one, one, nothing, one)
        >>> how.entered(np.array([[5.0]]), np.array([[1.0]]), free_intercept=True)[0].tolist()
        [[3.0, 1.0]]
        """
        A = (X - self.centre) / self.scale
        if free_intercept:
            A = np.column_stack([A, np.ones(len(A))])
        return A, (y - self.y_centre) / self.y_scale

    def weights(self, theta: Tensor) -> tuple[Array, Array]:
        """theta (P,) of the problem as weights (p, q) of the columns as they are, and intercepts (q,).

        A column of the problem behind the p of the data is one of ones, a free intercept.
        """
        table = theta.numpy().reshape(-1, len(self.y_scale))
        p = len(self.scale)
        W = table[:p] * self.y_scale / self.scale[:, None]
        return W, self.y_centre + table[p:].sum(0) - self.centre @ W

    def theta(self, W: Array, free_intercept: Array | None = None) -> Tensor:
        """Weights (p, q) of the columns as they are as theta (P,) of the problem: the inverse of `weights`.

        ``free_intercept`` (q,): the intercepts, where the problem has a free column of ones for them.
        """
        table = W * self.scale[:, None] / self.y_scale
        if free_intercept is not None:
            table = np.vstack([table, free_intercept - self.y_centre + self.centre @ W])
        return torch.from_numpy(table.reshape(-1))


def scaling(
    X: Array,
    y: Array,
    weight: Array | None,
    *,
    centred: bool,
    standardise: bool,
    squared: bool,
    scale_target: bool = True,
    exact_zeros: bool = True,
) -> Scaling:
    """How columns X (n, p) and targets y (n, q) enter, with weights (n,) of the rows or None.

    Parameters
    ----------
    centred : subtract the (weighted) means; of the targets only with the ``squared`` loss
    standardise : divide columns by their root mean square, and with ``scale_target`` the targets of the
        ``squared`` loss as well
    exact_zeros : what does not vary is exactly zero when it is centred
    """
    share = None if weight is None else weight / weight.sum()
    nothing = Scaling(
        np.zeros(X.shape[1]), np.ones(X.shape[1]), np.zeros(y.shape[1]), np.ones(y.shape[1])
    )
    centre, scale, y_centre, y_scale = nothing
    if centred:
        centre = _centre(X, share, exact_zeros)
        y_centre = _centre(y, share, exact_zeros) if squared else y_centre
    if standardise:
        scale = _root_mean_square(X - centre, share)
        if squared and scale_target:
            y_scale = _root_mean_square(y - y_centre, share)
    return Scaling(centre, scale, y_centre, y_scale)


def _centre(values: Array, share: Array | None, exact_zeros: bool) -> Array:
    mean = _mean(values, share)
    return np.where(constant(values), values[0], mean) if exact_zeros else mean


def _mean(values: Array, share: Array | None) -> Array:
    return np.asarray(values.mean(0) if share is None else share @ values)


def _root_mean_square(values: Array, share: Array | None) -> Array:
    """(p,), 1 for columns that do not vary."""
    size = np.sqrt(_mean(np.square(values), share))
    size[size == 0] = 1.0
    return size

r"""A feed-forward ReLU network as a short list of affine forms and activations.

All values of one sample stand in one vector x: the inputs, then the outputs of each activation in order.
The inputs of an activation, and the outputs of the network, are affine forms z = A x + b of the values so
far.  Convolutions, BatchNorm, averages, additions and what only moves numbers are all inside A and b.

**Rounding.**  torch adds in another order and in fewer digits.  Let a form be the composition of operators
M_k …  M_1 with K roundings behind one another; then what torch computes differs from A x + b by at most

.. math::  \gamma_K\, (R |x| + r), \qquad R = |M_k| \cdots |M_1|, \quad \gamma_K = \frac{K u}{1 - K u},

with the unit roundoff u of the network's dtype, whatever the order of a sum (Higham, Accuracy and Stability
of Numerical Algorithms, section 3.1).  A form carries R, r and K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn

Array = np.ndarray
_UNIT_FLOAT64 = 2.0**-53
_TINY = 1e-37  # what numbers below the smallest normal one of float32 can lose


class Form(NamedTuple):
    """z = A x + b of the first n values, and how far torch's z can be from it.

    matrix : A, a SciPy CSR matrix (m, n)
    offset : b, (m,)
    reach, reach_offset : R (m, n) and r (m,) of the error bound above
    roundings : K
    """

    matrix: Any
    offset: Array
    reach: Any
    reach_offset: Array
    roundings: int

    def __len__(self) -> int:
        return len(self.offset)

    def slack(self, size: Array, unit: float) -> Array:
        """The most by which torch, or float64, can miss z where |x| <= size: (m,)."""
        scale = self.reach @ size[: self.reach.shape[1]] + self.reach_offset
        gamma = sum(self.roundings * u / (1 - self.roundings * u) for u in (unit, _UNIT_FLOAT64))
        return gamma * scale + self.roundings * _TINY


@dataclass(frozen=True, eq=False)
class Activation:
    """What makes values of a form z: max(0, z), or the largest z of each window.

    place : the layer in words, for messages
    form : z, m rows
    first : the position of the first value that it makes
    windows : None for a ReLU, which makes m values; else boolean CSR (values, m), the rows of z
        that each value is the largest of
    """

    place: str
    form: Form
    first: int
    windows: Any = None

    @property
    def count(self) -> int:
        """How many values it makes."""
        return len(self.form) if self.windows is None else self.windows.shape[0]

    def apply(self, z: Array) -> Array:
        """(B, m) to (B, count)."""
        if self.windows is None:
            return np.maximum(z, 0)
        starts, members = self.windows.indptr[:-1], self.windows.indices
        return np.maximum.reduceat(z[:, members], starts, axis=1)


@dataclass(frozen=True, eq=False)
class FeedForward:
    """A network as forms and activations.

    net : the torch network, float64, in evaluation mode
    shape : of one input, without the batch
    activations : in order
    output : the form of the outputs, flattened
    unit : unit roundoff of the network as it was given
    """

    net: nn.Module
    shape: tuple[int, ...]
    activations: tuple[Activation, ...]
    output: Form
    unit: float

    @property
    def inputs(self) -> int:
        """Numbers in one input."""
        return int(np.prod(self.shape))

    @property
    def values(self) -> int:
        """Inputs and outputs of activations together."""
        return self.inputs + sum(step.count for step in self.activations)

    def evaluate(self, inputs: Array) -> tuple[list[Array], Array]:
        """Inputs (B, inputs) float64 to z of each activation, (B, m) each, and outputs (B, q)."""
        x, before = inputs, []
        for step in self.activations:
            before.append(at(step.form, x))
            x = np.concatenate([x, step.apply(before[-1])], axis=1)
        return before, at(self.output, x)


def at(form: Form, x: Array) -> Array:
    """z for values x (B, at least n): (B, m)."""
    return (form.matrix @ x[:, : form.matrix.shape[1]].T).T + form.offset

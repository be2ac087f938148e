r"""A problem in units of its own: targets, columns and objective of order one.

Solvers have absolute tolerances, between 1e-6 and 1e-10, and mean a problem whose numbers are of order
one.  A linear problem is brought there exactly: with powers of two d (columns) and s (targets, s = 1
for the classification losses),

.. math::  X' = X / d,\quad y' = y / s,\quad w' = w\, d / s,\quad M' = M\, d / s,

the loss is divided by c = s^2 (squared), s (absolute) or 1, and so is the penalty if

.. math::  \lambda' (1 - \alpha') = \lambda (1 - \alpha) / c, \qquad
           \lambda' \alpha' = \lambda \alpha s^2 / (d^2 c) .

The solutions of both problems correspond one to one, and so do their relaxations.  Only lambda' and
alpha' are rounded, in their last bit, and only if s and d differ.

A ReLU network is positively homogeneous in its data and in what its biases are multiplied with: for the
squared and the absolute loss both are divided by s, as y is, and the weights stay.  Other losses have
units of their own in f, and their networks stay as they are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from torch import Tensor

from spr_or.formulations.certificate import Certificate
from spr_or.formulations.problem import SparseTrainingProblem


class Units(NamedTuple):
    """What the numbers of a normalised problem are to be multiplied with, powers of two."""

    objective: float = 1.0
    weights: float = 1.0

    def restored(self, certificate: Certificate) -> Certificate:
        """The certificate of the normalised problem as one of the problem itself."""
        names = [field.name for field in dataclasses.fields(Certificate)]
        own = {name: getattr(certificate, name) for name in names}
        own["objective"] *= self.objective
        own["bound"] *= self.objective
        own["weights"] = own["weights"] * self.weights
        return Certificate(**own)


def normalised(problem: SparseTrainingProblem) -> tuple[SparseTrainingProblem, Units]:
    """The problem in units of its own, and the units.

    >>> X, y = [[1e-4, 0.0], [0.0, 1e-4]], [3000.0, 2000.0]
    >>> p = SparseTrainingProblem.linear(X, y, [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> small, units = normalised(p)
    >>> units.objective, units.weights, float(small.y.abs().max()) < 2
    (4194304.0, 33554432.0, True)
    """
    s = _power_of_two(problem.y) if problem.loss in ("squared", "absolute") else 1.0
    c = s * s if problem.loss == "squared" else s
    if not problem.convex:
        return _in_units(problem, s, c), Units(objective=c)
    d = _power_of_two(problem.X)
    ridge = problem.alpha * (s / d) ** 2
    total = ridge + (1 - problem.alpha)
    units = Units(c, s / d)
    scaled = dataclasses.replace(
        problem,
        X=problem.X / d,
        y=problem.y / s if s != 1 else problem.y,
        M=problem.M / units.weights,
        M_free=problem.M_free / units.weights,
        lam=problem.lam / c * total,
        alpha=ridge / total,
    )
    return scaled, units


def _in_units(problem: SparseTrainingProblem, s: float, c: float) -> SparseTrainingProblem:
    """A network with data, biases' input and targets divided by s, the objective by c."""
    if s == 1:
        return problem
    return dataclasses.replace(
        problem, X=problem.X / s, y=problem.y / s, lam=problem.lam / c,
        bias_input=problem.bias_input / s,
    )  # fmt: skip


def _power_of_two(values: Tensor) -> float:
    """The power of two next to the root mean square; 1 where all values are 0."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest == 0:
        return 1.0
    size = largest * float((values / largest).square().mean().sqrt())
    return 2.0 ** round(math.log2(size))

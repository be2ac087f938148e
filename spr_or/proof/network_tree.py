r"""The check of a bound by activation patterns: a tree over which neurons fire where, and multipliers.

The problem is (1)-(3) for a network Linear(2, N), ReLU, Linear(N, 1) with its hidden neurons as entities.

**The tree.**  A node is a list of groups; a group stands for c neurons in use whose output weight has the
sign sigma (0 counts as positive), and which fire at some samples and not at others.  Below the root stands
a node for each number p of positive and q of negative neurons with p + q <= N: groups (+, p) and (-, q)
that may fire anywhere, without those of 0 neurons.  A node is split, group g at sample m, into c + 1 nodes:
a = 0, ..., c neurons of g fire at m and c - a do not, two groups in the place of g, without those of 0
neurons.  Every network is in a leaf below the root, for its neurons are in use or not, have a sign, and fire
at a sample or do not.  A tree is stated as its splits (g, m) in preorder, (-1, -1) for a leaf, so that no
node can be left out.

**Theorem.**  With any nu of the domain of the loss's conjugate l*, every network of a leaf costs at least

.. math::  D(\nu) = -\frac1n \sum_m \ell^*(\nu_m) - M_{free}\, b_0 \Bigl|\frac1n \sum_m \nu_m\Bigr|
    + \sum_g c_g \Bigl[\lambda u (1-\alpha) - \frac{(M_{free} \gamma_g / n)^2}{4 \lambda u \alpha}\Bigr],

gamma_g at least 0 and the largest of -sigma sum_m nu_m max(0, d . x~_m) over the unit vectors d of the cells
that a neuron of g can be in (`activation_cells`).  A leaf with a group that has no cell has no network.
*Proof.*  l(f) >= nu f - l*(nu).  In sum_m nu_m f_m / n the output's bias adds at least the second term.  A
neuron with the output weight v of sign sigma and the weights w adds at least -|v| ||w|| gamma_g / n.  With
|v| <= M_free, its price and r = ||w|| that is at least lambda u (1 - alpha) + lambda u alpha r^2
- r M_free gamma_g / n, whose least value over r is the bracket.  A neuron that is not in use adds nothing.
The neurons that fire at some samples, z > 0, and not at others, z <= 0, lie in the closures of cells that do
the same: {z <= 0 at the others} is convex and has inner points, for (0, 0, -1) is one, and {z > 0} is open.

gamma_g is a float that is rounded up; all else is computed in fractions of the problem's floats.  The least
D of all leaves is the bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spr_or.formulations.one_hidden_layer import reason_against
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.activation_cells import Cells, cells_of, largest_gains
from spr_or.proof.check import ALLOWANCE, ProofCheck
from spr_or.proof.rounding import Array

LEAF = (-1, -1)


class Group(NamedTuple):
    """``size`` neurons of one sign that can be in the ``cells`` (K,) bool."""

    sign: int
    size: int
    cells: Array


class Stated(NamedTuple):
    """What is claimed: weights (P,), indicators (N,), the objective, the bound, and the tree that proves it.

    splits : int64 (R, 2), in preorder, `LEAF` for a leaf; multipliers : (L, n), nu of each leaf in order
    """

    weights: Tensor
    indicators: Tensor
    objective: float
    bound: float
    splits: Tensor
    multipliers: Tensor


def check_patterns(problem: SparseTrainingProblem, stated: Stated) -> ProofCheck:
    """Evaluate the solution and the tree again; the bound returned is the one proven here.

    ``ValueError`` where the problem is not of the kind above, or all its samples lie on a line.

    >>> from torch import nn
    >>> from spr_or.formulations.entities import neurons
    >>> net = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    >>> X, y = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1.0, 1.0, 1.0]
    >>> p = SparseTrainingProblem.network(net, X, y, neurons(net), lam=0.1, alpha=0.5, M=2)
    >>> bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).double()  # of the output; no neuron is used
    >>> leaves = torch.tensor([LEAF] * 3)  # no neuron, one of negative sign, one of positive sign
    >>> nu = torch.zeros(3, 3).double()
    >>> check_patterns(p, Stated(bias, torch.zeros(1).double(), 0.0, 0.0, leaves, nu)).ok
    True
    """
    reason = reason_against(problem)
    if not reason and problem.X.shape[1] != 2:
        reason = f"samples must have two numbers, not {problem.X.shape[1]}"
    if not reason and problem.loss not in _CONJUGATES:
        reason = f"the loss must be {' or '.join(_CONJUGATES)}, not {problem.loss}"
    if reason:
        raise ValueError(f"the check of patterns cannot take {problem.name!r}: {reason}")
    problem.need_plain("the check of patterns")
    faults = _solution_faults(problem, stated)
    objective = math.nan if faults else _objective(problem, stated)
    allowance = ALLOWANCE * (abs(objective) + abs(stated.objective))
    if not faults and not abs(objective - stated.objective) <= allowance:
        faults.append(f"the objective is {objective!r}, not {stated.objective!r} as stated")
    bound = -math.inf
    try:
        bound = prove(problem, stated.splits, stated.multipliers)
    except _Fault as fault:
        faults.append(str(fault))
    else:
        if not stated.bound <= bound:
            faults.append(f"the tree proves the bound {bound!r}, not {stated.bound!r} as stated")
        if not math.isnan(objective) and not bound <= objective + allowance:
            faults.append(f"the bound {bound!r} lies above the objective {objective!r}")
    return ProofCheck(not faults, objective, bound, faults)


def prove(problem: SparseTrainingProblem, splits: Tensor, multipliers: Tensor) -> float:
    """The least bound of all leaves, rounded down; `Stated` has the arguments."""
    least = min(leaf_bounds(problem, splits, multipliers))
    near = float(least)
    return near if near <= least else math.nextafter(near, -math.inf)


def leaf_bounds(
    problem: SparseTrainingProblem, splits: Tensor, multipliers: Tensor
) -> Iterator[Fraction | float]:
    """D(nu) of each leaf in order: inf where it has no network, -inf where nu leaves the domain of l*."""
    if splits.is_floating_point() or splits.dim() != 2 or splits.shape[1] != 2:
        raise _Fault(f"splits must be integers of shape (R, 2), got {tuple(splits.shape)}")
    if multipliers.dim() != 2:
        raise _Fault(f"multipliers must have the shape (L, n), got {tuple(multipliers.shape)}")
    numbers = _Numbers.of(problem)
    bias = np.full((problem.n, 1), problem.bias_input)
    cells = cells_of(np.hstack([problem.X.numpy(), bias]))
    nodes, given = iter(splits.tolist()), iter(multipliers.double().numpy())
    for groups in _leaves(cells, len(problem.entities), nodes):
        nu = next(given, None)
        if nu is None:
            raise _Fault("a leaf has no multipliers")
        yield numbers.bound(cells, groups, nu)
    if next(nodes, None) is not None or next(given, None) is not None:
        raise _Fault("there are more records than the tree has nodes")


class _Fault(Exception):
    """A statement that is no tree of this problem."""


def _leaves(cells: Cells, most: int, splits: Iterator[list[int]]) -> Iterator[list[Group]]:
    """The groups of each leaf, in preorder."""
    everywhere = np.ones(len(cells.fires), dtype=bool)
    waiting = [
        [Group(sign, size, everywhere) for sign, size in ((1, p), (-1, q)) if size]
        for p, q in itertools.product(range(most + 1), repeat=2)
        if p + q <= most
    ][::-1]
    while waiting:
        groups = waiting.pop()
        split = next(splits, None)
        if split is None:
            raise _Fault("the tree ends before all its nodes are stated")
        g, m = split
        if (g, m) == LEAF:
            yield groups
            continue
        if not (0 <= g < len(groups) and 0 <= m < cells.fires.shape[1]):
            raise _Fault(f"there is no group {g} or no sample {m} to split")
        waiting += _children(groups, g, cells.fires[:, m])[::-1]


def _children(groups: list[Group], g: int, fires: Array) -> list[list[Group]]:
    sign, size, where = groups[g]
    children = []
    for firing in range(size + 1):
        parts = [
            Group(sign, firing, where & fires), Group(sign, size - firing, where & ~fires)
        ]  # fmt: skip
        children.append(groups[:g] + [part for part in parts if part.size] + groups[g + 1 :])
    return children


class _Numbers(NamedTuple):
    """The problem's numbers as fractions."""

    loss: str
    y: list[Fraction]
    price: Fraction
    ridge: Fraction
    free: Fraction
    bias: Fraction

    @classmethod
    def of(cls, problem: SparseTrainingProblem) -> _Numbers:
        weight = Fraction(problem.lam) * Fraction(float(problem.u[0]))
        alpha = Fraction(problem.alpha)
        return cls(
            problem.loss, [Fraction(y) for y in problem.y.flatten().tolist()], weight * (1 - alpha),
            weight * alpha, Fraction(problem.M_free), Fraction(problem.bias_input),
        )  # fmt: skip

    def bound(self, cells: Cells, groups: list[Group], nu: Array) -> Fraction | float:
        """D(nu) of a leaf; see `leaf_bounds`."""
        if nu.shape != (len(self.y),) or not np.isfinite(nu).all():
            raise _Fault(f"multipliers are not {len(self.y)} finite numbers")
        if not all(group.cells.any() for group in groups):
            return math.inf
        n, exact = len(self.y), [Fraction(number) for number in nu.tolist()]
        conjugates = [_CONJUGATES[self.loss](v, y) for v, y in zip(exact, self.y, strict=True)]
        if None in conjugates:
            return -math.inf
        total = -sum(c for c in conjugates if c is not None) / n
        total -= self.free * abs(self.bias) * abs(sum(exact, Fraction(0))) / n
        signs = {group.sign for group in groups}
        with np.errstate(all="ignore"):  # what leaves the range of float64 gives no bound
            gains = {sign: largest_gains(cells, nu, sign) for sign in signs}
        for group in groups:
            largest = float(gains[group.sign][group.cells].max())
            if not math.isfinite(largest):
                return -math.inf
            help_ = self.free * Fraction(largest) / n
            total += group.size * (self.price - help_**2 / (4 * self.ridge))
        return total


def _squared(nu: Fraction, y: Fraction) -> Fraction | None:
    return nu * y + nu * nu / 4


def _hinge(nu: Fraction, y: Fraction) -> Fraction | None:
    return nu * y if -1 <= nu * y <= 0 else None


# l*(nu) for a target y; None where it is infinite.
_CONJUGATES = {"squared": _squared, "hinge": _hinge}


def _solution_faults(problem: SparseTrainingProblem, stated: Stated) -> list[str]:
    entities = problem.entities
    for name, values, count in (
        ("weights", stated.weights, entities.n_parameters),
        ("indicators", stated.indicators, len(entities)),
    ):
        if tuple(values.shape) != (count,) or not bool(values.isfinite().all()):
            return [f"the {name} are not {count} finite numbers"]
    y = stated.indicators
    if not bool(((y == 0) | (y == 1)).all()):
        return ["the indicators are not 0 or 1"]
    if bool((entities.rows(stated.weights).abs().amax(-1) > problem.M * y).any()):
        return ["a weight lies outside |w| <= M y"]
    if bool((stated.weights[entities.free].abs() > problem.M_free).any()):
        return ["a free weight lies outside |w| <= M_free"]
    return []


def _objective(problem: SparseTrainingProblem, stated: Stated) -> float:
    """The objective of (1) at the stated solution."""
    rows = problem.entities.rows(stated.weights)
    penalty = problem.alpha * rows.square().sum(-1) + (1 - problem.alpha) * stated.indicators
    with torch.no_grad():
        return float(problem.objective(stated.weights, penalty))

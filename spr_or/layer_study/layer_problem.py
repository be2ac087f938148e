"""The sparse training problem of a layer: lambda for a given size, M that excludes no optimum."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from spr_or.certified_solver.derived_m import CLEARANCE, weight_bounds
from spr_or.certified_solver.incumbents import SupportSolution, best_on_supports
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.layer_study.basis import perspective_basis
from spr_or.layer_study.standard import Standard, rotated
from spr_or.layer_study.subsets import Elimination, elimination, price_for

ALPHA = 0.1  # the ridge lambda alpha is then a ninth of a channel's price for a unit of energy


class LayerProblem(NamedTuple):
    """A layer's problem, its standard form in the problem's coordinates, and a first solution."""

    problem: SparseTrainingProblem
    standard: Standard
    first: SupportSolution


def layer_problem(name: str, standard: Standard, size: int) -> LayerProblem:
    """The problem whose optimum has about ``size`` channels, 0 < size < N.

    lambda (1 - alpha), the price of a channel, comes from greedy elimination (`price_for`); M from the
    data and the best solution found by that elimination, so that it excludes no optimum (`derived_m`).
    """
    price = price_for(elimination(standard, 1e-6).curve, size)
    path = elimination(standard, _ridge(price))
    price = price_for(path.curve, size)
    problem = _problem(name, standard, price)
    standard = rotated(standard, perspective_basis(problem, standard))
    problem = _problem(name, standard, price)
    first = _best(problem, path, price)
    M = (1 + CLEARANCE) * weight_bounds(problem, first.weights)
    return LayerProblem(dataclasses.replace(problem, M=M), standard, first)


def _ridge(price: float) -> float:
    return price * ALPHA / (1 - ALPHA)


def _problem(name: str, standard: Standard, price: float) -> SparseTrainingProblem:
    # The loss is a mean over rows: with this factor it is ||U V - Y||^2.
    scale = math.sqrt(len(standard.U))
    return SparseTrainingProblem.linear(
        scale * standard.U, scale * standard.Y, standard.groups,
        lam=price / (1 - ALPHA), alpha=ALPHA, M=1e6, name=name,
    )  # fmt: skip


def _best(problem: SparseTrainingProblem, path: Elimination, price: float) -> SupportSolution:
    """The best support on the path, with its best weights."""
    size = min(range(len(path.curve)), key=lambda s: path.curve[s] + s * price)
    return best_on_supports(problem, [path.support(size)])[0]

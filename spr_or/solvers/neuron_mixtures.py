r"""The best mixture of given neurons: a small convex quadratic program in their lengths.

A `Group` stands for c_g neurons of one `Region`.  Its mixture puts lengths r_k >= 0 on unit directions d_k
and predicts

.. math::  f_m = c + M_{free} \sum_g \sigma_g \sum_{k \in g} r_k \max(0, z_{km}),

at the price lambda u [alpha (sum_k r_k)^2 / c_g + (1 - alpha) c_g]: the least that c_g neurons on average at
r / c_g can cost, since sum_i r_i^2 >= (sum_i r_i)^2 / c_g.  Its multipliers nu are what
`spr_or.solvers.network_patterns` bounds with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.formulations.activation_patterns import Neuron, Region
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem

_TOLERANCE = 1e-9


class Group(NamedTuple):
    """``size`` neurons in use that lie in ``region``."""

    region: Region
    size: int


class Mixture(NamedTuple):
    """Its objective, the multipliers nu (n,), the bias c, and the lengths (K_g,) of each group's columns."""

    value: float
    nu: Tensor
    bias: float
    lengths: list[Tensor]


def best_mixture(
    problem: SparseTrainingProblem, groups: list[Group], columns: list[list[Neuron]]
) -> Mixture:
    """The best mixture of the ``columns`` of each group, for a squared or hinge loss."""
    B, ridge = _predictions(problem, groups, columns), _ridge(problem, groups, columns)
    x, nu = LOSS_PROGRAMS[problem.loss](problem, B, ridge)
    x = torch.cat([x[:1].clamp(-problem.M_free, problem.M_free), x[1:].clamp(min=0)])
    loss = LOSSES[problem.loss]
    price = problem.lam * float(problem.u[0]) * (1 - problem.alpha)
    value = float(loss.value((B @ x).unsqueeze(1), problem.y).mean() + x @ ridge @ x / 2)
    value += price * sum(group.size for group in groups)
    inside = loss.project(nu.unsqueeze(1), problem.y).flatten()
    return Mixture(value, inside, float(x[0]), list(x[1:].split([len(own) for own in columns])))


def _predictions(
    problem: SparseTrainingProblem, groups: list[Group], columns: list[list[Neuron]]
) -> Tensor:
    """B with f = B (c, r), shape (n, 1 + K)."""
    parts = [torch.full((problem.n,), problem.bias_input, dtype=torch.float64)]
    for group, own in zip(groups, columns, strict=True):
        size = group.region.sign * problem.M_free
        parts += [size * column.z.clamp(min=0) for column in own]
    return torch.stack(parts, dim=1)


def _ridge(
    problem: SparseTrainingProblem, groups: list[Group], columns: list[list[Neuron]]
) -> Tensor:
    """Q with (c, r)' Q (c, r) / 2 = lambda u alpha sum_g (sum_k r_k)^2 / c_g, shape (1 + K, 1 + K)."""
    ridge = 2 * problem.lam * float(problem.u[0]) * problem.alpha
    blocks = [torch.zeros(1, 1, dtype=torch.float64)]
    for group, own in zip(groups, columns, strict=True):
        blocks.append(torch.full((len(own), len(own)), ridge / group.size, dtype=torch.float64))
    return torch.block_diag(*blocks)


def _box(width: int, M_free: float) -> tuple[Tensor, Tensor]:
    """Rows and right sides of -M_free <= c <= M_free, r >= 0 for (c, r) of length ``width``."""
    eye = torch.eye(width, dtype=torch.float64)
    right = torch.zeros(width + 1, dtype=torch.float64)
    right[0] = right[-1] = M_free
    return torch.cat([-eye, eye[:1]]), right


def _squared(problem: SparseTrainingProblem, B: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """x = (c, r) of min (1/n) ||B x - y||^2 + x' Q x / 2, and nu (n,)."""
    y, n = problem.y.flatten(), problem.n
    rows, right = _box(B.shape[1], problem.M_free)
    x, _ = _quadratic_program(2 / n * B.T @ B + ridge, -2 / n * B.T @ y, rows, right)
    return x, 2 * (B @ x - y)


def _hinge(problem: SparseTrainingProblem, B: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """x = (c, r) of min (1/n) sum_m e_m + x' Q x / 2 with e >= 1 - y B x and e >= 0, and nu (n,)."""
    y, n, k = problem.y.flatten(), problem.n, B.shape[1]
    eye = torch.eye(n, dtype=torch.float64)
    box, limits = _box(k, problem.M_free)
    rows = torch.cat([torch.cat([-y.unsqueeze(1) * B, torch.zeros_like(B), box]),
                      torch.cat([-eye, -eye, eye.new_zeros(k + 1, n)])], dim=1)  # fmt: skip
    right = torch.cat([eye.new_full((n,), -1), eye.new_zeros(n), limits])
    P = torch.block_diag(ridge, eye.new_zeros(n, n))
    q = torch.cat([eye.new_zeros(k), eye.new_full((n,), 1 / n)])
    x, dual = _quadratic_program(P, q, rows, right)
    return x[:k], -n * y * dual[:n]


LOSS_PROGRAMS = {"squared": _squared, "hinge": _hinge}


def _quadratic_program(P: Tensor, q: Tensor, rows: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """min x'Px / 2 + q'x with rows x <= right: x and the multipliers of the rows."""
    import clarabel
    from scipy import sparse

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.presolve_enable = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _TOLERANCE
    solution = clarabel.DefaultSolver(
        sparse.triu(sparse.csc_matrix(P.numpy()), format="csc"), q.numpy(),
        sparse.csc_matrix(rows.numpy()), right.numpy(),
        [clarabel.NonnegativeConeT(len(right))], settings,
    ).solve()  # fmt: skip
    return torch.tensor(solution.x).double(), torch.tensor(solution.z).double()

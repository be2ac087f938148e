r"""The coordinates of each channel in which moved curvature is diagonal.

The search bounds a node with a diagonal D of curvature moved from the loss into the perspective term
(`certified_solver.many_outputs`), and more curvature can be moved if D may be any matrix D_i for each
group.  Which orthonormal columns stand for a channel is free (`standard`), so the best D_i are found
once, for the relaxation without fixings, and every channel is rotated to the eigenvectors of its D_i.

In turn: y at the given D; one step in every D_i, Newton's for the barrier term,

.. math::  \Delta_i = \tfrac1\mu\, B_i^{-1} \bigl[y_i (1 - y_i)\, \Omega^i \Omega^{i\prime} - \mu B_i\bigr]
           B_i^{-1}, \qquad B_i = (R^{-1})_{ii},

shortened until R = Q - D stays definite and the barrier rises; then eigenvectors.  The result is always
an orthogonal change of coordinates: the bounds hold in any case, and only their quality depends on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spr_or.certified_solver.design import Design, design_of
from spr_or.certified_solver.many_outputs import relaxation_at
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.layer_study.standard import Standard

_BARRIERS = (1e-1, 1e-2, 1e-3, 1e-4)  # of the price
_STEPS = 12


def perspective_basis(problem: SparseTrainingProblem, standard: Standard) -> list[Tensor]:
    """An orthogonal matrix for each group."""
    design = design_of(problem).with_moments()
    N, k, _ = design.shape
    Q = design.quadratic()
    turn = torch.eye(k, dtype=Q.dtype).repeat(N, 1, 1)
    smallest = float(torch.linalg.eigvalsh(Q)[0])
    blocks = 0.9 * smallest * turn
    if smallest > 0:
        for factor in _BARRIERS:
            mu = factor * float(design.price.mean())
            blocks = _improved(design, Q, blocks, mu)
    values, turn = torch.linalg.eigh(blocks)
    # A group with fewer directions than others is padded, and must not mix with its padding.
    return [
        turn[i] if len(group) == k else torch.eye(len(group), dtype=Q.dtype)
        for i, group in enumerate(standard.groups)
    ]


def _improved(design: Design, Q: Tensor, blocks: Tensor, mu: float) -> Tensor:
    """The blocks (N, k, k) after some steps with the barrier weight mu."""
    value = None
    y: Tensor | None = None
    trial, step, size = blocks, torch.zeros_like(blocks), 1.0
    for _ in range(2 * _STEPS):
        found = _at(design, Q, trial, mu, y)
        if found is not None and (value is None or found[0] > value):
            gained = found[0] - (value if value is not None else -torch.inf)
            blocks, (value, y, spread, inverse) = trial, found
            if gained < mu:
                break
            step = torch.linalg.solve(
                inverse, torch.linalg.solve(inverse, spread - mu * inverse).mT
            ).mT
            step, size = (step + step.mT) / (2 * mu), 1.0
            step = step * (design.real.unsqueeze(1) & design.real.unsqueeze(2))
        else:
            size *= 0.5
        trial = blocks + size * step
        while float(torch.linalg.eigvalsh(trial).amin()) <= 0 and size > 1e-6:
            size *= 0.5
            trial = blocks + size * step
    return blocks


def _at(
    design: Design, Q: Tensor, blocks: Tensor, mu: float, y: Tensor | None
) -> tuple[float, Tensor, Tensor, Tensor] | None:
    """The barrier's value at D, y, the blocks y (1 - y) Omega Omega' and those of R^-1; None where R is
    not definite."""
    N, k, _ = design.shape
    R = Q - torch.block_diag(*blocks)
    L, broken = torch.linalg.cholesky_ex(R)
    if int(broken):
        return None
    values, turn = torch.linalg.eigh(blocks)
    at = relaxation_at(design.turned(turn), values.clamp(min=1e-12), 0.1 * mu, y)
    omega = turn @ at.omega.view(N, k, -1)
    spread = (at.y * (1 - at.y)).view(-1, 1, 1) * (omega @ omega.mT)
    inverse = torch.cholesky_inverse(L).view(N, k, N, k).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    value = at.phi + mu * 2 * float(L.diagonal().log().sum())
    return value, at.y, spread, inverse

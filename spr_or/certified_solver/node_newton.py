r"""Newton steps for node relaxations with few columns, many nodes at a time.

A node's solution is a fixed point: w = prox(w - T grad f(w)), with f the loss, T the diagonal of the steps,
and prox the proximal operator of the penalty.  The semismooth Newton method (Qi and Sun, 1993) solves

.. math::  (I - J + J\,T H)\, d = \operatorname{prox}(w - T \nabla f(w)) - w

for its step d, with J the derivative of prox (`spr_or.formulations.projected_prox.derivative`, a diagonal and
a rank-one term for each entity) and H the Hessian of f.  It takes a few steps whatever the scales and
correlations of the columns are, where gradient steps may need thousands; and each step costs a
factorisation, which gradient steps do not.  A step is a trial: the caller keeps what improves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spr_or.certified_solver.design import Design, moments_of
from spr_or.certified_solver.node_prox import NodeProx
from spr_or.formulations.losses import LOSSES

_COLUMNS = 128
_NUMBERS = 5e7  # products for the Hessians of a batch, of a loss that is not quadratic
_DAMPING = 1e-9  # for more active columns than samples


def affordable(design: Design, nodes: int) -> bool:
    """Whether a step for some nodes costs little: one output, few columns."""
    N, k, q = design.shape
    P = N * k
    if q > 1 or P > _COLUMNS or design.X.device.type != "cpu":
        return False
    return design.loss == "squared" or nodes * design.Y.shape[0] * P**2 <= _NUMBERS


def hessians(design: Design, W: Tensor, block: Tensor | None) -> Tensor:
    """Of the mean loss at W (B, N, k, 1): (B, P, P), or (1, P, P) where it is the same for all."""
    if design.moments is not None:
        return 2 * design.moments.G.unsqueeze(0)
    samples = design.block() if block is None else block
    if design.loss == "squared":
        return 2 * moments_of(samples, design).G.unsqueeze(0)
    hessian = LOSSES[design.loss].hessian
    assert hessian is not None
    prediction = (W.flatten(1) @ samples.mT).unsqueeze(-1)
    bend = hessian(prediction, design.Y).squeeze(-1) / design.n
    if design.size is not None:
        bend = bend * design.size
    return samples.mT @ (bend * samples)


def step(
    design: Design, W: Tensor, V: Tensor, prox: NodeProx, steps: Tensor, block: Tensor | None
) -> Tensor:
    """W (B, N, k, 1) after a step of Newton's method; V is W after a gradient step of ``steps`` (N,).

    Where the equations are singular, W stays as it is.
    """
    B, N, k, _ = W.shape
    P = N * k
    real = design.real.to(W)
    slopes = prox.derivative(V)
    diagonal = slopes.diagonal.view(B, N, k) * real
    column = slopes.column.view(B, N, k) * real
    residual = (prox.shrink(V) - W).view(B, N, k)
    # Entities that the prox keeps at zero have no row in J: their step is their residual.
    H = hessians(design, W, block).expand(B, P, P) * steps.repeat_interleave(k).unsqueeze(-1)
    blocks = H.view(B, N, k, P)
    along = (column.unsqueeze(-2) @ blocks).squeeze(-2)  # (B, N, P)
    scaled = slopes.factor.view(B, N, 1) * column
    A = diagonal.unsqueeze(-1) * blocks + scaled.unsqueeze(-1) * along.unsqueeze(-2)
    own = torch.diag_embed(1 - diagonal) - scaled.unsqueeze(-1) * column.unsqueeze(-2)
    A.view(B, N, k, N, k).diagonal(dim1=1, dim2=3).add_(own.permute(0, 2, 3, 1))
    A.view(B, P, P).diagonal(dim1=1, dim2=2).add_(_DAMPING)
    moved, info = torch.linalg.solve_ex(A.view(B, P, P), residual.view(B, P, 1))
    sound = (info == 0) & moved.isfinite().flatten(1).all(-1)
    return W + torch.where(sound.view(B, 1, 1, 1), moved.view(W.shape), 0.0)

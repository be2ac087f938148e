r"""The dual bound of a node, from the tangent of its smooth part at any point.

A node of the tree fixes some y_i to 0 or 1.  Let D >= 0 be diagonal, so that R(W) = loss(W)
+ sum_i lambda u_i alpha ||W^i||^2 - <W, D W> is convex, or block diagonal with a block D_i an entity
(one output).  The node's problem is at least

.. math::  \min_W R(W) + \sum_i \min_{y_i} \Bigl[ \sum_j d_j \lVert W_j\rVert^2 / y_i
           + \lambda u_i (1-\alpha)\, y_i \Bigr], \qquad |W_j| \le M_i y_i,

and equals it once every y is fixed, for y = 1 gives back what R took away.  D = lambda u alpha is the
perspective relaxation of the paper; a larger D moves curvature of the loss into the perspective term,
which is tighter.  R is above its tangent at any point W, with slope g = grad R(W), hence

.. math::  \text{optimum} \ge R(W) - \langle g, W\rangle - \sum_i s_i^+ ,

where s_i = e_i h_i(-g/e_i) is the score of entity i: what y_i = 1 gains over y_i = 0
(`spr_or.projected.slope_of`; `projected.conjugate` is its positive part).  With D = lambda u alpha
this is the Fenchel bound D(nu) at nu = the loss gradient.  It is valid whatever the accuracy of W.

**A block D_i** couples the columns of an entity, and the box no longer takes them one by one.  For
any eta >= 0, with u = -g_i,

.. math::  \max_{|x_j| \le M} u'x - x'D_i x \;\le\; \tfrac14 u' (D_i + \mathrm{diag}\,\eta)^{-1} u
           + M^2 \textstyle\sum_j \eta_j ,

because eta_j (M^2 - x_j^2) >= 0 on the box; the multipliers of the maximiser give equality, and no
column at its limit means eta = 0.  With L L' = D_i + diag(eta), the right-hand side is the sum over
the columns of z = L^{-1} u, one by one again, without a box.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or import projected
from spr_or.solve.bnb.design import Design

_SWEEPS = 100


class Penalty(NamedTuple):
    """lambda u_i, lambda u_i alpha, lambda u_i (1 - alpha) and M_i, each (N,) or (B, N), and alpha."""

    weight: Tensor
    ridge: Tensor
    price: Tensor
    M: Tensor
    alpha: float


class Terms(NamedTuple):
    """The non-smooth part of a batch of nodes; entity tensors have shape (B, N).

    curvature : d_j > 0 of each column, (B, N, k), blocks D_i, (B, N, k, k), or None: lambda u alpha
    free, one : bool; an entity in neither is fixed to zero
    """

    curvature: Tensor | None
    free: Tensor
    one: Tensor


def penalty_of(design: Design) -> Penalty:
    """The penalty of all entities of a design."""
    return Penalty(design.ridge + design.price, design.ridge, design.price, design.M, design.alpha)


def scores(penalty: Penalty, gradient: Tensor, curvature: Tensor | None) -> Tensor:
    """s_i (B, N) for the slope ``gradient`` (B, N, k, q) of R.

    projected.slope_of wants a quadratic alpha sum_j metric_j w_j^2 + (1 - alpha) in units e_i:
    e_i = lambda u_i and metric_j = d_j / (lambda u_i alpha), or, where alpha = 0 leaves no unit for
    the quadratic, alpha' = 1/2 and e_i = 2 lambda u_i.
    """
    if curvature is not None and curvature.dim() == gradient.dim():
        return _block_scores(penalty, -gradient.squeeze(-1), curvature)
    alpha, unit = penalty.alpha, penalty.weight
    metric: Tensor | float = 1.0
    if curvature is not None:
        if alpha == 0:
            alpha, unit = 0.5, 2 * unit
        scaled = curvature / (unit * alpha).unsqueeze(-1)
        metric = scaled.unsqueeze(-1).expand(gradient.shape).flatten(-2)
    slope = -(gradient / unit.unsqueeze(-1).unsqueeze(-1)).flatten(-2)
    return unit * projected.slope_of(slope, alpha, penalty.M, metric=metric)


def _block_scores(penalty: Penalty, u: Tensor, D: Tensor) -> Tensor:
    """s_i (B, N) for blocks D (B, N, k, k) and u = -gradient (B, N, k)."""
    eta = box_multipliers(u, D, penalty.M)
    A = D + torch.diag_embed(eta)
    scale = A.diagonal(dim1=-2, dim2=-1).rsqrt()
    A = scale.unsqueeze(-1) * A * scale.unsqueeze(-2)
    L = torch.linalg.cholesky_ex(A)[0]
    z = torch.linalg.solve_triangular(L, (scale * u).unsqueeze(-1), upper=False)
    # Rounding: the factor is that of a matrix within k^2 eps ||A|| of A, which moves z'z by cond(A) times.
    size = A.flatten(-2).norm(dim=-1) * torch.cholesky_inverse(L).flatten(-2).norm(dim=-1)
    z = z * (1 + 8 * D.shape[-1] ** 2 * torch.finfo(D.dtype).eps * size)[..., None, None]
    free = penalty._replace(M=torch.full_like(penalty.M, torch.inf))
    lift = penalty.M.square() * eta.sum(-1)
    return scores(free, -z, torch.ones_like(u)) + lift


def box_multipliers(u: Tensor, D: Tensor, M: Tensor) -> Tensor:
    """Multipliers eta >= 0 (..., k) of |x_j| <= M for max u'x - x'Dx, near optimal.

    By cyclic coordinate ascent, for the entities whose free maximiser leaves the box.  u (..., k),
    D (..., k, k) positive definite, M (...).

    >>> box_multipliers(torch.tensor([4.0, 1.0]), torch.eye(2), torch.tensor(1.0)).tolist()
    [1.0, 0.0]
    """
    x = 0.5 * torch.linalg.solve(D, u.unsqueeze(-1)).squeeze(-1)
    outside = (x.abs() > M.unsqueeze(-1)).any(-1)
    eta = torch.zeros_like(u)
    if not bool(outside.any()):
        return eta
    u, D = u[outside], D[outside]
    limit = M.expand(outside.shape)[outside].unsqueeze(-1)
    x = x[outside].clamp(-limit, limit)
    for _ in range(_SWEEPS):
        before = x.clone()
        for j in range(u.shape[-1]):
            rest = (D[..., j, :] * x).sum(-1) - D[..., j, j] * x[..., j]
            x[..., j] = ((0.5 * u[..., j] - rest) / D[..., j, j]).clamp(-limit[:, 0], limit[:, 0])
        if bool(((x - before).abs() <= 1e-12 * limit).all()):
            break
    push = (u - 2 * (D @ x.unsqueeze(-1)).squeeze(-1)) / (2 * x)
    eta[outside] = torch.where(x.abs() >= limit, push.clamp(min=0), 0.0)
    return eta


def dual_bound(
    penalty: Penalty, value: Tensor, gradient: Tensor, W: Tensor, terms: Terms
) -> tuple[Tensor, Tensor]:
    """The bound (B,) and the scores (B, N), from R's value (B,) and gradient at W (B, N, k, q)."""
    score = scores(penalty, gradient, terms.curvature)
    paid = torch.where(terms.one, score, torch.where(terms.free, score.clamp(min=0), 0.0))
    return value - (gradient * W).sum((1, 2, 3)) - paid.sum(-1), score


def forced_bounds(bound: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds (B, N) of the same node with y_i forced to 1, and forced to 0: safe fixing.

    The node paid max(0, s_i); y_i = 1 pays s_i, which is more by [-s_i]_+, and y_i = 0 pays
    nothing, which is more by [s_i]_+.
    """
    base = bound.unsqueeze(-1)
    return base + (-score).clamp(min=0), base + score.clamp(min=0)

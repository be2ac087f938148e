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
(`spr_or.formulations.projected.gain_of` less the price; `projected.conjugate` is its positive part).
With D = lambda u alpha
this is the Fenchel bound D(nu) at nu = the loss gradient.  It is valid whatever the accuracy of W.

**A block D_i** couples the columns of an entity, and the box no longer takes them one by one.  For
any eta >= 0, with u = -g_i,

.. math::  \max_{|x_j| \le M} u'x - x'D_i x \;\le\; \tfrac14 u' (D_i + \mathrm{diag}\,\eta)^{-1} u
           + M^2 \textstyle\sum_j \eta_j ,

because eta_j (M^2 - x_j^2) >= 0 on the box; the multipliers of the maximiser give equality, and no
column at its limit means eta = 0.  With L L' = D_i + diag(eta), the right-hand side is the sum over
the columns of z = L^{-1} u, one by one again, without a box.

**Clusters.**  D may also couple entities: a partition into clusters of a few entities, and a block D_C
a cluster.  If the cluster uses the entities S and no others, only the rows and columns D_SS count, so
that cluster C pays, instead of the sum of s_i^+ over its entities,

.. math::  \max_S \; \max_{|x_j| \le M_j} u_S'x - x' D_{SS} x - \sum_{i \in S} \lambda u_i (1 - \alpha)

over the supports S the node allows: none of the entities fixed to zero, all of those fixed to one.
Several outputs share D and S: the maxima over x of all outputs are summed.
The minimum over y in [0, 1] has become one over the convex hull of the supports, exact within each
cluster.  The score of entity i is the best of the supports with i minus the best of those without.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.design import Design
from spr_or.formulations import projected

_SWEEPS = 100


class Penalty(NamedTuple):
    """lambda u_i alpha, lambda u_i (1 - alpha) and M_i, each (N,) or (B, N).

    ``signed`` (N, k) or None: columns whose weights are not negative.  Where prices hold the multiplier
    of the rule that at most m entities are used, ``credit`` is m times that, taken off every bound.
    """

    ridge: Tensor
    price: Tensor
    M: Tensor
    signed: Tensor | None = None
    credit: float = 0.0


class Terms(NamedTuple):
    """The non-smooth part of a batch of nodes; entity tensors have shape (B, N).

    curvature : d_j > 0 of each column, (B, N, k), blocks D_i, (B, N, k, k), or None: lambda u alpha;
        with clusters, blocks D_C, (B, m, s k, s k)
    free, one : bool; an entity in neither is fixed to zero
    clusters : (B, m, s) int64, a partition of 0..N-1 with -1 where a cluster is smaller, or None
    """

    curvature: Tensor | None
    free: Tensor
    one: Tensor
    clusters: Tensor | None = None


def penalty_of(design: Design, at: Tensor | None = None) -> Penalty:
    """The penalty of all entities of a design in relaxations, or of those at the positions ``at`` (...)."""
    ridge, price, M, signed = design.ridge, design.dear, design.M, design.signed
    if at is not None:
        ridge, price, M = ridge[at], price[at], M[at]
        signed = None if signed is None else signed[at]
    return Penalty(ridge, price, M, signed, design.credit)


def scores(penalty: Penalty, gradient: Tensor, curvature: Tensor | None) -> Tensor:
    """s_i (B, N) for the slope ``gradient`` (B, N, k, q) of R.

    `projected.gain_of` with d_j (lambda u_i alpha without moved curvature), less the price.
    """
    if penalty.signed is not None:
        pulled = penalty.signed.unsqueeze(-1)
        gradient = torch.where(pulled, gradient.clamp(max=0), gradient)
    if curvature is not None and curvature.dim() == gradient.dim():
        u = -gradient.squeeze(-1)
        M = penalty.M.unsqueeze(-1).expand(u.shape)
        return _block_gains(u, curvature, M) - penalty.price
    d = penalty.ridge.unsqueeze(-1) if curvature is None else curvature
    a = d.unsqueeze(-1).expand(gradient.shape).flatten(-2)
    return projected.gain_of(gradient.flatten(-2), a, penalty.M) - penalty.price


def _block_gains(u: Tensor, D: Tensor, M: Tensor) -> Tensor:
    """At least max u'x - x'Dx over |x_j| <= M_j, (...), for u and M (..., k) and D (..., k, k)."""
    eta = box_multipliers(u, D, M)
    A = D + torch.diag_embed(eta)
    scale = A.diagonal(dim1=-2, dim2=-1).rsqrt()
    A = scale.unsqueeze(-1) * A * scale.unsqueeze(-2)
    L = torch.linalg.cholesky_ex(A)[0]
    z = torch.linalg.solve_triangular(L, (scale * u).unsqueeze(-1), upper=False).squeeze(-1)
    # Rounding: the factor is that of a matrix within k^2 eps ||A|| of A, which moves z'z by cond(A) times.
    size = A.flatten(-2).norm(dim=-1) * torch.cholesky_inverse(L).flatten(-2).norm(dim=-1)
    z = z * (1 + 8 * D.shape[-1] ** 2 * torch.finfo(D.dtype).eps * size).unsqueeze(-1)
    return 0.25 * z.square().sum(-1) + (M.square() * eta).sum(-1)


def supports(size: int, device: torch.device | None = None) -> Tensor:
    """All subsets of ``size`` entities, (2^size, size) bool; the first is empty, the last is all.

    >>> supports(2).tolist()
    [[False, False], [True, False], [False, True], [True, True]]
    """
    numbers = torch.arange(2**size, device=device)
    return (numbers.unsqueeze(1) >> torch.arange(size, device=device)) % 2 == 1


def allowed(table: Tensor, alive: Tensor, one: Tensor) -> Tensor:
    """Which supports (S, s) leave out the entities not alive and have all those at one: (..., S) bool,
    for alive and one (..., s)."""
    used_dead = (table & ~alive.unsqueeze(-2)).any(-1)
    missing_one = (~table & one.unsqueeze(-2)).any(-1)
    return ~used_dead & ~missing_one


def on_supports(D: Tensor, columns: Tensor) -> Tensor:
    """D (..., K, K) on each support's columns (S, K) and the identity elsewhere, (..., S, K, K)."""
    pair = columns.unsqueeze(-1) & columns.unsqueeze(-2)
    return torch.where(pair, D.unsqueeze(-3), 0.0) + torch.diag_embed((~columns).to(D))


def _cluster_scores(penalty: Penalty, u: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """What all clusters pay, (B,), and the scores (B, N), zero where fixed; u = -gradient (B, N, k, q)."""
    assert terms.clusters is not None and terms.curvature is not None
    B, m, s = terms.clusters.shape
    k, q = u.shape[-2:]
    at = terms.clusters.clamp(min=0).flatten(1)

    def of_members(x: Tensor) -> Tensor:
        return x.expand(B, -1).gather(1, at).view(B, m, s)

    real = terms.clusters >= 0
    one, free = of_members(terms.one) & real, of_members(terms.free) & real
    table = supports(s, u.device)
    columns = table.repeat_interleave(k, dim=1)
    alive = one | free
    inside = u[torch.arange(B, device=u.device).unsqueeze(1), at].view(B, m, s, k, q)
    inside = (inside * alive[..., None, None]).view(B, m, 1, s * k, q) * columns.unsqueeze(-1)
    M = of_members(penalty.M).repeat_interleave(k, dim=-1).unsqueeze(-2).expand(inside.shape[:-1])
    D = on_supports(terms.curvature, columns)
    gain = torch.stack([_block_gains(output, D, M) for output in inside.unbind(-1)]).sum(0)
    gain = gain - of_members(penalty.price) @ table.to(u).mT
    gain = gain.masked_fill(~allowed(table, alive, one), -torch.inf)
    with_it = gain.unsqueeze(-1).masked_fill(~table, -torch.inf).amax(-2)
    without = gain.unsqueeze(-1).masked_fill(table, -torch.inf).amax(-2)
    score = torch.zeros_like(terms.free, dtype=u.dtype)
    where = free.nonzero(as_tuple=True)
    score[where[0], at.view(B, m, s)[where]] = (with_it - without)[where]
    return gain.amax(-1).sum(-1), score


def box_multipliers(u: Tensor, D: Tensor, M: Tensor) -> Tensor:
    """Multipliers eta >= 0 (..., k) of |x_j| <= M_j for max u'x - x'Dx, near optimal.

    By cyclic coordinate ascent, where the free maximiser leaves the box.  u and M (..., k),
    D (..., k, k) positive definite.

    >>> box_multipliers(torch.tensor([4.0, 1.0]), torch.eye(2), torch.ones(2)).tolist()
    [1.0, 0.0]
    """
    x = 0.5 * torch.linalg.solve(D, u.unsqueeze(-1)).squeeze(-1)
    outside = (x.abs() > M).any(-1)
    eta = torch.zeros_like(u)
    if not bool(outside.any()):
        return eta
    u, D = u[outside], D[outside]
    limit = M[outside]
    x = x[outside].clamp(-limit, limit)
    for _ in range(_SWEEPS):
        before = x.clone()
        for j in range(u.shape[-1]):
            rest = (D[..., j, :] * x).sum(-1) - D[..., j, j] * x[..., j]
            x[..., j] = ((0.5 * u[..., j] - rest) / D[..., j, j]).clamp(-limit[:, j], limit[:, j])
        if bool(((x - before).abs() <= 1e-12 * limit).all()):
            break
    push = (u - 2 * (D @ x.unsqueeze(-1)).squeeze(-1)) / (2 * x)
    eta[outside] = torch.where(x.abs() >= limit, push.clamp(min=0), 0.0)
    return eta


def dual_bound(
    penalty: Penalty, value: Tensor, gradient: Tensor, W: Tensor, terms: Terms
) -> tuple[Tensor, Tensor]:
    """The bound (B,) and the scores (B, N), from R's value (B,) and gradient at W (B, N, k, q)."""
    if terms.clusters is not None:
        paid, score = _cluster_scores(penalty, -gradient, terms)
    else:
        score = scores(penalty, gradient, terms.curvature)
        gained = torch.where(terms.free, score.clamp(min=0), 0.0)
        paid = torch.where(terms.one, score, gained).sum(-1)
    return value - (gradient * W).sum((1, 2, 3)) - paid - penalty.credit, score


def forced_bounds(bound: float, score: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds (N,) of the same node with y_i forced to 1, and forced to 0: safe fixing.

    The node paid max(0, s_i); y_i = 1 pays s_i, which is more by [-s_i]_+, and y_i = 0 pays
    nothing, which is more by [s_i]_+.  Within a cluster the supports with i pay s_i more than those
    without.
    """
    return bound - score.clamp(max=0), bound + score.clamp(min=0)

r"""The smallest price at which an entity stays at zero against a given pull.

Zero minimises -<g, w> + p z(w) over |w_j| <= M iff g lies in p times the subdifferential of z at zero,
that is iff the conjugate z*(g / p) is zero.  The smallest such p is a norm of g:

.. math::  N(g) = \min\{p > 0 : \textstyle\sum_j \varphi(g_j / p) \le 1 - \alpha\}
           \le \frac{\lVert g\rVert}{2\sqrt{\alpha(1-\alpha)}},

with phi as in `projected.slope_of`, and equality where no \|g_j\| exceeds 2 alpha M p.  With g the
negative gradient of a loss at zero, lambda u >= N(g) is the optimality condition of zero.  With g = w,
a proximal step of length t makes w zero iff t >= N(w).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spr_or.formulations import projected
from spr_or.formulations.projected import Bound

_ROUNDS = 60
_TOLERANCE = 1e-12


def least_price(g: Tensor, alpha: float, M: Bound) -> Tensor:
    """N(g) of every entity: g (..., N, k) gives (..., N), in float64.

    M is a number, (..., N) or a bound of each weight, (..., N, k); it may be infinite for alpha > 0.
    Raises ``ValueError`` for alpha = 1, where entities have no price.

    >>> least_price(torch.tensor([[3.0, 4.0]]), alpha=0.5, M=10.0).tolist()
    [5.0]
    >>> least_price(torch.tensor([[3.0, 4.0]]), alpha=0.0, M=2.0).tolist()  # M ||g||_1
    [14.0]
    """
    if alpha == 1:
        raise ValueError("alpha = 1 puts no price on entities, so none makes one zero: lower alpha")
    pull = g.detach().double()
    metric: Bound = 1.0
    if torch.is_tensor(M):
        M = M.double()
        if M.dim() == pull.dim():  # in units of M, every bound is 1
            pull, metric, M = pull * M, M.square(), 1.0
    largest = pull.abs().amax(-1)
    safe = torch.where(largest > 0, largest, 1.0)
    # F(q) = h(q g) is convex, rises from -(1 - alpha), and is zero at q = 1 / N(g).  From wherever
    # Newton's method starts, its second point is right of the root, and from there it falls to it.
    x = pull / safe.unsqueeze(-1)
    q = torch.ones_like(largest)
    if alpha > 0:
        weighed = (
            (x.square() / metric).sum(-1).sqrt() if torch.is_tensor(metric) else x.norm(dim=-1)
        )
        q = 2 * (alpha * (1 - alpha)) ** 0.5 / torch.where(largest > 0, weighed, 1.0)
    for _ in range(_ROUNDS):
        q.requires_grad_()
        with torch.enable_grad():
            h = projected.slope_of(q.unsqueeze(-1) * x, alpha, M, metric=metric)
            (rise,) = torch.autograd.grad(h.sum(), q)
        q = q.detach()
        open_ = (h.detach().abs() > _TOLERANCE) & (largest > 0)
        if not bool(open_.any()):
            break
        q = torch.where(open_, q - h.detach() / torch.where(open_, rise, 1.0), q)
    return torch.where(largest > 0, safe / q, 0.0)

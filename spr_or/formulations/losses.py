r"""The losses, each with its gradient and its convex conjugate.

A loss acts on one sample: f and y are rows of (n, q) predictions and targets, and every function
returns the per-sample values, shape (..., n) (gradient: (..., n, q)); the mean over samples is taken
where the objective is formed.  The conjugate l*(nu) = sup_f <nu, f> - l(f) is +inf outside its
domain; ``project`` returns a point of that domain, nu itself if it lies inside.  A smooth loss has a
``hessian`` in f, (..., n, q, q), whose largest eigenvalue ``curvature`` bounds (None: there is no bound).

=========  ============================  ====================================================
loss       l(f; y)                       l*(nu)
=========  ============================  ====================================================
squared    ||f - y||^2                   <nu, y> + ||nu||^2 / 4
absolute   ||f - y||_1                   <nu, y>                        on |nu_j| <= 1
hinge      max(0, 1 - y f)               nu y                           on -1 <= nu y <= 0
logistic   log(1 + exp(-y f))            s log s + (1-s) log(1-s), s = -nu y in [0, 1]
softmax    logsumexp(f) - f_y            sum_c p_c log p_c, p = nu + e_y in the simplex
poisson    exp(f) - y f + c(y)           s log s - s - c(y), s = nu + y >= 0
=========  ============================  ====================================================

Targets: real for squared and absolute, -1 or +1 for hinge and logistic (both (n, 1)), a class number
0..q-1 for softmax, shape (n,) int64, and at least 0 for poisson, (n, 1).

The Poisson loss is half the deviance of a rate exp(f): c(y) = y log y - y makes it 0 at f = log y, so
that it is never negative.  Its curvature exp(f) has no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Points this far outside a conjugate's domain count as on its border: rounding, not infeasibility.
_DOMAIN_SLACK = 1e-12


@dataclass(frozen=True)
class Loss:
    """One row of the table above."""

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    conjugate: Callable[[Tensor, Tensor], Tensor]
    project: Callable[[Tensor, Tensor], Tensor]
    hessian: Callable[[Tensor, Tensor], Tensor] | None
    curvature: float | None


def _entropy(p: Tensor) -> Tensor:
    return torch.special.xlogy(p, p)


def _inside(ok: Tensor, value: Tensor) -> Tensor:
    return torch.where(ok, value, math.inf)


def _squared_conjugate(nu: Tensor, y: Tensor) -> Tensor:
    return (nu * y).sum(-1) + nu.square().sum(-1) / 4


def _absolute_conjugate(nu: Tensor, y: Tensor) -> Tensor:
    return _inside((nu.abs() <= 1 + _DOMAIN_SLACK).all(-1), (nu * y).sum(-1))


def _hinge_conjugate(nu: Tensor, y: Tensor) -> Tensor:
    product = (nu * y).squeeze(-1)
    return _inside((product <= _DOMAIN_SLACK) & (product >= -1 - _DOMAIN_SLACK), product)


def _logistic_conjugate(nu: Tensor, y: Tensor) -> Tensor:
    s = -(nu * y).squeeze(-1)
    ok = (s >= -_DOMAIN_SLACK) & (s <= 1 + _DOMAIN_SLACK)
    s = s.clamp(0, 1)
    return _inside(ok, _entropy(s) + _entropy(1 - s))


def _softmax_conjugate(nu: Tensor, y: Tensor) -> Tensor:
    p = nu + F.one_hot(y, nu.shape[-1]).to(nu)
    ok = (p >= -_DOMAIN_SLACK).all(-1) & ((p.sum(-1) - 1).abs() <= 1e-9)
    return _inside(ok, _entropy(p.clamp(min=0)).sum(-1))


def _softmax_project(nu: Tensor, y: Tensor) -> Tensor:
    corner = F.one_hot(y, nu.shape[-1]).to(nu)
    p = (nu + corner).clamp(min=0)
    total = p.sum(-1, keepdim=True)
    return torch.where(total > 0, p / total, 1 / p.shape[-1]) - corner


def _logistic_hessian(f: Tensor, y: Tensor) -> Tensor:
    return (torch.sigmoid(f) * torch.sigmoid(-f)).unsqueeze(-1)


def _softmax_hessian(f: Tensor, y: Tensor) -> Tensor:
    p = f.softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def _poisson_least(y: Tensor) -> Tensor:
    """c(y): less the least value of exp(f) - y f."""
    return torch.special.xlogy(y, y) - y


def _poisson_conjugate(nu: Tensor, y: Tensor) -> Tensor:
    s = (nu + y).squeeze(-1)
    ok = s >= -_DOMAIN_SLACK * (1 + y.squeeze(-1))
    s = s.clamp(min=0)
    return _inside(ok, _entropy(s) - s - _poisson_least(y).squeeze(-1))


def _softmax_value(f: Tensor, y: Tensor) -> Tensor:
    picked = f.gather(-1, y.unsqueeze(-1).expand(*f.shape[:-1], 1)).squeeze(-1)
    return f.logsumexp(-1) - picked


LOSSES = {
    loss.name: loss
    for loss in (
        Loss(
            "squared",
            lambda f, y: (f - y).square().sum(-1),
            lambda f, y: 2 * (f - y),
            _squared_conjugate,
            lambda nu, y: nu,
            lambda f, y: torch.diag_embed(torch.full_like(f, 2.0)),
            2.0,
        ),
        Loss(
            "absolute",
            lambda f, y: (f - y).abs().sum(-1),
            lambda f, y: (f - y).sign(),
            _absolute_conjugate,
            lambda nu, y: nu.clamp(-1, 1),
            None,
            None,
        ),
        Loss(
            "hinge",
            lambda f, y: (1 - y * f).clamp(min=0).squeeze(-1),
            lambda f, y: torch.where(y * f < 1, -y, 0.0),
            _hinge_conjugate,
            lambda nu, y: y * (nu * y).clamp(-1, 0),
            None,
            None,
        ),
        Loss(
            "logistic",
            lambda f, y: F.softplus(-y * f).squeeze(-1),
            lambda f, y: -y * torch.sigmoid(-y * f),
            _logistic_conjugate,
            lambda nu, y: y * (nu * y).clamp(-1, 0),
            _logistic_hessian,
            0.25,
        ),
        Loss(
            "softmax",
            _softmax_value,
            lambda f, y: f.softmax(-1) - F.one_hot(y, f.shape[-1]).to(f),
            _softmax_conjugate,
            _softmax_project,
            _softmax_hessian,
            0.5,
        ),
        Loss(
            "poisson",
            lambda f, y: (f.exp() - y * f + _poisson_least(y)).squeeze(-1),
            lambda f, y: f.exp() - y,
            _poisson_conjugate,
            lambda nu, y: torch.maximum(nu, -y),
            lambda f, y: f.exp().unsqueeze(-1),
            None,
        ),
    )
}

r"""Formulation (5): the perspective relaxation with its indicators projected out.

One entity is a row of weights w in R^k with a bound M on |w_j|.  Its relaxed indicator y costs

.. math::  z(w) = \min_y \; \alpha \lVert w\rVert_2^2 / y + (1-\alpha)\, y
           \quad\text{s.t.}\quad \lVert w\rVert_\infty / M \le y \le 1 .

With a = ||w||_2, b = ||w||_inf / M and c = sqrt(alpha / (1 - alpha)) a, the minimiser is
y~ = min(max(b, c), 1), which leaves three regimes:

=======  ==========  ================================================
regime   where       z(w)
=======  ==========  ================================================
NORM     b <= c <= 1 2 sqrt(alpha (1 - alpha)) a
BOUND    c <  b <= 1 alpha M a^2 / ||w||_inf + (1 - alpha) ||w||_inf / M
FULL     otherwise   alpha a^2 + (1 - alpha)
=======  ==========  ================================================

Three variants of the formula exist, and ``variant`` chooses one:

* ``"exact"`` (default): the table above, which is min over y, hence a relaxation.
* ``"printed"``: as in arXiv 2206.14056, eq. (5), where the quadratic term lost its alpha.  It equals
  a^2 / y~ + (1 - alpha) y~ and is *not* a relaxation (docs/explanation/erratum.md).
* ``"authors2022"``: as printed, but with slope sqrt(alpha / (1 - alpha)) (1 + alpha) in NORM.

Conventions shared by every function here:

* ``w`` (also ``v``, ``u``) has shape (..., N, k): each row is an entity, leading dimensions are a batch.
  Entities of unequal size are padded with zeros, which changes no result.
* ``M`` is a positive number or a tensor that broadcasts against (..., N).
* float64 and float32 inputs are computed in their own precision, bfloat16 and float16 in float32;
  the result has the dtype of the first argument.
* alpha = 0: z = ||w||_inf / M (no NORM regime).  alpha = 1: z = ||w||_2^2 with y~ = 1.  A zero row has
  z = 0, y~ = 0 and gradient 0.  Where several weights attain ||w||_inf, the gradient shares the
  max's slope equally among them: an element of the subdifferential.
* ||w||_inf > M lies outside the relaxation; z is extended by FULL, so that training may pass through,
  whereas ``prox`` always returns a point with ||w||_inf <= M and ``conjugate`` is that of z on the box.
* ``lower <= y <= upper`` (numbers or tensors like M) restricts the indicator: a node of a branch and
  bound fixes y = 0 or y = 1 this way.

Raises ``ValueError`` for alpha outside [0, 1], M <= 0, an unknown variant, or weights that are not
floating point.  (M on an accelerator is not read back for the check: that would stall the device.)
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.formulations.projected_prox import norm_of, shrink, terms_of

VARIANTS = ("exact", "printed", "authors2022")
Bound = float | Tensor


class Regime(IntEnum):
    """Which case of the closed form an entity is in."""

    NORM = 0
    BOUND = 1
    FULL = 2


class EntityTerms(NamedTuple):
    """z and its derivatives as functions of an entity's two norms; every field has shape (..., N).

    ``value`` is z.  ``radial`` multiplies w in the gradient, ``peak`` multiplies sign(w_j) on the
    coordinate that attains ||w||_inf.
    """

    regime: Tensor
    indicator: Tensor
    value: Tensor
    radial: Tensor
    peak: Tensor


def entity_terms(
    norm: Tensor, peak: Tensor, alpha: float, M: Bound, variant: str = "exact"
) -> EntityTerms:
    r"""The closed form as a function of a = ``norm`` = ||w||_2 and ``peak`` = ||w||_inf, shape (..., N).

    This is the one copy of the formula: the functions on weights below and the regulariser of a
    training run both reduce their entities to (a, ||w||_inf) and call it.  Nothing is checked here
    and nothing is read back from the device.

    For every variant z = q a^2 / y~ + (1 - alpha) y~, with q = alpha in the exact variant
    and q = 1 in the printed one.  In NORM, y~ = c makes this the slope of the table times a.  The
    derivative with respect to w is 2 q w / y~, and in BOUND, where y~ = ||w||_inf / M moves with the
    largest weight, also (1 - alpha - q a^2 / y~^2) / M on that coordinate.  (In NORM the derivative
    through y~ = c is folded into ``radial``; it vanishes for the exact variant, by optimality of c.)

    >>> terms = entity_terms(torch.tensor([0.5]), torch.tensor([0.5]), alpha=0.5, M=1.0)
    >>> terms.value.item(), terms.indicator.item()
    (0.5, 0.5)
    """
    b = peak / M
    c = norm * _ratio(alpha) if alpha < 1 else torch.where(norm > 0, math.inf, 0.0).to(norm)
    y = torch.maximum(b, c)
    # Not `clamp`: its derivative at 1 is 1 up to torch 2.13, and 0 in 2.14.
    y = torch.where(y > 1, 1.0, y)
    in_norm = (b <= c) & (c <= 1)
    in_bound = (c < b) & (b <= 1)
    regime = torch.where(in_norm, Regime.NORM, torch.where(in_bound, Regime.BOUND, Regime.FULL))

    q = alpha if variant == "exact" else 1.0
    safe_y = torch.where(y > 0, y, 1.0)
    safe_norm = torch.where(norm > 0, norm, 1.0)
    value = q * norm * (norm / safe_y) + (1 - alpha) * y
    slope = _norm_slope(alpha, variant)
    value = torch.where(in_norm, slope * norm, value)
    radial = torch.where(in_norm, slope / safe_norm, 2 * q / safe_y)
    at_peak = torch.where(in_bound, ((1 - alpha) - (math.sqrt(q) * norm / safe_y) ** 2) / M, 0.0)
    zero = norm == 0
    return EntityTerms(
        regime, y, value, torch.where(zero, 0.0, radial), torch.where(zero, 0.0, at_peak)
    )


def _ratio(alpha: float) -> float:
    return math.sqrt(alpha / (1 - alpha))


def _norm_slope(alpha: float, variant: str) -> float:
    """dz/da in the NORM regime; 0 where the regime holds only w = 0 (alpha = 0 or 1)."""
    if alpha in (0.0, 1.0):
        return 0.0
    if variant == "exact":
        return 2 * math.sqrt(alpha * (1 - alpha))
    if variant == "printed":
        return (1 + alpha) / _ratio(alpha)
    return (1 + alpha) * _ratio(alpha)


def closed_form(w: Tensor, alpha: float, M: Bound, variant: str = "exact") -> EntityTerms:
    """`entity_terms` of entities with the weights w (..., N, k): regime, y~, z and its derivatives.

    Each function below returns one of these; call this one where several are needed.

    >>> terms = closed_form(torch.tensor([[0.3, 0.4]]), alpha=0.5, M=1.0)
    >>> terms.value.item(), terms.indicator.item()
    (0.5, 0.5)
    """
    _check(w, alpha, M, variant)
    x = _compute(w)
    magnitude = x.abs()
    peak = magnitude.amax(-1, keepdim=True)
    norm = norm_of(magnitude, peak).squeeze(-1)
    return entity_terms(norm, peak.squeeze(-1), alpha, _per_entity(M, x), variant)


def regime(w: Tensor, alpha: float, M: Bound, variant: str = "exact") -> Tensor:
    """The `Regime` of each entity: int64, shape (..., N).  It does not depend on the variant.

    >>> regime(torch.tensor([[0.1, 0.1], [0.5, 0.0], [9.0, 9.0]]), alpha=0.5, M=1.0).tolist()
    [0, 0, 2]
    """
    return closed_form(w, alpha, M, variant).regime


def indicator(w: Tensor, alpha: float, M: Bound, variant: str = "exact") -> Tensor:
    """The minimising indicator y~ = min(max(b, c), 1) of each entity, shape (..., N).

    >>> indicator(torch.tensor([[0.3, 0.4]]), alpha=0.5, M=1.0).item()
    0.5
    """
    return closed_form(w, alpha, M, variant).indicator.to(w.dtype)


def value(w: Tensor, alpha: float, M: Bound, variant: str = "exact") -> Tensor:
    """z of each entity, eq. (5), shape (..., N); multiply by u_i, sum and scale by lambda yourself.

    >>> value(torch.tensor([[0.3, 0.4], [0.0, 0.0]]), alpha=0.5, M=1.0).tolist()
    [0.5, 0.0]
    """
    return closed_form(w, alpha, M, variant).value.to(w.dtype)


def gradient(w: Tensor, alpha: float, M: Bound, variant: str = "exact") -> Tensor:
    """A (sub)gradient of z with respect to the weights, shape (..., N, k).

    Continuous across b = c and c = 1 for the exact variant.

    >>> gradient(torch.tensor([[0.3, 0.4]]), alpha=0.5, M=1.0).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    terms = closed_form(w, alpha, M, variant)
    x = _compute(w)
    magnitude = x.abs()
    attains = (magnitude == magnitude.amax(-1, keepdim=True)).to(x)
    share = attains / attains.sum(-1, keepdim=True)
    result = terms.radial.unsqueeze(-1) * x + terms.peak.unsqueeze(-1) * x.sign() * share
    return result.to(w.dtype)


def prox(
    v: Tensor,
    step: Bound,
    alpha: float,
    M: Bound,
    variant: str = "exact",
    *,
    lower: Bound = 0.0,
    upper: Bound = 1.0,
) -> Tensor:
    r"""argmin over |w_j| <= M of ||w - v||^2 / 2 + step z(w), shape (..., N, k).

    ``step`` > 0 is a number or broadcasts against (..., N), so that step_i = t lambda u_i is one call.
    ``M`` may also have the shape of v, one bound for each weight: an entity that crosses layers.

    For a given y the minimiser is w_j(y) = clip(v_j y / s, -M y, M y) with s = y + 2 step alpha. Where
    no weight is clipped y has a closed form, which two reductions of v decide; elsewhere Newton's
    method finds it: `spr_or.formulations.projected_prox` derives both. The result is exactly zero
    iff sum_j phi(v_j / t) <= 1 - alpha, phi as in `slope_of`.

    Raises ``ValueError`` for the other variants, which are not convex, and for step <= 0.

    >>> prox(torch.tensor([[3.0, 4.0], [0.1, 0.1]]), 0.5, alpha=0.5, M=10.0).tolist()
    [[2.0, 2.6666667461395264], [0.0, 0.0]]
    """
    per_weight = torch.is_tensor(M) and M.shape == v.shape
    _check(v, alpha, 1.0 if per_weight else M, variant)
    if per_weight:
        _check_positive(M, "M")
    _only_exact(variant, "prox")
    _check_positive(step, "step")
    x = _compute(v)
    rows = x.shape[:-1]

    def flat(number: Bound) -> Tensor:
        return _per_entity(number, x).expand(rows).reshape(-1, 1)

    bound = _per_entity(M, x).flatten(0, -2) if per_weight else flat(M)
    most = flat(upper)
    terms = terms_of(flat(step), alpha, bound, flat(lower), most)
    return shrink(x.flatten(0, -2), alpha, terms, most, 1 / bound).view(x.shape).to(v.dtype)


def slope_of(u: Tensor, alpha: float, M: Bound, *, metric: Bound = 1.0) -> Tensor:
    r"""h(u) = sum_j phi(u_j) - (1 - alpha), shape (..., N): what raising y by one gains at slope u.

    phi(u) = u^2 / (4 a) if |u| <= 2 a M, else M |u| - a M^2, with a = alpha: the conjugate of the
    quadratic on the box.  The best indicator is 0 if h <= 0 and 1 if h >= 0. Safe fixing and branching use
    this.

    ``metric`` (a positive number or a tensor that broadcasts against u) weighs the quadratic term,
    alpha sum_j metric_j w_j^2 / y: a = alpha metric_j.  A branch and bound that moves curvature of
    the loss into the perspective term has one coefficient for each weight.

    >>> slope_of(torch.tensor([[2.0, 0.0]]), alpha=0.5, M=10.0).item()
    1.5
    """
    x = _compute(u)
    a = alpha * _per_entity(metric, x)
    return (gain_of(x, a, M) - (1 - alpha)).to(u.dtype)


def gain_of(u: Tensor, a: Tensor, M: Bound) -> Tensor:
    """sum_j phi_j(u_j), phi_j(u) = max over |w| <= M of u w - a_j w^2, shape (..., N).

    `slope_of` without its price, in any unit: ``a`` broadcasts against u (..., N, k) and may be 0.

    >>> gain_of(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.5, 0.0]]), M=10.0).item()
    12.0
    """
    magnitude = u.abs()
    bound = _per_entity(M, u).unsqueeze(-1)
    # No division by zero, whose derivative would be nan even where it is not chosen.
    r = torch.minimum(magnitude / torch.where(a > 0, 2 * a, 1.0), bound)
    r = torch.where(a > 0, r, bound)
    return (r * magnitude - a * r * r).sum(-1)


def conjugate(
    u: Tensor,
    alpha: float,
    M: Bound,
    variant: str = "exact",
    *,
    lower: Bound = 0.0,
    upper: Bound = 1.0,
    metric: Bound = 1.0,
) -> Tensor:
    """z*(u) = sup over |w_j| <= M of <u, w> - z(w), shape (..., N).

    For a fixed y the supremum over w is y h(u), h as in `slope_of`; over y in [lower, upper] it is
    max(lower h, upper h), which is max(0, h) for a free indicator, h for y = 1, and 0 for y = 0.
    ``metric`` is that of `slope_of`.  Raises ``ValueError`` for the other variants.

    >>> conjugate(torch.tensor([[2.0, 0.0], [0.1, 0.0]]), alpha=0.5, M=10.0).tolist()
    [1.5, 0.0]
    """
    _check(u, alpha, M, variant)
    _only_exact(variant, "conjugate")
    h = slope_of(_compute(u), alpha, M, metric=metric)
    best = torch.maximum(_per_entity(lower, h) * h, _per_entity(upper, h) * h)
    return (best + 0.0).to(u.dtype)  # + 0.0 turns -0.0 into 0.0


def _compute(w: Tensor) -> Tensor:
    """The tensor in the dtype that computations run in."""
    return w.float() if w.dtype in (torch.bfloat16, torch.float16) else w


def _per_entity(value: Bound, like: Tensor) -> Tensor:
    if torch.is_tensor(value):
        return value.to(like.device, like.dtype)
    # Filled in on the device: a number that is copied there stalls it, and no graph can capture that.
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _check(w: Tensor, alpha: float, M: Bound, variant: str) -> None:
    if not torch.is_tensor(w) or not w.is_floating_point() or w.dim() < 2:
        got = f"{w.dtype} of shape {tuple(w.shape)}" if torch.is_tensor(w) else type(w).__name__
        raise ValueError(f"weights must be a floating-point tensor of shape (..., N, k), got {got}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    _check_positive(M, "M")
    if torch.is_tensor(M) and M.dim() > 0:
        sizes = zip(reversed(M.shape), reversed(w.shape[:-1]), strict=False)
        if M.dim() >= w.dim() or any(a != b and a != 1 for a, b in sizes):
            raise ValueError(
                f"M of shape {tuple(M.shape)} does not fit entities of shape {tuple(w.shape[:-1])}"
            )


def _check_positive(value: Bound, name: str) -> None:
    if torch.is_tensor(value):
        if value.device.type == "cpu" and not bool((value > 0).all()):
            raise ValueError(f"{name} must be positive, got a smallest value of {value.min():g}")
    elif not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def _only_exact(variant: str, what: str) -> None:
    if variant != "exact":
        raise ValueError(f"{what} exists only for variant='exact': {variant!r} is not convex")

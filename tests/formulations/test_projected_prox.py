"""The prox against a numeric minimum, a conic solver and the properties that define it."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from projected_batches import Array, Batch, batches, proximal_points
from projected_reference import close, golden, holds, minimum_over_y, perspective
from torch import Tensor

from spr_or.formulations import projected


def prox_objective(
    w: Array, v: Array, step: Array, alpha: float, M: Array, lower: float, upper: float
) -> Array:
    z, _ = minimum_over_y(w, alpha, M, lower, upper)
    return ((w - v) ** 2).sum(-1) / 2 + step * z


def best_prox_value(
    v: Array, step: Array, alpha: float, M: Array, lower: float, upper: float
) -> Array:
    """min over y of the separable problem in w, each a parabola on an interval."""

    def at(y: Array) -> Array:
        box = M * y[:, None] if M.ndim == 2 else (M * y)[:, None]
        pull = 2 * step * alpha
        with np.errstate(divide="ignore", invalid="ignore"):
            stationary = np.where(y[:, None] > 0, v / (1 + pull / y)[:, None], 0)
        w = np.clip(stationary, -box, box)
        return ((w - v) ** 2).sum(-1) / 2 + step * perspective(w, y, alpha)

    return at(golden(at, np.full(len(v), lower), np.full(len(v), upper)))


@pytest.mark.parametrize("lower, upper", [(0.0, 1.0), (1.0, 1.0), (0.2, 0.7)])
@given(batches())
@settings(max_examples=60)
def test_prox_attains_the_minimum(lower: float, upper: float, batch: Batch) -> None:
    v, step = proximal_points(batch)
    p = projected.prox(v, step, batch.alpha, batch.M, lower=lower, upper=upper).numpy()
    M = batch.M.numpy()
    assert (np.abs(p).max(-1) <= upper * M * (1 + 1e-12)).all()
    args = step.numpy(), batch.alpha, M, lower, upper
    reached = prox_objective(p, v.numpy(), *args)
    best = best_prox_value(v.numpy(), *args)
    # One-sided: p is feasible, and the search over y may itself end a little above the minimum.
    rounding = 1e-15 * (v * v).sum(-1).numpy()
    holds(reached <= best * (1 + 1e-9) + rounding, v=v, step=step, M=batch.M, p=p, best=best)


@pytest.mark.parametrize("lower, upper", [(0.0, 1.0), (1.0, 1.0)])
@given(batches())
def test_prox_is_certified_by_fenchel_young(lower: float, upper: float, batch: Batch) -> None:
    """p = prox(v) iff (v - p) / t is a subgradient at p: z(p) + z*(s) = <s, p>.

    Sharper than comparing objectives, which are flat around their minimum.
    """
    v, step = proximal_points(batch)
    p = projected.prox(v, step, batch.alpha, batch.M, lower=lower, upper=upper)
    s = (v - p) / step.unsqueeze(-1)
    z = torch.from_numpy(minimum_over_y(p.numpy(), batch.alpha, batch.M.numpy(), lower, upper)[0])
    gap = z + projected.conjugate(s, batch.alpha, batch.M, lower=lower, upper=upper)
    gap -= (s * p).sum(-1)
    # s is a difference of numbers as large as v, and the gap multiplies its rounding by M.
    scale = 1 + z + batch.M * (s.abs() + 1e-3 * v.abs() / step.unsqueeze(-1)).sum(-1)
    holds(gap.abs() <= 1e-12 * scale, v=v, step=step, M=batch.M, p=p, gap=gap)


@given(batches())
@settings(max_examples=60)
def test_prox_with_a_bound_for_each_weight(batch: Batch) -> None:
    """As under one bound: the minimum, by a search over y, and points within the bounds."""
    v, step = proximal_points(batch)
    M = batch.M.numpy()[:, None] * 10 ** batch.rng.uniform(-1.5, 1.5, v.shape)
    p = projected.prox(v, step, batch.alpha, torch.from_numpy(M)).numpy()
    against = (np.abs(p) / M).max(-1)
    assert (against <= 1 + 1e-12).all()
    # The one bound under which the indicator of these weights is bounded alike.
    one = np.where(against > 0, np.abs(p).max(-1) / np.where(against > 0, against, 1), 1.0)
    reached = prox_objective(p, v.numpy(), step.numpy(), batch.alpha, one, 0, 1)
    best = best_prox_value(v.numpy(), step.numpy(), batch.alpha, M, 0, 1)
    rounding = 1e-15 * (v * v).sum(-1).numpy()
    holds(reached <= best * (1 + 1e-9) + rounding, v=v, step=step, M=M, p=p, best=best)


@given(batches())
def test_equal_bounds_of_all_weights_are_one_bound(batch: Batch) -> None:
    v, step = proximal_points(batch)
    one = projected.prox(v, step, batch.alpha, batch.M)
    each = projected.prox(v, step, batch.alpha, batch.M.unsqueeze(1).expand_as(v))
    close(each, one, rtol=1e-9, atol=1e-12 * float(one.abs().max()))


def test_a_bound_of_a_weight_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="M must be positive"):
        projected.prox(torch.ones(2, 2), 1.0, 0.5, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))


# Clarabel says so where it stops short of 1e-10; the comparison below is the judge.
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("lower, upper", [(0.0, 1.0), (1.0, 1.0), (0.2, 0.7)])
def test_prox_against_the_conic_solver(lower: float, upper: float) -> None:
    rng = np.random.default_rng(11)
    for alpha in (0.0, 0.05, 0.5, 1.0):
        for k in (1, 2, 4):
            v, M, step = rng.standard_normal(k) * 2, rng.uniform(0.3, 3), rng.uniform(0.05, 1.5)
            w, y, t = cp.Variable(k), cp.Variable(), cp.Variable()
            price = step * (alpha * t + (1 - alpha) * y)
            cone = cp.SOC(t + y, cp.hstack([2 * w, t - y]))  # ||w||^2 <= t y
            constraints = [cone, cp.abs(w) <= M * y, y >= lower, y <= upper]
            if alpha == 0:
                constraints[0] = t == 0  # t costs nothing: without this it would drift off
            cp.Problem(cp.Minimize(cp.sum_squares(w - v) / 2 + price), constraints).solve(
                solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
            )
            p = projected.prox(torch.from_numpy(v)[None], step, alpha, M, lower=lower, upper=upper)
            close(p[0], w.value, rtol=0, atol=2e-5)


@given(batches())
def test_prox_is_exactly_zero_iff_no_indicator_pays(batch: Batch) -> None:
    v, step = proximal_points(batch)
    slope = np.abs(v.numpy()) / step.numpy()[:, None]
    M = batch.M.numpy()[:, None]
    # phi(u) is the largest u x - alpha x^2 over 0 <= x <= M.
    x = M if batch.alpha == 0 else np.minimum(slope / (2 * batch.alpha), M)
    paid = (slope * x - batch.alpha * x * x).sum(-1)
    price = 1 - batch.alpha
    zero = (projected.prox(v, step, batch.alpha, batch.M) == 0).all(-1).numpy()
    assert zero[paid <= price * (1 - 1e-9)].all()
    assert not zero[paid > price * (1 + 1e-9)].any()


def test_prox_at_the_very_border_is_zero() -> None:
    """alpha = 1/2, M large, step 1: phi(v) = v^2 / 2 and the border is |v| = 1."""
    v = torch.tensor([[1.0], [1.0 + 1e-12], [-1.0]], dtype=torch.float64)
    p = projected.prox(v, 1.0, 0.5, 100.0)
    assert p[0] == 0 and p[2] == 0 and p[1] > 0


@given(batches())
def test_prox_is_firmly_nonexpansive(batch: Batch) -> None:
    v, step = proximal_points(batch)
    other = v + torch.from_numpy(batch.rng.standard_normal(v.shape)) * v.abs().amax(-1, True)
    p, q = (projected.prox(x, step, batch.alpha, batch.M) for x in (v, other))
    squared = (p - q).square().sum(-1)
    assert (squared <= ((p - q) * (v - other)).sum(-1) + 1e-12 * (v - other).square().sum(-1)).all()


@given(batches())
def test_prox_moves_along_the_gradient_of_the_moreau_envelope(batch: Batch) -> None:
    """p(v) = v - t grad e(v), e(v) = min_w z(w) + ||w - v||^2 / (2 t)."""
    v, step = proximal_points(batch)
    t = step.unsqueeze(-1)

    def envelope(x: Tensor) -> Tensor:
        p = projected.prox(x, step, batch.alpha, batch.M)
        z = projected.value(p.clamp(-batch.M[:, None], batch.M[:, None]), batch.alpha, batch.M)
        return step * z + (p - x).square().sum(-1) / 2

    p = projected.prox(v, step, batch.alpha, batch.M)
    size = v.abs().amax(-1).clamp(min=1e-300)
    h = 1e-5 * size
    for j in range(batch.k):
        side = torch.zeros_like(v)
        side[:, j] = h
        slope = (envelope(v + side) - envelope(v - side)) / (2 * h)
        # The envelope times t has a 1-Lipschitz gradient, so a quotient is off by at most h.
        error = (slope - (v - p)[:, j]).abs()
        assert (error <= 1.01 * h + 1e-15 * envelope(v) / h).all()
    assert torch.isfinite(p / t).all()


def test_prox_with_a_fixed_indicator() -> None:
    v = torch.tensor([[3.0, -0.2], [0.0, 0.0]], dtype=torch.float64)
    on = projected.prox(v, 0.5, 0.4, 2.0, lower=1.0)
    close(on, (v / 1.4).clamp(-2, 2), 1e-14)
    assert (projected.prox(v, 0.5, 0.4, 2.0, upper=0.0) == 0).all()
    mixed = projected.prox(
        v, 0.5, 0.4, 2.0, lower=torch.tensor([0.0, 1.0]), upper=torch.tensor([0.0, 1.0])
    )
    assert (mixed == 0).all()


@pytest.mark.parametrize("k", [1, 30, 3000])
def test_prox_of_long_rows_converges(k: int) -> None:
    """The number of Newton steps is capped: long rows of mixed scale must still get there."""
    rng = np.random.default_rng(k)
    v = torch.from_numpy(rng.standard_normal((60, k)) * 10 ** rng.uniform(-9, 1, (60, k)))
    step = torch.from_numpy(10 ** rng.uniform(-3, 2, 60)) * v.norm(dim=-1)
    for alpha in (0.0, 0.1, 0.9):
        for M in (0.01, 1.0, 100.0):
            p = projected.prox(v, step, alpha, M)
            s = (v - p) / step.unsqueeze(-1)
            z, conjugate = projected.value(p, alpha, M), projected.conjugate(s, alpha, M)
            gap = z + conjugate - (s * p).sum(-1)
            holds(gap.abs() <= 1e-11 * (1 + M * s.abs().sum(-1)), step=step, gap=gap)


def test_prox_of_a_million_equal_weights_converges() -> None:
    """The largest weight by itself says little here: plain Newton steps, each 1.5 times further, would
    run out of their number.  The root is known: y = sqrt(sum v^2) - t for alpha = 1/2, unclipped.
    """
    v, step = torch.full((1, 1_000_000), 5e-4, dtype=torch.float64), 1e-4
    p = projected.prox(v, step, 0.5, 100.0)
    close(p, v * (0.5 - step) / 0.5, rtol=1e-12)


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("dead", [0.0, 0.4, 0.9, 1.0])
def test_entities_that_are_left_out_of_the_steps_change_no_other(
    dead: float, crossing: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(40, 30, generator=generator) * torch.logspace(-1, 1, 40).unsqueeze(1)
    v[: int(dead * 40)] *= 1e-4
    M = torch.rand(40, 30 if crossing else 1, generator=generator) + 0.5
    step = torch.full((40,), 0.2)
    together = projected.prox(v, step, 0.1, M if crossing else M.squeeze(1))
    for i in range(40):
        own = projected.prox(v[i : i + 1].double(), 0.2, 0.1, M[i : i + 1].double()
                             if crossing else M[i].double())  # fmt: skip
        torch.testing.assert_close(together[i : i + 1].double(), own, rtol=1e-5, atol=1e-6)
    assert int((together == 0).all(1).sum()) >= int(dead * 40)

"""Properties of the closed form, each against something that does not know it.

The reference is always the problem that the formula claims to solve: a numeric minimum over the
indicator y, a numeric supremum, a conic solver, a difference quotient.  Every hypothesis example is
a batch of rows, so a run covers tens of thousands of entities.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from spr_or.formulations import projected
from spr_or.formulations.projected import Regime

Array = NDArray[np.float64]
ROWS = 96

alphas = st.sampled_from([0.0, 1e-6, 0.01, 0.5, 0.99, 1 - 1e-6, 1.0]) | st.floats(1e-9, 1 - 1e-9)
inner_alphas = st.sampled_from([1e-4, 0.01, 0.5, 0.9]) | st.floats(1e-6, 1 - 1e-6)
sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Batch:
    """Entities as rows: w (ROWS, k), M (ROWS,), with ||w||_inf <= M unless said otherwise."""

    w: Tensor
    alpha: float
    M: Tensor
    rng: np.random.Generator

    @property
    def k(self) -> int:
        return self.w.shape[1]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints for a failing example; `holds` adds the row."""
        printer.text(f"Batch(alpha={self.alpha!r}, k={self.k})")


@st.composite
def batches(draw: st.DrawFn, alphas: st.SearchStrategy[float] = alphas) -> Batch:
    alpha, k, rng = draw(alphas), draw(sizes), np.random.default_rng(draw(seeds))
    direction = _directions(rng, k)
    norm = np.maximum(np.linalg.norm(direction, axis=1), 1)
    ratio = math.sqrt(alpha / (1 - alpha)) if alpha < 1 else math.inf
    # A third of the rows lie around c = 1, where NORM meets FULL, a third around b = c, where NORM
    # meets BOUND, and a third anywhere.
    kind = rng.integers(0, 3, ROWS)
    peak = 10 ** rng.uniform(-4, 4, ROWS)
    at_one = np.clip(10 ** rng.uniform(-2, 0.5, ROWS) / (norm * max(ratio, 1e-9)), 1e-4, 1e4)
    peak = np.where(kind == 0, at_one, peak)
    factor = 10 ** rng.uniform(0, 4, ROWS)
    meeting = 10 ** rng.uniform(-0.3, 0.3, ROWS) / (norm * peak * max(ratio, 1e-9))
    factor = np.where(kind == 1, np.clip(meeting, 1, 1e6), factor)
    return Batch(
        torch.from_numpy(direction * peak[:, None]), alpha, torch.from_numpy(peak * factor), rng
    )


def _directions(rng: np.random.Generator, k: int) -> Array:
    """Rows with ||d||_inf = 1: Gaussian, sparse, with ties, and a few that are all zero."""
    d = rng.standard_normal((ROWS, k))
    d[::4] = np.sign(d[::4])
    d[1::4] *= rng.random((len(d[1::4]), k)) < 0.5
    peak = np.abs(d).max(1, keepdims=True)
    d = np.where(peak > 0, d / np.where(peak > 0, peak, 1), 0)
    d[:2] = 0
    return d


def golden(f: Callable[[Array], Array], low: Array, high: Array, steps: int = 90) -> Array:
    """The minimisers of a batch of convex functions on [low, high], by golden-section search."""
    shrink = (math.sqrt(5) - 1) / 2
    a, b = low.astype(float), high.astype(float)
    for _ in range(steps):
        left, right = b - shrink * (b - a), a + shrink * (b - a)
        smaller = f(left) <= f(right)
        a, b = np.where(smaller, a, left), np.where(smaller, right, b)
    # The minimum often sits on an end of the interval, which the search approaches but never hits.
    candidates = np.stack([low, (a + b) / 2, high])
    values = np.stack([f(c) for c in candidates])
    return np.take_along_axis(candidates, values.argmin(0)[None], 0)[0]


def perspective(w: Array, y: Array, alpha: float) -> Array:
    """alpha ||w||^2 / y + (1 - alpha) y, +inf where y = 0 and w is not."""
    squares = (w * w).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return alpha * np.where(squares == 0, 0, squares / y) + (1 - alpha) * y


def minimum_over_y(
    w: Array, alpha: float, M: Array, lower: float = 0, upper: float = 1
) -> tuple[Array, Array]:
    """The least perspective value over the indicators that |w_j| <= M y and the node admit."""
    smallest = np.clip(np.maximum(np.abs(w).max(-1) / M, lower), 1e-30, upper)
    # In log y the function stays convex and an optimum many decades below 1 is found too.
    s = golden(
        lambda s: perspective(w, np.exp(s), alpha),
        np.log(smallest),
        np.full(len(w), np.log(upper)),
    )
    y = np.clip(np.exp(s), smallest, upper)
    values = perspective(w, y, alpha)
    if lower == 0:
        zero = (w == 0).all(-1)
        y, values = np.where(zero, 0, y), np.where(zero, 0, values)
    return values, y


def close(
    actual: Tensor | Array, expected: Tensor | Array | list, rtol: float, atol: float = 0
) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol)


def holds(ok: Tensor | NDArray[np.bool_], **shown: object) -> None:
    """Assert a condition on all rows; the message shows the first row that breaks it."""
    broken = (~torch.as_tensor(ok)).nonzero()
    if len(broken):
        row = int(broken[0, 0])
        values = {n: torch.as_tensor(v) for n, v in shown.items()}
        raise AssertionError(
            f"{len(broken)} entries break it, first row {row}: "
            + ", ".join(f"{n} = {(v[row] if v.dim() else v).tolist()}" for n, v in values.items())
        )


# --- value and indicator -------------------------------------------------------------------------


@given(batches())
def test_value_is_the_minimum_over_the_indicator(batch: Batch) -> None:
    expected, y = minimum_over_y(batch.w.numpy(), batch.alpha, batch.M.numpy())
    close(projected.value(batch.w, batch.alpha, batch.M), expected, rtol=1e-10)
    # A minimiser is known to about the square root of the value's precision.
    close(projected.indicator(batch.w, batch.alpha, batch.M), y, rtol=1e-5)


@given(batches())
def test_indicator_is_feasible_and_attains_the_value(batch: Batch) -> None:
    y = projected.indicator(batch.w, batch.alpha, batch.M).numpy()
    w, M = batch.w.numpy(), batch.M.numpy()
    assert (y <= 1).all() and (y * M * (1 + 1e-14) >= np.abs(w).max(-1)).all()
    z = projected.value(batch.w, batch.alpha, batch.M).numpy()
    close(z, perspective(w, y, batch.alpha), 1e-12)
    for other in np.linspace(0.001, 1, 50):
        feasible = np.maximum(other, np.abs(w).max(-1) / M)
        assert (z <= perspective(w, feasible, batch.alpha) * (1 + 1e-12)).all()


@pytest.mark.parametrize("alpha", [0.0, 0.02, 0.5, 0.97, 1.0])
def test_value_against_scipy(alpha: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        w = rng.standard_normal(3) * 10 ** rng.uniform(-2, 1)
        M = np.abs(w).max() * 10 ** rng.uniform(0, 2)
        floor = np.abs(w).max() / M
        found = optimize.minimize_scalar(
            lambda y, w=w: alpha * w @ w / y + (1 - alpha) * y,
            bounds=(floor, 1),
            method="bounded",
            options={"xatol": 1e-12},
        )
        value = projected.value(torch.from_numpy(w)[None], alpha, M).item()
        ends = min(alpha * w @ w / y + (1 - alpha) * y for y in (floor, 1.0))
        assert value == pytest.approx(min(found.fun, ends), rel=1e-9)


@given(batches())
def test_regime_says_which_bound_holds_the_indicator(batch: Batch) -> None:
    """NORM: y is a free stationary point.  BOUND: y is held by the largest weight.  FULL: by 1."""
    regime = projected.regime(batch.w, batch.alpha, batch.M).numpy()
    y = projected.indicator(batch.w, batch.alpha, batch.M).numpy()
    w, M, alpha = batch.w.numpy(), batch.M.numpy(), batch.alpha
    some = np.abs(w).max(-1) > 0
    slope = (1 - alpha) - alpha * np.where(some, (w * w).sum(-1) / np.where(some, y, 1) ** 2, 0)
    near = 1e-9
    norm, bound, full = (some & (regime == r) for r in Regime)
    assert (np.abs(slope[norm]) <= near).all()
    assert (slope[bound] >= -near).all()
    close(y[bound] * M[bound], np.abs(w[bound]).max(-1), 1e-12)
    assert (slope[full] <= near).all() and (y[full] == 1).all()


def test_the_batches_reach_every_regime() -> None:
    """The properties above would be hollow if the strategy missed a regime."""
    seen = torch.zeros(3, dtype=torch.int64)

    @settings(max_examples=30)
    @given(batches())
    def count(batch: Batch) -> None:
        seen.add_(torch.bincount(projected.regime(batch.w, batch.alpha, batch.M), minlength=3))

    count()
    assert (seen >= 200).all(), seen


def test_alpha_zero_and_one_are_the_limits_named_in_the_docstring() -> None:
    w = torch.tensor([[0.3, -1.5], [0.0, 0.0]], dtype=torch.float64)
    assert projected.value(w, 0.0, 3.0).tolist() == [0.5, 0.0]
    assert projected.indicator(w, 0.0, 3.0).tolist() == [0.5, 0.0]
    close(projected.value(w, 1.0, 3.0), [0.09 + 2.25, 0.0], 1e-15)
    assert projected.indicator(w, 1.0, 3.0).tolist() == [1.0, 0.0]
    for alpha in (0.0, 1.0):
        inside = abs(alpha - 1e-13)
        close(projected.value(w, inside, 3.0), projected.value(w, alpha, 3.0), 1e-5, 1e-12)


@given(batches())
def test_above_the_bound_the_value_is_that_of_a_full_indicator(batch: Batch) -> None:
    w = batch.w * 10
    M = w.abs().amax(-1) / 1.5 + 1e-3 * (w.abs().amax(-1) == 0)
    above = (w != 0).any(-1)
    expected = batch.alpha * w.square().sum(-1) + (1 - batch.alpha)
    close(projected.value(w, batch.alpha, M)[above], expected[above], 1e-12)
    assert (projected.regime(w, batch.alpha, M)[above] == Regime.FULL).all()
    close(projected.gradient(w, batch.alpha, M)[above], (2 * batch.alpha * w)[above], 1e-14)


def test_value_is_continuous_where_the_box_ends() -> None:
    w = torch.tensor([[0.3, 1.0]], dtype=torch.float64)
    for eps in (1e-3, 1e-6, 1e-9):
        inside = projected.value(w, 0.01, 1.0 + eps)
        outside = projected.value(w, 0.01, 1.0 - eps)
        assert projected.regime(w, 0.01, 1.0 + eps).item() == Regime.BOUND
        assert projected.regime(w, 0.01, 1.0 - eps).item() == Regime.FULL
        assert abs(inside - outside).item() <= 2 * eps


# --- the other variants --------------------------------------------------------------------------


def _table(w: Array, alpha: float, M: float, variant: str) -> float:
    """The rows of the table that the paper prints and that the authors' code of 2022 computed."""
    a, largest = float(np.sqrt(w @ w)), float(np.abs(w).max())
    if a == 0:
        return 0.0
    b = largest / M
    c = math.inf if alpha == 1 else math.sqrt(alpha / (1 - alpha)) * a
    if b <= c <= 1:
        over = (1 - alpha) / alpha if variant == "printed" else alpha / (1 - alpha)
        return math.sqrt(over) * (1 + alpha) * a
    if c <= b <= 1:
        return M * a**2 / largest + (1 - alpha) * largest / M
    return a**2 + (1 - alpha)


@pytest.mark.parametrize("variant", ["printed", "authors2022"])
@given(batches())
def test_other_variants_follow_their_table(variant: str, batch: Batch) -> None:
    expected = [
        _table(w, batch.alpha, M, variant)
        for w, M in zip(batch.w.numpy(), batch.M.numpy(), strict=True)
    ]
    close(projected.value(batch.w, batch.alpha, batch.M, variant), expected, 1e-11)


@given(batches())
def test_the_variant_changes_neither_regime_nor_indicator(batch: Batch) -> None:
    for variant in ("printed", "authors2022"):
        for f in (projected.regime, projected.indicator):
            assert torch.equal(
                f(batch.w, batch.alpha, batch.M), f(batch.w, batch.alpha, batch.M, variant)
            )


@given(batches())
def test_the_printed_value_is_never_below_the_exact_one(batch: Batch) -> None:
    """It lost a factor alpha <= 1: too large a penalty, hence no relaxation."""
    exact = projected.value(batch.w, batch.alpha, batch.M)
    assert (projected.value(batch.w, batch.alpha, batch.M, "printed") >= exact * (1 - 1e-12)).all()


# --- gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", projected.VARIANTS)
@given(batches())
def test_gradient_is_the_difference_quotient_inside_a_regime(variant: str, batch: Batch) -> None:
    w, alpha, M = batch.w, batch.alpha, batch.M
    magnitude = w.abs()
    peak = magnitude.amax(-1)
    h = 1e-6 * peak
    # Keep rows where the largest weight is one alone and a step changes no regime.
    runner_up = magnitude.sort(-1).values[:, -2] if batch.k > 1 else torch.zeros_like(peak)
    smooth = (peak > 0) & (peak - runner_up > 4 * h)
    regime = projected.regime(w, alpha, M)
    gradient = projected.gradient(w, alpha, M, variant)
    z = projected.value(w, alpha, M, variant)
    for j in range(batch.k):
        step = torch.zeros_like(w)
        step[:, j] = h
        for side in (step, -step):
            smooth &= projected.regime(w + side, alpha, M) == regime
        up, down = (projected.value(w + side, alpha, M, variant) for side in (step, -step))
        slope = (up - down) / (2 * h)
        tolerance = 1e-7 * gradient.abs().amax(-1) + 8e-16 * z / h
        assert ((slope - gradient[:, j]).abs() <= tolerance)[smooth].all()
    assert smooth.any() or batch.k > 1 or not (peak > 0).any()


@given(batches())
def test_gradient_is_a_subgradient_everywhere(batch: Batch) -> None:
    """z(x) >= z(w) + <g, x - w> for all x in the box: ties, corners and zero rows included."""
    z = projected.value(batch.w, batch.alpha, batch.M)
    g = projected.gradient(batch.w, batch.alpha, batch.M)
    M = batch.M.unsqueeze(-1)
    others = torch.from_numpy(batch.rng.uniform(-1, 1, (20, *batch.w.shape))) * M
    others[10:] = (batch.w + 1e-3 * others[10:]).clamp(-M, M)
    plane = z + (g * (others - batch.w)).sum(-1)
    beyond = projected.value(others, batch.alpha, batch.M)
    scale = z.abs() + (g.abs() * (others.abs() + batch.w.abs())).sum(-1)
    assert (beyond >= plane - 1e-13 * scale).all()


def _jump(w: Tensor, direction: Tensor, eps: float, alpha: float, M: Tensor, f: Callable) -> float:
    return (f(w + eps * direction, alpha, M) - f(w - eps * direction, alpha, M)).abs().max().item()


@given(inner_alphas, st.integers(2, 6), seeds)
def test_value_and_gradient_are_continuous_across_b_equal_c(
    alpha: float, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(rng.standard_normal((1, k)))
    w[0, 0] = 1.5 * w.abs().amax()
    ratio = math.sqrt(alpha / (1 - alpha))
    w /= 2 * ratio * w.norm()  # c = 1/2
    M = w.abs().amax(-1) * 2  # b = 1/2
    direction = torch.zeros_like(w)
    direction[0, 0] = w[0, 0]  # a larger first weight raises b faster than c
    _assert_linear_crossing(w, direction, alpha, M, Regime.BOUND, Regime.NORM)


@given(inner_alphas, sizes, seeds)
def test_value_and_gradient_are_continuous_across_c_equal_one(
    alpha: float, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(rng.standard_normal((1, k)))
    w /= math.sqrt(alpha / (1 - alpha)) * w.norm()  # c = 1
    M = w.abs().amax(-1) * rng.uniform(1.1, 100)
    _assert_linear_crossing(w, w, alpha, M, Regime.FULL, Regime.NORM)


def _assert_linear_crossing(
    w: Tensor, direction: Tensor, alpha: float, M: Tensor, after: Regime, before: Regime
) -> None:
    z, g = projected.value(w, alpha, M).max(), projected.gradient(w, alpha, M).abs().max()
    for eps in (1e-3, 1e-5, 1e-7):
        assert projected.regime(w + eps * direction, alpha, M).item() == after
        assert projected.regime(w - eps * direction, alpha, M).item() == before
        assert _jump(w, direction, eps, alpha, M, projected.value) <= 20 * eps * z
        assert _jump(w, direction, eps, alpha, M, projected.gradient) <= 20 * eps * g


def test_the_authors_variant_jumps_where_the_exact_one_is_continuous() -> None:
    w = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    alpha = 0.2
    w /= math.sqrt(alpha / (1 - alpha)) * w.norm()
    values = [
        projected.value(w * s, alpha, 100.0, "authors2022").item() for s in (1 - 1e-9, 1 + 1e-9)
    ]
    assert values[1] - values[0] > 1


def test_ties_share_the_slope_and_zero_rows_have_none() -> None:
    w = torch.tensor([[0.5, -0.5, 0.1], [0.0, 0.0, 0.0]], dtype=torch.float64)
    g = projected.gradient(w, 0.0, 2.0)
    assert g.tolist() == [[0.25, -0.25, 0.0], [0.0, 0.0, 0.0]]
    for variant in projected.VARIANTS:
        for alpha in (0.0, 0.3, 1.0):
            assert projected.value(w, alpha, 2.0, variant)[1] == 0
            assert (projected.gradient(w, alpha, 2.0, variant)[1] == 0).all()


@given(batches())
def test_autograd_of_the_value_agrees_with_the_gradient(batch: Batch) -> None:
    """A user may differentiate `value` instead: same subgradient, also at ties and at zero."""
    w = batch.w.clone().requires_grad_()
    projected.value(w, batch.alpha, batch.M).sum().backward()
    g = projected.gradient(batch.w, batch.alpha, batch.M)
    assert w.grad is not None
    holds(
        (w.grad - g).abs() <= 1e-9 * g.abs().amax(-1, keepdim=True),
        w=batch.w, M=batch.M, autograd=w.grad, gradient=g,
    )  # fmt: skip


def test_no_function_needs_autograd() -> None:
    with torch.inference_mode():
        w = torch.randn(4, 3)
        for f in (projected.value, projected.indicator, projected.gradient, projected.conjugate):
            assert not f(w, 0.3, 2.0).requires_grad
        assert not projected.prox(w, 0.1, 0.3, 2.0).requires_grad


# --- conjugate -----------------------------------------------------------------------------------


def supremum_over_y(u: Array, alpha: float, M: Array, lower: float, upper: float) -> Array:
    """max over y of sum_j max over |w_j| <= M y of (u_j w_j - alpha w_j^2 / y), minus (1 - alpha) y.

    Every inner maximum is of a concave parabola over an interval, found by its stationary point.
    """

    def negative(y: Array) -> Array:
        box = (M * y)[:, None]
        # Without curvature the parabola is a line, largest at an end of the box.
        stationary = u * y[:, None] / (2 * alpha) if alpha > 0 else np.sign(u) * box
        w = np.clip(stationary, -box, box)
        return perspective(w, y, alpha) - (u * w).sum(-1)

    low, high = np.full(len(u), lower), np.full(len(u), upper)
    return -negative(golden(negative, low, high))


def slopes(batch: Batch) -> Tensor:
    """Rows u around the border of the conjugate's flat part, where sum phi(u_j) = 1 - alpha."""
    direction = _directions(batch.rng, batch.k)
    natural = 2 * math.sqrt(batch.alpha * (1 - batch.alpha)) + 1 / batch.M.numpy()
    scale = natural * 10 ** batch.rng.uniform(-1.5, 1.5, ROWS)
    return torch.from_numpy(direction * scale[:, None])


NODES = [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.2, 0.7)]


@pytest.mark.parametrize("lower, upper", NODES)
@given(batches())
@settings(max_examples=50)
def test_conjugate_is_the_supremum(lower: float, upper: float, batch: Batch) -> None:
    u = slopes(batch)
    expected = supremum_over_y(u.numpy(), batch.alpha, batch.M.numpy(), lower, upper)
    actual = projected.conjugate(u, batch.alpha, batch.M, lower=lower, upper=upper)
    # The supremum is a difference of terms as large as M |u|, which is where rounding comes from.
    scale = 1 + (u.abs().sum(-1) * batch.M).numpy()
    error = np.abs(actual.numpy() - expected)
    holds(error <= 1e-12 * scale, u=u, M=batch.M, actual=actual, expected=expected)


@given(batches())
def test_fenchel_young(batch: Batch) -> None:
    """z(w) + z*(u) >= <u, w>, with equality where u is the gradient at w."""
    w, u = batch.w, slopes(batch)
    z = projected.value(w, batch.alpha, batch.M)
    conjugate = projected.conjugate(u, batch.alpha, batch.M)
    inner = (u * w).sum(-1)
    holds(
        z + conjugate >= inner - 1e-13 * (z + conjugate + inner.abs()),
        w=w, u=u, M=batch.M, z=z, conjugate=conjugate, inner=inner,
    )  # fmt: skip

    g = projected.gradient(w, batch.alpha, batch.M)
    inside = w.abs().amax(-1) < batch.M
    gap = z + projected.conjugate(g, batch.alpha, batch.M) - (g * w).sum(-1)
    scale = 1 + z + batch.M * g.abs().sum(-1)
    holds((gap.abs() <= 1e-13 * scale) | ~inside, w=w, M=batch.M, g=g, z=z, gap=gap)


# --- prox ----------------------------------------------------------------------------------------


def proximal_points(batch: Batch) -> tuple[Tensor, Tensor]:
    """v (ROWS, k) and steps (ROWS,) from where the prox is zero to where it barely moves v."""
    v = slopes(batch)
    step = torch.from_numpy(10 ** batch.rng.uniform(-3, 3, ROWS))
    return v * step.unsqueeze(-1) + batch.w, step


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
        box = (M * y)[:, None]
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
    """The largest weight alone says little here: plain Newton steps, each 1.5 times further, would
    run out of their number.  The root is known: y = sqrt(sum v^2) - t for alpha = 1/2, unclipped.
    """
    v, step = torch.full((1, 1_000_000), 5e-4, dtype=torch.float64), 1e-4
    p = projected.prox(v, step, 0.5, 100.0)
    close(p, v * (0.5 - step) / 0.5, rtol=1e-12)


# --- scaling, shapes and dtypes ------------------------------------------------------------------


@given(batches(), st.floats(0.01, 1.0))
def test_value_is_positively_homogeneous_below_a_full_indicator(batch: Batch, s: float) -> None:
    """Where y~ < 1 it scales with w, so z(s w) = s z(w) for the same M; elsewhere z(s w) <= s z(w)."""
    z = projected.value(batch.w, batch.alpha, batch.M)
    smaller = projected.value(s * batch.w, batch.alpha, batch.M)
    partial = projected.indicator(batch.w, batch.alpha, batch.M) < 1
    close(smaller[partial], s * z[partial], 1e-12)
    assert (smaller <= s * z * (1 + 1e-12)).all()


@given(batches(inner_alphas), st.floats(1e-2, 1e2))
def test_a_change_of_units_is_a_change_of_alpha(batch: Batch, s: float) -> None:
    """Weights and M in units s times smaller: with d = alpha + s^2 (1 - alpha), alpha' = alpha / d
    and kappa = s^2 / d,

    z(s w; alpha', s M) = kappa z(w; alpha, M),   z*'(u) = kappa z*(s u / kappa), and
    prox of s v with step t d is s times the prox of v with step t.
    """
    w, alpha, M = batch.w, batch.alpha, batch.M
    d = alpha + s * s * (1 - alpha)
    scaled, kappa = alpha / d, s * s / d
    # Near alpha' = 1 the number 1 - alpha' has lost digits, whatever the formula does with it.
    rtol = 1e-13 + 1e-15 / (1 - scaled)
    close(projected.value(s * w, scaled, s * M), kappa * projected.value(w, alpha, M), 10 * rtol, 0)
    u = slopes(batch)
    terms = kappa * (1 + (u.abs().sum(-1) * s / kappa * M))
    difference = projected.conjugate(u, scaled, s * M) - kappa * projected.conjugate(
        s * u / kappa, alpha, M
    )
    assert (difference.abs() <= 10 * rtol * terms).all()
    v, step = proximal_points(batch)
    units = projected.prox(s * v, step * d, scaled, s * M)
    original = s * projected.prox(v, step, alpha, M)
    size = s * v.abs().amax(-1, keepdim=True)
    assert ((units - original).abs() <= (1e-9 + 1e3 * rtol) * size).all()


@given(batches())
def test_signs_and_order_of_weights_carry_through(batch: Batch) -> None:
    w = batch.w
    order = torch.from_numpy(batch.rng.permutation(batch.k))
    sign = torch.from_numpy(batch.rng.choice([-1.0, 1.0], batch.k))
    moved = (w * sign)[:, order]
    close(
        projected.value(moved, batch.alpha, batch.M),
        projected.value(w, batch.alpha, batch.M),
        1e-14,
    )
    v, step = proximal_points(batch)
    close(
        projected.prox((v * sign)[:, order], step, batch.alpha, batch.M),
        (projected.prox(v, step, batch.alpha, batch.M) * sign)[:, order],
        rtol=1e-9,
        atol=1e-300,
    )


@given(batches(), st.integers(1, 3))
def test_zero_padding_changes_nothing(batch: Batch, extra: int) -> None:
    v, step = proximal_points(batch)
    alpha, M, rows = batch.alpha, batch.M, len(v)

    def pad(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(rows, extra)], dim=-1)

    for f in (projected.value, projected.indicator, projected.regime, projected.conjugate):
        close(f(pad(batch.w), alpha, M), f(batch.w, alpha, M), rtol=1e-14)
    close(
        projected.gradient(pad(batch.w), alpha, M),
        pad(projected.gradient(batch.w, alpha, M)),
        1e-14,
    )
    close(
        projected.prox(pad(v), step, alpha, M),
        pad(projected.prox(v, step, alpha, M)),
        rtol=1e-12,
    )


@given(batches())
@settings(max_examples=20)
def test_leading_batch_dimensions_and_one_row_at_a_time(batch: Batch) -> None:
    v, step = proximal_points(batch)
    alpha, M = batch.alpha, batch.M
    shaped, steps = v.reshape(2, ROWS // 2, -1), step.reshape(2, -1)
    bounds = M.reshape(2, -1)
    for f in (projected.value, projected.indicator, projected.regime, projected.conjugate):
        assert f(shaped, alpha, bounds).shape == (2, ROWS // 2)
        assert torch.equal(f(shaped, alpha, bounds).flatten(), f(v, alpha, M))
        single = torch.cat([f(v[i : i + 1], alpha, float(M[i])) for i in range(8)])
        close(single, f(v, alpha, M)[:8], rtol=1e-14)
    assert torch.equal(
        projected.gradient(shaped, alpha, bounds).flatten(0, 1), projected.gradient(v, alpha, M)
    )
    p = projected.prox(v, step, alpha, M)
    assert torch.equal(projected.prox(shaped, steps, alpha, bounds).flatten(0, 1), p)
    single = torch.cat(
        [projected.prox(v[i : i + 1], float(step[i]), alpha, float(M[i])) for i in range(8)]
    )
    close(single, p[:8], rtol=1e-12, atol=1e-300)


def test_no_entities_and_a_bound_for_all() -> None:
    nothing = torch.zeros(0, 3)
    assert projected.value(nothing, 0.5, 1.0).shape == (0,)
    assert projected.gradient(nothing, 0.5, torch.ones(0)).shape == (0, 3)
    assert projected.prox(nothing, 0.1, 0.5, 1.0).shape == (0, 3)
    assert projected.conjugate(nothing, 0.5, 1.0).shape == (0,)
    w = torch.randn(5, 4, 3)
    assert torch.equal(projected.value(w, 0.5, torch.full((4,), 2.0)), projected.value(w, 0.5, 2.0))


EPSILON = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(batches())
@settings(max_examples=40)
def test_lower_precision_gives_its_dtype_and_stays_close(dtype: torch.dtype, batch: Batch) -> None:
    v, step = (x.to(dtype) for x in proximal_points(batch))
    w, alpha, M, eps = batch.w.to(dtype), batch.alpha, batch.M, EPSILON[dtype]
    M = torch.maximum(M, w.double().abs().amax(-1) * 1.001)
    for f in (projected.value, projected.indicator):
        result = f(w, alpha, M)
        assert result.dtype == dtype
        close(result.double(), f(w.double(), alpha, M), rtol=eps, atol=1e-37)
    # Gradient and prox are compared relative to the terms they are differences of.
    g, exact = projected.gradient(w, alpha, M), projected.gradient(w.double(), alpha, M)
    assert g.dtype == dtype
    slope = exact.abs().amax(-1, keepdim=True)
    holds((g.double() - exact).abs() <= 10 * eps * slope, w=w, M=M, actual=g, exact=exact)
    p = projected.prox(v, step, alpha, M)
    exact = projected.prox(v.double(), step.double(), alpha, M)
    assert p.dtype == dtype
    size = v.double().abs().amax(-1, keepdim=True)
    holds((p.double() - exact).abs() <= 10 * eps * size, v=v, step=step, M=M, p=p, exact=exact)
    u = slopes(batch).to(dtype)
    c, exact = projected.conjugate(u, alpha, M), projected.conjugate(u.double(), alpha, M)
    assert c.dtype == dtype
    terms = 1 + M * u.double().abs().sum(-1)
    holds((c.double() - exact).abs() <= eps * terms, u=u, M=M, actual=c, exact=exact)


def test_bfloat16_is_float32_rounded_once() -> None:
    w = torch.randn(50, 7).bfloat16()
    for f in (projected.value, projected.indicator, projected.gradient, projected.conjugate):
        assert torch.equal(f(w, 0.2, 5.0), f(w.float(), 0.2, 5.0).bfloat16())
    assert torch.equal(
        projected.prox(w, 0.3, 0.2, 5.0), projected.prox(w.float(), 0.3, 0.2, 5.0).bfloat16()
    )


MIXED = torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def _extremes(scales: list[float]) -> list[tuple[float, float, float]]:
    """Scale of the weights, alpha, M: in step with the weights, one, or so large it never binds.

    Left out: alpha = 0 where z = ||w||_inf / M itself is too small a number for float32.
    """
    return [
        (scale, alpha, M)
        for scale in scales
        for alpha in (0.0, 0.1, 1.0)
        for M in (2 * scale, 1.0, 2e30)
        if alpha > 0 or scale / M > 1e-37
    ]


@pytest.mark.parametrize("scale, alpha, M", _extremes([1e-30, 1e-20, 1.0, 1e20, 1e30]))
def test_extreme_weights_in_float32(scale: float, alpha: float, M: float) -> None:
    """The squares of such weights leave float32: nothing but a true overflow may show it."""
    w = MIXED * scale
    for f in (projected.value, projected.indicator, projected.gradient):
        exact = f(w.double(), alpha, M)
        expected = torch.where(exact > torch.finfo(torch.float32).max, math.inf, exact)
        close(f(w, alpha, M).double(), expected, rtol=2e-6, atol=1e-38)


@pytest.mark.parametrize("scale, alpha, M", _extremes([1e-30, 1e-20, 1.0, 1e15]))
def test_extreme_prox_in_float32(scale: float, alpha: float, M: float) -> None:
    w = MIXED * scale
    for step in (0.1 * scale, 10 * scale, 1.0):
        p = projected.prox(w, step, alpha, M)
        exact = projected.prox(w.double(), step, alpha, M)
        holds((p - exact).abs() <= 1e-5 * scale, step=step, p=p, exact=exact)


# --- invalid input -------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable] = {
    "regime": projected.regime,
    "indicator": projected.indicator,
    "value": projected.value,
    "gradient": projected.gradient,
    "conjugate": projected.conjugate,
    "prox": lambda w, alpha, M, variant="exact": projected.prox(w, 0.1, alpha, M, variant),
}
GOOD = torch.ones(2, 3)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "arguments, message",
    [
        ((GOOD, 1.5, 1.0), r"alpha must lie in \[0, 1\], got 1.5"),
        ((GOOD, -0.1, 1.0), r"alpha .* -0.1"),
        ((GOOD, math.nan, 1.0), r"alpha .* nan"),
        ((GOOD, 0.5, 0.0), r"M must be positive, got 0"),
        ((GOOD, 0.5, -2.0), r"M must be positive, got -2"),
        ((GOOD, 0.5, math.nan), r"M must be positive, got nan"),
        ((GOOD, 0.5, torch.tensor([1.0, -3.0])), r"M must be positive.*-3"),
        ((GOOD, 0.5, torch.tensor([1.0, math.nan])), r"M must be positive"),
        ((GOOD, 0.5, torch.ones(5)), r"M of shape \(5,\) .* \(2,\)"),
        ((GOOD, 0.5, 1.0, "misprint"), r"variant must be one of .*'misprint'"),
        ((GOOD.long(), 0.5, 1.0), r"floating-point .* torch.int64"),
        ((GOOD[0], 0.5, 1.0), r"shape \(\.\.\., N, k\), got .*\(3,\)"),
        (([[1.0]], 0.5, 1.0), r"tensor .* got list"),
    ],
)
def test_invalid_input_is_named(name: str, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](*arguments)


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, torch.tensor([1.0, -0.5])])
def test_prox_wants_a_positive_step(step: float | Tensor) -> None:
    with pytest.raises(ValueError, match="step must be positive, got"):
        projected.prox(GOOD, step, 0.5, 1.0)


@pytest.mark.parametrize("variant", ["printed", "authors2022"])
def test_prox_and_conjugate_exist_for_the_exact_form_alone(variant: str) -> None:
    with pytest.raises(ValueError, match=f"exact.*{variant}"):
        projected.prox(GOOD, 0.1, 0.5, 1.0, variant)
    with pytest.raises(ValueError, match=f"exact.*{variant}"):
        projected.conjugate(GOOD, 0.5, 1.0, variant)

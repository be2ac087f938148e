"""What must not depend on units, signs, order, zero padding or the shape of a batch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projected_batches import ROWS, Batch, batches, inner_alphas, proximal_points, slopes
from projected_reference import close
from torch import Tensor

from spr_or.formulations import projected


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

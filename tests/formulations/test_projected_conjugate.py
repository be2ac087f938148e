"""The conjugate against a numeric supremum and the Fenchel-Young inequality."""

import numpy as np
import pytest
from hypothesis import given, settings
from projected_batches import Array, Batch, batches, slopes
from projected_reference import golden, holds, perspective

from spr_or.formulations import projected


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

"""The losses of the check and their conjugates, on the safe side of sixty decimal digits."""

from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.data import Data, data_of
from spr_or.proof.losses import conjugate, size_at_zero, slope, sum_of_losses

getcontext().prec = 60


def data_for(loss: str, seed: int, weighted: bool, rows: int = 30) -> tuple[Data, np.ndarray]:
    """Data, and predictions of all sizes."""
    rng = np.random.default_rng(seed)
    y = rng.choice([-1.0, 1.0], rows)
    if loss == "poisson":
        y = np.where(
            rng.random(rows) < 0.3, 0.0, rng.exponential(size=rows) * 10 ** rng.uniform(-8, 6)
        )
        y[0] = 1.0
    size = rng.uniform(0.1, 5, rows) if weighted else None
    p = SparseTrainingProblem.linear(
        np.ones((rows, 1)), y, [[0]], loss, lam=1, alpha=0.5, M=1, sample_weight=size
    )
    spread = rng.choice([0.1, 3.0, 30.0])
    return data_of(p), rng.normal(size=(rows, 1)) * spread


def xlogx(p: Decimal) -> Decimal:
    return p * p.ln() if p > 0 else Decimal(0)


def sizes(data: Data) -> list[Decimal]:
    return (
        [Decimal(1)] * len(data.Y)
        if data.size is None
        else list(map(Decimal, data.size[:, 0].tolist()))
    )


def exact_loss(data: Data, f: np.ndarray) -> Decimal:
    total = Decimal(0)
    for t, y, x in zip(sizes(data), data.Y[:, 0].tolist(), f[:, 0].tolist(), strict=True):
        Y, F = Decimal(y), Decimal(x)
        if data.loss == "poisson":
            total += t * (F.exp() - Y * F + xlogx(Y) - Y)
        else:
            total += t * (1 + (-Y * F).exp()).ln()
    return total


def exact_conjugate(data: Data, nu: np.ndarray) -> Decimal:
    """(1/n) sum t l*(nu / t)."""
    total = Decimal(0)
    for t, y, v in zip(sizes(data), data.Y[:, 0].tolist(), nu[:, 0].tolist(), strict=True):
        Y, own = Decimal(y), Decimal(v) / t
        if data.loss == "poisson":
            s = own + Y
            assert s >= 0
            total += t * (xlogx(s) - s - xlogx(Y) + Y)
        else:
            p = -own * Y
            assert 0 <= p <= 1
            total += t * (xlogx(p) + xlogx(1 - p))
    return total / data.n


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["logistic", "poisson"])
@pytest.mark.parametrize("seed", range(8))
def test_conjugates_are_rounded_to_the_safe_side_and_little(
    loss: str, seed: int, weighted: bool
) -> None:
    data, f = data_for(loss, seed, weighted)
    for point in (f, np.full_like(f, -800.0), np.zeros_like(f)):
        nu = slope(data, point)
        exact = -exact_conjugate(data, nu)
        found = Decimal(conjugate(data, nu))
        scale = Decimal(float(np.abs(nu).sum() + data.Y.sum() + 1) * 1e-10)
        assert exact - scale <= found <= exact


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", ["logistic", "poisson"])
@pytest.mark.parametrize("seed", range(8))
def test_sums_of_losses_lie_within_their_error(loss: str, seed: int, weighted: bool) -> None:
    data, f = data_for(loss, seed, weighted)
    off = 1e-9 * np.abs(f)
    value, error = sum_of_losses(data, f, off)
    for sign in (-1, 0, 1):
        moved = f + sign * off
        assert abs(Decimal(value) - exact_loss(data, moved)) <= Decimal(error)
    exactly, error = sum_of_losses(data, f, np.zeros_like(f))
    assert error <= 1e-12 * (abs(exactly) + float(np.exp(f).sum() + np.abs(data.Y).sum()) * 1e3)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_size_at_zero_is_that_of_the_formulations(loss: str) -> None:
    Y = np.sign(np.random.default_rng(0).normal(size=(9, 1))) * (1 if loss == "logistic" else 3.5)
    p = problem(loss, Y)
    assert size_at_zero(p) == pytest.approx(
        float(p.loss_value(torch.zeros(1, dtype=torch.float64)))
    )


def test_the_size_at_zero_of_the_poisson_loss_is_that_of_its_terms() -> None:
    """Its loss at zero is 0 where every target is 1, and tolerances relative to it would be none."""
    assert size_at_zero(problem("poisson", np.ones((5, 1)))) == 2.0
    Y = np.array([[0.0], [3.0]])
    p = problem("poisson", Y)
    assert size_at_zero(p) == pytest.approx(1 + (3 * np.log(3) + 3) / 2)
    assert size_at_zero(p) >= float(p.loss_value(torch.zeros(1, dtype=torch.float64)))


def problem(loss: str, Y: np.ndarray) -> SparseTrainingProblem:
    return SparseTrainingProblem.linear(
        np.ones((len(Y), 1)), Y, [[0]], loss, lam=0.1, alpha=0.5, M=1
    )

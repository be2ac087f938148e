"""The losses against other libraries, autograd, difference quotients and numeric suprema."""

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn import metrics
from torch import Tensor
from torch.nn import functional as F

from spr_or.formulations.losses import LOSSES, Loss

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def samples(loss: Loss, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predictions (n, q) and targets of the kind the loss takes."""
    rng = np.random.default_rng(seed)
    if loss.name in ("squared", "absolute"):
        return torch.from_numpy(rng.normal(size=(n, 3)) * 2), torch.from_numpy(
            rng.normal(size=(n, 3))
        )
    if loss.name == "softmax":
        return torch.from_numpy(rng.normal(size=(n, 4)) * 2), torch.from_numpy(
            rng.integers(0, 4, n)
        )
    if loss.name == "poisson":
        counts = torch.from_numpy(rng.poisson(1.5, (n, 1)).astype(float))
        return torch.from_numpy(rng.normal(size=(n, 1))), counts
    labels = torch.from_numpy(rng.choice([-1.0, 1.0], (n, 1)))
    return torch.from_numpy(rng.normal(size=(n, 1)) * 2), labels


def multipliers(loss: Loss, n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """nu (n, q) strictly inside the domain of the conjugate, and targets."""
    rng = np.random.default_rng(seed)
    f, y = samples(loss, n, seed)
    if loss.name == "squared":
        return f, y
    if loss.name == "absolute":
        return torch.from_numpy(rng.uniform(-0.95, 0.95, tuple(f.shape))), y
    if loss.name == "softmax":
        return (torch.from_numpy(rng.dirichlet(np.full(4, 2.0), n)) - F.one_hot(y, 4)), y
    if loss.name == "poisson":
        return torch.from_numpy(rng.uniform(0.05, 4, (n, 1))) - y, y
    return -y * torch.from_numpy(rng.uniform(0.05, 0.95, (n, 1))), y


def elsewhere(loss: Loss, f: Tensor, y: Tensor) -> Tensor:
    """The mean loss as other libraries compute it."""
    if loss.name == "squared":
        return F.mse_loss(f, y, reduction="sum") / len(f)
    if loss.name == "absolute":
        return F.l1_loss(f, y, reduction="sum") / len(f)
    if loss.name == "hinge":
        return torch.tensor(metrics.hinge_loss(y.squeeze(1).numpy(), f.squeeze(1).numpy()))
    if loss.name == "logistic":
        return F.binary_cross_entropy_with_logits(f, (y + 1) / 2)
    if loss.name == "poisson":
        deviance = metrics.mean_poisson_deviance(y.squeeze(1).numpy(), f.exp().squeeze(1).numpy())
        return torch.tensor(deviance / 2)
    return F.cross_entropy(f, y)


@each_loss
def test_value_agrees_with_other_libraries(loss: Loss) -> None:
    f, y = samples(loss, 200)
    assert loss.value(f, y).shape == (200,)
    torch.testing.assert_close(loss.value(f, y).mean(), elsewhere(loss, f, y).double())


@each_loss
def test_gradient_is_autograd_and_the_difference_quotient(loss: Loss) -> None:
    f, y = samples(loss, 200)
    f.requires_grad_()
    (autograd,) = torch.autograd.grad(loss.value(f, y).sum(), f)
    gradient = loss.gradient(f, y)
    torch.testing.assert_close(gradient, autograd, rtol=1e-12, atol=1e-14)
    h = 1e-6
    with torch.no_grad():
        for j in range(f.shape[1]):
            step = torch.zeros_like(f)
            step[:, j] = h
            quotient = (loss.value(f + step, y) - loss.value(f - step, y)) / (2 * h)
            torch.testing.assert_close(gradient[:, j], quotient, rtol=1e-6, atol=1e-8)


@each_loss
def test_conjugate_is_the_supremum(loss: Loss) -> None:
    nu, y = multipliers(loss, 12)
    for m in range(12):
        nu_m, y_m = nu[m : m + 1], y[m : m + 1]

        def negative(f: np.ndarray, nu_m: Tensor = nu_m, y_m: Tensor = y_m) -> float:
            point = torch.from_numpy(f)[None]
            return float(loss.value(point, y_m) - (nu_m * point).sum())

        start = y_m[0].numpy() if y_m.dim() == 2 else np.zeros(nu.shape[1])
        starts = [start, np.zeros(nu.shape[1])]
        # Nelder-Mead copes with the kinks of absolute and hinge, on at most four variables.
        options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000, "maxfev": 8000}
        best = max(
            -optimize.minimize(negative, s, method="Nelder-Mead", options=options).fun
            for s in starts
        )
        assert loss.conjugate(nu_m, y_m).item() == pytest.approx(best, abs=1e-6)


@each_loss
def test_fenchel_young(loss: Loss) -> None:
    """l(f) + l*(nu) >= <nu, f>, with equality where nu is the gradient at f."""
    nu, y = multipliers(loss, 2000)
    f, _ = samples(loss, 2000, seed=9)
    gap = loss.value(f, y) + loss.conjugate(nu, y) - (nu * f).sum(-1)
    assert (gap >= -1e-12).all()
    g = loss.gradient(f, y)
    gap = loss.value(f, y) + loss.conjugate(g, y) - (g * f).sum(-1)
    assert (gap.abs() <= 1e-12).all()


OUTSIDE = {
    "absolute": [[1.01, 0.0, 0.0], [0.0, -1.5, 0.2]],
    "hinge": [[0.1], [-1.1]],
    "logistic": [[0.1], [-1.1]],
    "poisson": [[-1.1], [-2.0]],
    "softmax": [[0.5, 0.5, 0.5, -0.5], [0.1, -0.1, -0.1, 0.1]],
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_conjugate_is_infinite_outside_its_domain(name: str) -> None:
    loss, nu = LOSSES[name], torch.tensor(OUTSIDE[name], dtype=torch.float64)
    target = {"absolute": torch.zeros(2, 3).double(), "softmax": torch.zeros(2).long()}
    y = target.get(name, torch.ones(2, 1).double())
    assert (loss.conjugate(nu, y) == torch.inf).all()
    # And so it should be: along some direction <nu, f> - l(f) grows without end.
    directions = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * nu.shape[1]).double()
    directions = directions.reshape(-1, nu.shape[1])
    for row in range(2):
        here = y[row : row + 1].expand(len(directions), *y.shape[1:])
        near, far = (
            (nu[row] * f).sum(-1) - loss.value(f, here)
            for f in (1e2 * directions, 1e5 * directions)
        )
        assert (far > near + 100).any()


@each_loss
def test_project_returns_a_point_of_the_domain(loss: Loss) -> None:
    inside, y = multipliers(loss, 300)
    torch.testing.assert_close(loss.project(inside, y), inside, rtol=0, atol=1e-15)
    anywhere = torch.from_numpy(np.random.default_rng(3).normal(size=tuple(inside.shape))) * 3
    moved = loss.project(anywhere, y)
    assert torch.isfinite(loss.conjugate(moved, y)).all()
    torch.testing.assert_close(loss.project(moved, y), moved, rtol=0, atol=1e-12)


@each_loss
def test_hessian_is_autograd_and_curvature_its_largest_eigenvalue(loss: Loss) -> None:
    if loss.hessian is None:
        assert loss.curvature is None
        # Not smooth: the slope jumps by a fixed amount over an arbitrarily short step.
        f, y = samples(loss, 1)
        kink = y.clone()
        jump = loss.gradient(kink + 1e-12, y) - loss.gradient(kink - 1e-12, y)
        assert jump.abs().max() >= 1
        return
    f, y = samples(loss, 40)
    f[0] = 0  # where the logistic loss is most curved
    if loss.name == "softmax":
        f[1] = torch.tensor([0.0, 0.0, -60.0, -60.0])  # two classes share all: the worst case
    autograd = torch.stack(
        [
            torch.autograd.functional.hessian(
                lambda point, m=m: loss.value(point[None], y[m : m + 1]).sum(), f[m]
            )
            for m in range(len(f))
        ]
    )
    assert loss.hessian is not None
    torch.testing.assert_close(loss.hessian(f, y), autograd, rtol=1e-10, atol=1e-12)
    largest = torch.linalg.eigvalsh(autograd)[:, -1].max().item()
    if loss.curvature is None:  # it grows with the prediction, without end
        assert loss.hessian(f + 20, y).min() > 1e6
        return
    assert largest == pytest.approx(loss.curvature, rel=1e-9)


@each_loss
def test_large_predictions_do_not_overflow(loss: Loss) -> None:
    f, y = samples(loss, 50)
    largest = 1e2 if loss.name == "poisson" else 1e3  # a rate of exp(1000) is none
    for scale in (largest, -largest):
        value, gradient = loss.value(scale * f, y), loss.gradient(scale * f, y)
        assert torch.isfinite(value).all() and (value >= 0).all()
        assert torch.isfinite(gradient).all()


@each_loss
def test_leading_batch_dimensions(loss: Loss) -> None:
    f, y = samples(loss, 6)
    nu, _ = multipliers(loss, 6, seed=0)
    batch = torch.stack([f, 2 * f])
    assert torch.equal(loss.value(batch, y)[0], loss.value(f, y))
    assert torch.equal(loss.value(batch, y)[1], loss.value(2 * f, y))
    assert torch.equal(loss.gradient(batch, y)[1], loss.gradient(2 * f, y))
    assert torch.equal(loss.conjugate(torch.stack([nu, nu]), y)[1], loss.conjugate(nu, y))

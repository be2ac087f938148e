"""The instances of `spr-or verify --set networks`: one hidden layer, 20 to 40 samples in the plane.

The samples come from formulas.  None lies on a line with two others, which
`spr_or.solvers.network_patterns` needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from spr_or.formulations.entities import neurons
from spr_or.formulations.problem import SparseTrainingProblem


def band_20() -> SparseTrainingProblem:
    """Four neurons, 20 samples: a slanted band against both its sides, hinge loss."""
    X = _spread(20)
    inside = (X[:, 0] + 0.3 * X[:, 1]).abs() < 0.45
    return _problem("band-20x4", 4, X, _label(inside), "hinge", lam=0.03)


def xor_20() -> SparseTrainingProblem:
    """Four neurons, 20 samples: the product of both inputs with noise, squared loss."""
    X = _spread(20)
    return _problem("xor-20x4", 4, X, _noisy_product(X), "squared", lam=0.02)


def moons_30() -> SparseTrainingProblem:
    """Five neurons, 30 samples: two half circles that reach into each other, squared loss."""
    angle = torch.linspace(0, math.pi, 15, dtype=torch.float64)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    X = torch.cat([upper, -upper]) + 0.05 * _waves(30)
    return _problem("moons-30x5", 5, X, _label(torch.arange(30) < 15), "squared", lam=0.02)


def ring_30() -> SparseTrainingProblem:
    """Five neurons, 30 samples: a disc against what surrounds it, hinge loss."""
    X = _spread(30)
    return _problem("ring-30x5", 5, X, _label(X.norm(dim=1) < 0.75), "hinge", lam=0.02)


def xor_40() -> SparseTrainingProblem:
    """Six neurons, 40 samples: the product of both inputs with noise, squared loss."""
    X = _spread(40)
    return _problem("xor-40x6", 6, X, _noisy_product(X), "squared", lam=0.01)


def ring_40() -> SparseTrainingProblem:
    """Six neurons, 40 samples: a disc against what surrounds it, hinge loss."""
    X = _spread(40)
    return _problem("ring-40x6", 6, X, _label(X.norm(dim=1) < 0.75), "hinge", lam=0.02)


def _problem(
    name: str, hidden: int, X: Tensor, y: Tensor, loss: str, lam: float
) -> SparseTrainingProblem:
    net = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1))
    return SparseTrainingProblem.network(
        net, X, y, neurons(net), loss=loss, lam=lam, alpha=0.3, M=4.0, M_free=2.0, u="uniform",
        name=name,
    )  # fmt: skip


def _spread(n: int) -> Tensor:
    """n points over the square of side two around 0: an additive recurrence, bent by waves."""
    k = torch.arange(1, n + 1, dtype=torch.float64).unsqueeze(1)
    step = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)
    return 2 * (k * step % 1) - 1 + 0.05 * _waves(n)


def _waves(n: int) -> Tensor:
    """Two columns (n, 2) between -1 and 1 that follow no line."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    return torch.stack([torch.sin(5 * k), torch.cos(3 * k)], dim=1)


def _noisy_product(X: Tensor) -> Tensor:
    return 2 * X[:, 0] * X[:, 1] + 0.2 * torch.sin(7 * torch.arange(1, len(X) + 1))


def _label(positive: Tensor) -> Tensor:
    return torch.where(positive, 1.0, -1.0)


NETWORKS: dict[str, Callable[[], SparseTrainingProblem]] = {
    "band-20x4": band_20,
    "xor-20x4": xor_20,
    "moons-30x5": moons_30,
    "ring-30x5": ring_30,
    "xor-40x6": xor_40,
    "ring-40x6": ring_40,
}

"""Small networks with one hidden layer on random samples in the plane."""

import torch
from torch import nn

from spr_or import SparseTrainingProblem
from spr_or.formulations.entities import neurons


def random_layer(
    seed: int, loss: str = "squared", *, n: int = 6, hidden: int = 2, **settings
) -> SparseTrainingProblem:
    """A problem whose optimum uses neurons of both signs more often than not."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1))
    X = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    y = 2 * X[:, 0] * X[:, 1] + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    if loss == "hinge":
        y = torch.where(y > 0, 1.0, -1.0)
    chosen = {"lam": 0.03, "alpha": 0.3, "M": 4.0, "M_free": 2.0, "u": "uniform", **settings}
    return SparseTrainingProblem.network(net, X, y, neurons(net), loss=loss, name="tiny", **chosen)

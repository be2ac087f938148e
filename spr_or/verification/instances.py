"""The instances that `spr-or verify` proves by default: small, fast, and each with its own point.

Every function here returns a `SparseTrainingProblem`; `INSTANCES` maps the names of the command line
to them, in the order of the table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from spr_or.formulations.entities import filters, groups, neurons
from spr_or.formulations.problem import SparseTrainingProblem


def regression(M: float = 3.0, name: str = "regression-8x3") -> SparseTrainingProblem:
    """Eight groups of three weights, three of them active, 60 samples."""
    X, y = _sparse_regression(n=60, sizes=[3] * 8, active=3, seed=0)
    return SparseTrainingProblem.linear(X, y, groups(24, 3), lam=0.08, alpha=0.05, M=M, name=name)


def tight_m() -> SparseTrainingProblem:
    """The same regression with an M that cuts into the solution, which a note then says."""
    return regression(M=0.6, name="tight-m")


def loose_m() -> SparseTrainingProblem:
    """The same regression with a loose M: the big-M bound collapses, the perspective holds."""
    return regression(M=30.0, name="loose-m")


def unequal() -> SparseTrainingProblem:
    """Entities of one to five weights, weighted by their share of the parameters."""
    sizes = [1, 2, 3, 4, 5, 1, 2, 3]
    X, y = _sparse_regression(n=80, sizes=sizes, active=3, seed=3)
    share = np.array(sizes) / sum(sizes)
    return SparseTrainingProblem.linear(
        X, y, _consecutive(sizes), lam=0.8, alpha=0.1, M=3.0, u=share, name="unequal-entities"
    )


def two_outputs() -> SparseTrainingProblem:
    """Two targets from the same groups of columns: an entity spans both."""
    X, first = _sparse_regression(n=60, sizes=[2] * 7, active=3, seed=5)
    _, second = _sparse_regression(n=60, sizes=[2] * 7, active=3, seed=6)
    y = np.stack([first, second], axis=1)
    return SparseTrainingProblem.linear(
        X, y, groups(14, 2), lam=0.2, alpha=0.1, M=4.0, name="two-outputs"
    )


def absolute() -> SparseTrainingProblem:
    """Absolute loss with alpha = 0: everything is linear, and a MILP solver alone is exact."""
    X, y = _sparse_regression(n=50, sizes=[2] * 8, active=3, seed=7)
    y[::9] += 4.0  # outliers, which move this loss little
    return SparseTrainingProblem.linear(
        X, y, groups(16, 2), loss="absolute", lam=0.1, alpha=0.0, M=3.0, name="absolute-linear"
    )


def diabetes() -> SparseTrainingProblem:
    """scikit-learn's diabetes data: each measurement with its square and cube is an entity."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes(scaled=False)
    columns: list[np.ndarray] = []
    entities: list[list[int]] = []
    for j in range(data.data.shape[1]):
        x = data.data[:, j]
        x = (x - x.mean()) / x.std()
        powers = [x] if len(np.unique(x)) == 2 else [x, x**2, x**3]
        entities.append(list(range(len(columns), len(columns) + len(powers))))
        columns += powers
    X = np.stack(columns, axis=1)
    X = (X - X.mean(0)) / X.std(0)
    y = (data.target - data.target.mean()) / data.target.std()
    return SparseTrainingProblem.linear(
        X, y, entities, lam=0.04, alpha=0.2, M=1.0, name="diabetes-polynomial"
    )


def digits_hinge() -> SparseTrainingProblem:
    """Digits 3 against 8, pooled to 16 pixels, neighbours paired, hinge loss."""
    X, label = _pooled_digits([3, 8], n=60)
    return SparseTrainingProblem.linear(
        X, 2.0 * label - 1, groups(16, 2), loss="hinge", lam=0.05, alpha=0.2, M=2.0,
        name="digits-hinge",
    )  # fmt: skip


def digits_logistic() -> SparseTrainingProblem:
    """The same digits with the logistic loss."""
    X, label = _pooled_digits([3, 8], n=40)
    return SparseTrainingProblem.linear(
        X, 2.0 * label - 1, groups(16, 2), loss="logistic", lam=0.05, alpha=0.2, M=2.0,
        name="digits-logistic",
    )  # fmt: skip


def digits_softmax() -> SparseTrainingProblem:
    """Three digits, 16 pixels: an entity is four pixels' weights over all three classes."""
    X, label = _pooled_digits([0, 1, 2], n=30)
    return SparseTrainingProblem.linear(
        X, label, groups(16, 4), loss="softmax", lam=0.05, alpha=0.3, M=1.5,
        name="digits-softmax",
    )  # fmt: skip


def relu_xor() -> SparseTrainingProblem:
    """A ReLU net with two hidden neurons on six points of a smoothed exclusive or."""
    X = [[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5], [0.2, 0.9]]
    y = [0, 3, 3, 0, 0.6, 2.1]
    net = _one_hidden_layer(2, 2)
    return SparseTrainingProblem.network(
        net, X, y, neurons(net), lam=0.15, alpha=0.2, M=3.0, u="uniform", name="relu-xor"
    )


def relu_hinge() -> SparseTrainingProblem:
    """A ReLU net with two hidden neurons that separates a band, hinge loss."""
    X = [[-1.0, 0.2], [-0.7, -0.5], [-0.1, 0.4], [0.1, -0.3], [0.8, 0.5], [1.0, -0.2]]
    y = [-1, -1, 1, 1, -1, -1]
    net = _one_hidden_layer(2, 2)
    return SparseTrainingProblem.network(
        net, X, y, neurons(net), loss="hinge", lam=0.03, alpha=0.2, M=2.0, u="uniform",
        name="relu-band-hinge",
    )  # fmt: skip


def relu_three() -> SparseTrainingProblem:
    """A ReLU net with three hidden neurons on four points of a zigzag; one neuron is spare."""
    x = np.linspace(-1, 1, 4)
    X = np.stack([x, np.ones_like(x) * 0.3], axis=1)
    y = 3 * np.abs(x + 0.2) - 1.5 * np.maximum(x - 0.4, 0)
    net = _one_hidden_layer(2, 3)
    return SparseTrainingProblem.network(
        net, X, y, neurons(net), lam=0.1, alpha=0.2, M=2.0, u="uniform", name="relu-zigzag-3"
    )


def conv_tiny() -> SparseTrainingProblem:
    """A convolution with two 2x2 filters on five 3x3 images: edges against blobs."""
    images = torch.zeros(5, 1, 3, 3)
    images[0, 0, 0] = images[1, 0, 1] = 1.0  # horizontal strokes
    images[2, 0, :, 0] = images[3, 0, :, 2] = 1.0  # vertical strokes
    images[4, 0, 1, 1] = 1.0
    net = nn.Sequential(
        nn.Conv2d(1, 2, 2, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 1)
    )
    return SparseTrainingProblem.network(
        net, images, [2, 2, 0, 0, 1], filters(net), lam=0.1, alpha=0.2, M=2.0, u="uniform",
        name="conv-2x2-filters",
    )  # fmt: skip


def _one_hidden_layer(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def _sparse_regression(
    n: int, sizes: list[int], active: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian columns, ``active`` groups with weights of order one, noise of a third the signal."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, sum(sizes)))
    w = np.zeros(sum(sizes))
    owned = _consecutive(sizes)
    for i in rng.choice(len(sizes), active, replace=False):
        w[owned[i]] = rng.uniform(0.3, 1.0, sizes[i]) * rng.choice([-1, 1], sizes[i])
    signal = X @ w
    return X, signal + rng.standard_normal(n) * signal.std() / 3


def _consecutive(sizes: list[int]) -> list[list[int]]:
    ends = np.cumsum(sizes)
    return [list(range(end - size, end)) for size, end in zip(sizes, ends.tolist(), strict=True)]


def _pooled_digits(classes: list[int], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n images of the classes, 2x2-averaged to 4x4 pixels and standardised."""
    from sklearn.datasets import load_digits

    data = load_digits()
    chosen = np.flatnonzero(np.isin(data.target, classes))[:n]
    pooled = data.images[chosen].reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    X = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-9)
    return X, np.searchsorted(classes, data.target[chosen])


INSTANCES: dict[str, Callable[[], SparseTrainingProblem]] = {
    "regression-8x3": regression,
    "tight-m": tight_m,
    "loose-m": loose_m,
    "unequal-entities": unequal,
    "two-outputs": two_outputs,
    "absolute-linear": absolute,
    "diabetes-polynomial": diabetes,
    "digits-hinge": digits_hinge,
    "digits-logistic": digits_logistic,
    "digits-softmax": digits_softmax,
    "relu-xor": relu_xor,
    "relu-band-hinge": relu_hinge,
    "relu-zigzag-3": relu_three,
    "conv-2x2-filters": conv_tiny,
}

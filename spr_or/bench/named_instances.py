"""The named instances of `spr-or bench solve`: regressions with correlated columns, made from a seed.

Two families, both with the squared loss as a mean over n samples and columns that follow an
autoregressive process of order one, so that columns i and j have the correlation rho^|i-j|:

* E and H, groups of four columns.  A few groups carry standard normal weights; the noise has the
  variance of the signal divided by the signal-to-noise ratio.
* S, single columns scaled to unit length, a few weights of +1 or -1.  This is the setting of the
  solvers for plain l0 problems; `l0_terms` gives a problem in their terms.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.formulations.problem import SparseTrainingProblem

Array = NDArray[np.float64]


class GroupSettings(NamedTuple):
    """n samples, N groups of ``size`` columns, ``active`` of them with weights; lam, alpha, M."""

    n: int
    N: int
    rho: float = 0.5
    active: int = 5
    snr: float = 5.0
    lam: float = 0.3
    alpha: float = 0.1
    M: float = 4.0
    size: int = 4


class ColumnSettings(NamedTuple):
    """n samples, p unit columns, ``active`` weights of +-1; ``l0`` and ``l2`` as in `L0Terms`, M."""

    n: int
    p: int
    l0: float
    rho: float = 0.5
    active: int = 10
    snr: float = 10.0
    l2: float = 0.1
    M: float = 2.0


GROUPS = {
    "E1": GroupSettings(100, 30),
    "E2": GroupSettings(300, 100),
    "E3": GroupSettings(1000, 300),
    "E4": GroupSettings(2000, 1000),
    # The Gram matrix of E5 would take 12.8 GB, X takes 0.64 GB.
    "E5": GroupSettings(2000, 10_000),
    "H1": GroupSettings(300, 60, active=10, snr=1.0, lam=0.1, alpha=0.05, M=2.0),
    "H2": GroupSettings(500, 100, rho=0.8, active=10, snr=2.0, lam=0.2, alpha=0.1, M=3.0),
    "H3": GroupSettings(500, 100, active=10, lam=0.1, alpha=0.1, M=3.0),
}
COLUMNS = {
    "S1": ColumnSettings(500, 1000, l0=0.06),
    "S2": ColumnSettings(500, 5000, l0=0.06),
    "S3": ColumnSettings(500, 1000, l0=0.02),
    "S4": ColumnSettings(500, 5000, l0=0.02),
    "S5": ColumnSettings(500, 200, l0=0.02, rho=0.9, snr=1.0),
    # Little ridge and a wide box: the perspective term by itself is weak, and the loss has much
    # curvature to move.
    "S6": ColumnSettings(1000, 100, l0=0.02, rho=0.3, snr=1.0, l2=0.001, M=5.0),
}
NAMES = (*GROUPS, *COLUMNS)


def problem(name: str, seed: int = 0) -> SparseTrainingProblem:
    """The named instance; ``ValueError`` that lists the known names otherwise.

    >>> p = problem("E1")
    >>> p.n, len(p.entities), p.lam, p.alpha
    (100, 30, 0.3, 0.1)
    """
    if name in GROUPS:
        g = GROUPS[name]
        X, y = group_regression(g.n, g.N, g.size, seed, g.rho, g.active, g.snr)
        groups = np.arange(g.N * g.size).reshape(g.N, g.size).tolist()
        return SparseTrainingProblem.linear(
            X, y, groups, lam=g.lam, alpha=g.alpha, M=g.M, name=name
        )
    if name in COLUMNS:
        c = COLUMNS[name]
        X, y = column_regression(c.n, c.p, seed, c.rho, c.active, c.snr)
        lam, alpha = 2 * (c.l0 + c.l2) / c.n, c.l2 / (c.l0 + c.l2)
        columns = [[j] for j in range(c.p)]
        return SparseTrainingProblem.linear(X, y, columns, lam=lam, alpha=alpha, M=c.M, name=name)
    raise ValueError(f"no instance is called {name!r}: known are {', '.join(NAMES)}")


def group_regression(
    n: int,
    n_groups: int,
    group_size: int,
    seed: int = 0,
    rho: float = 0.5,
    active: int = 5,
    snr: float = 5.0,
) -> tuple[Array, Array]:
    """X (n, n_groups * group_size) and y (n,), float64; group i owns ``group_size`` columns in a row.

    >>> X, y = group_regression(50, 6, 2)
    >>> X.shape, y.shape
    ((50, 12), (50,))
    """
    rng = np.random.default_rng(seed)
    X = _correlated(rng, n, n_groups * group_size, rho)
    w = np.zeros((n_groups, group_size))
    for i in rng.choice(n_groups, active, replace=False):
        w[i] = rng.normal(size=group_size)
    return X, _noisy(rng, X @ w.ravel(), snr)


def column_regression(
    n: int, p: int, seed: int = 0, rho: float = 0.5, active: int = 10, snr: float = 10.0
) -> tuple[Array, Array]:
    """X (n, p) with columns of unit length and y (n,), float64.

    >>> X, _ = column_regression(50, 12, active=3)
    >>> bool(np.allclose(np.linalg.norm(X, axis=0), 1))
    True
    """
    rng = np.random.default_rng(seed)
    X = _correlated(rng, n, p, rho)
    X /= np.linalg.norm(X, axis=0)
    w = np.zeros(p)
    w[rng.choice(p, active, replace=False)] = rng.choice([-1.0, 1.0], active)
    return X, _noisy(rng, X @ w, snr)


class L0Terms(NamedTuple):
    """min 1/2 ||Xw - y||^2 + l0 ||w||_0 + l2 ||w||^2 over |w_j| <= M."""

    X: Array
    y: Array
    l0: float
    l2: float
    M: float

    @property
    def scale(self) -> float:
        """Its objective divided by that of the `SparseTrainingProblem`: n / 2."""
        return len(self.y) / 2


def l0_terms(problem: SparseTrainingProblem) -> L0Terms:
    """A problem with entities of one weight, the squared loss and one output in l0 solvers' terms.

    Multiplied by n/2, the objective (1/n) ||Xw - y||^2 + lam sum_i [alpha w_i^2 + (1 - alpha) y_i]
    has l0 = n lam (1 - alpha) / 2 and l2 = n lam alpha / 2.

    Raises ``ValueError`` where the problem is not of that form, or M and u differ between entities.

    >>> terms = l0_terms(problem("S1"))
    >>> round(terms.l0, 12), round(terms.l2, 12), terms.M
    (0.06, 0.1, 2.0)
    """
    if not applies(problem):
        raise ValueError(
            f"{problem.name!r} is no l0 problem: that needs entities of one weight with equal M and u, "
            "the squared loss and one output"
        )
    weight = problem.n * problem.lam * float(problem.u[0]) / 2
    order = problem.entities.index[:, 0]
    X, y = problem.X[:, order].numpy(), problem.y[:, 0].numpy()
    return L0Terms(X, y, weight * (1 - problem.alpha), weight * problem.alpha, float(problem.M[0]))


def applies(problem: SparseTrainingProblem) -> bool:
    """Whether `l0_terms` takes the problem."""
    single = problem.convex and max(problem.entities.sizes.tolist()) == 1
    equal = len(problem.M.unique()) == len(problem.u.unique()) == 1
    return single and equal and problem.loss == "squared" and problem.n_outputs == 1


def _correlated(rng: np.random.Generator, n: int, p: int, rho: float) -> Array:
    """n draws of p normal variables with the correlations rho^|i-j|.

    x_0 = z_0 and x_j = rho x_{j-1} + sqrt(1 - rho^2) z_j, which is Z times the transposed Cholesky
    factor of the correlation matrix, without the matrix.
    """
    from scipy.signal import lfilter  # half a second, which no other use of this module pays

    innovation = np.sqrt(1 - rho**2)
    Z = rng.normal(size=(n, p))
    Z[:, 0] /= innovation
    return lfilter([innovation], [1.0, -rho], Z, axis=1)


def _noisy(rng: np.random.Generator, signal: Array, snr: float) -> Array:
    return signal + rng.normal(size=len(signal)) * signal.std() / np.sqrt(snr)

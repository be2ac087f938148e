"""A linear problem as plain arrays in the order of its entities, for the check and for nothing else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.rounding import UNIT, Array, total

LARGEST = 1e100  # of the numbers of a problem, and its inverse the smallest
NEGLIGIBLE = 1e-250  # a ridge or a price below this is taken for 0


class Data(NamedTuple):
    """The numbers of a problem.

    X : (rows, p), Y : (rows, q), n the divisor of the mean loss
    columns : of X, for each entity, in the order in which records list their weights
    k : the most columns of an entity; records pad to it
    M : (N,) exact; ridge, price : (N,), lambda u alpha and lambda u (1 - alpha), rounded down
    at : for each entity the positions (columns, q) of its weights in the flat vector of the problem
    """

    X: Array
    Y: Array
    n: int
    loss: str
    columns: list[Array]
    k: int
    M: Array
    ridge: Array
    price: Array
    at: list[Array]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, k, q)."""
        return len(self.columns), self.k, self.Y.shape[1]

    @property
    def loss_at_zero(self) -> float:
        """The mean loss of the prediction 0: what tolerances are relative to."""
        if self.loss == "squared":
            return total(np.square(self.Y))[0] / self.n
        return float(np.log(2.0))


def data_of(problem: SparseTrainingProblem) -> Data:
    """The arrays of a linear problem with squared or logistic loss; ``ValueError`` for others.

    Entities that own single (column, output) cells become columns of X (x) I_q, as records have them.
    """
    if problem.net is not None or problem.loss not in ("squared", "logistic"):
        raise ValueError(
            f"the check takes linear models with squared or logistic loss, not {problem.name!r}"
        )
    X, Y = problem.X.numpy(), problem.y.numpy()
    groups, q = problem.entities.groups, problem.y.shape[1]
    whole = [sorted({j // q for j in group}) for group in groups]
    if all(len(owned) * q == len(group) for owned, group in zip(whole, groups, strict=True)):
        columns = [np.array(owned, dtype=np.int64) for owned in whole]
        at = [own[:, None] * q + np.arange(q) for own in columns]
    else:
        X, Y = np.kron(X, np.eye(q)), Y.reshape(-1, 1)
        columns = [np.array(group, dtype=np.int64) for group in groups]
        at = [own[:, None] for own in columns]
    weight = problem.lam * problem.u.numpy()
    for name, values in (("X", X), ("y", Y), ("M", problem.M.numpy()), ("lambda u", weight)):
        _check_size(name, values)
    down = 1 - 4 * UNIT
    return Data(
        np.ascontiguousarray(X), np.ascontiguousarray(Y), problem.n, problem.loss, columns,
        max(map(len, columns)), problem.M.numpy(), _rounded_down(weight * problem.alpha * down),
        _rounded_down(weight * (1 - problem.alpha) * down), at,
    )  # fmt: skip


def _check_size(name: str, values: Array) -> None:
    """Float64 squares these numbers and adds the squares, without overflow or underflow."""
    sizes = np.abs(values[values != 0])
    if sizes.size and not (sizes.min() >= 1 / LARGEST and sizes.max() <= LARGEST):
        wrong = sizes.max() if sizes.max() > LARGEST else sizes.min()
        raise ValueError(
            f"{name} holds a number of size {wrong:g}: between {1 / LARGEST:g} and {LARGEST:g} the "
            "arithmetic of a proof is safe; choose other units"
        )


def _rounded_down(values: Array) -> Array:
    """Nothing in the place of what is so small that float64 no longer rounds it by a share of itself."""
    return np.where(values < NEGLIGIBLE, 0.0, values)

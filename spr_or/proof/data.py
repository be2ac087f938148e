"""A linear problem as plain arrays in the order of its entities, for the check and for nothing else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.rounding import UNIT, Array

LOSSES = ("squared", "logistic", "poisson")
LARGEST = 1e100  # of the numbers of a problem, and its inverse the smallest
NEGLIGIBLE = 1e-250  # a ridge or a price below this is taken for 0


class Data(NamedTuple):
    """The numbers of a problem.

    X : (rows, p), Y : (rows, q), n the divisor of the mean loss
    columns : of X, for each entity, in the order in which records list their weights
    k : the most columns of an entity; records pad to it
    M : (N,) exact; ridge, price : (N,), lambda u alpha and lambda u (1 - alpha), rounded down
    at : for each entity the positions (columns, q) of its weights in the flat vector of the problem
    priced : how many entities are penalised; behind them stands each free column as one without ridge and
        price, whose indicator is 1
    must : (N,) bool, the entities whose indicator is 1 in every solution
    most : the largest number of penalised entities, or None
    needs : (R, 2), pairs (i, p): entity i only together with entity p
    forbidden : (F, N) bool, supports that do not count as solutions
    signed : (p,) bool, the columns of X whose weights are not negative
    size : (rows, 1), the weights of the samples, or None where all are 1
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
    priced: int
    must: NDArray[np.bool_]
    most: int | None
    needs: NDArray[np.int64]
    forbidden: NDArray[np.bool_]
    signed: NDArray[np.bool_]
    size: Array | None

    @property
    def plain(self) -> bool:
        """Whether there are no free columns, rules, signs and weights of samples."""
        asked = bool(self.must.any() or self.signed.any() or len(self.needs) + len(self.forbidden))
        return not asked and self.most is None and self.size is None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, k, q)."""
        return len(self.columns), self.k, self.Y.shape[1]


def data_of(problem: SparseTrainingProblem) -> Data:
    """The arrays of a linear problem with one of `LOSSES`; ``ValueError`` for others.

    Entities that own single (column, output) cells become columns of X (x) I_q, as records have them.
    """
    if problem.net is not None or problem.loss not in LOSSES:
        raise ValueError(
            f"the check takes linear models with {', '.join(LOSSES)} loss, not {problem.name!r}"
        )
    X, Y = problem.X.numpy(), problem.y.numpy()
    groups, q = problem.entities.groups, problem.y.shape[1]
    signed = np.zeros(X.shape[1], dtype=bool)
    if problem.nonnegative is not None:
        signed = problem.nonnegative.numpy()
    loose = sorted({j // q for j in problem.entities.free.tolist()})
    whole = [sorted({j // q for j in group}) for group in groups]
    if all(len(owned) * q == len(group) for owned, group in zip(whole, groups, strict=True)):
        columns = [np.array(owned, dtype=np.int64) for owned in [*whole, *([j] for j in loose)]]
        at = [own[:, None] * q + np.arange(q) for own in columns]
    else:
        X, Y = np.kron(X, np.eye(q)), Y.reshape(-1, 1)
        cells = [*groups, *([j * q + o] for j in loose for o in range(q))]
        columns = [np.array(group, dtype=np.int64) for group in cells]
        at = [own[:, None] for own in columns]
        signed = signed.repeat(q)
    weight = problem.lam * problem.u.numpy()
    for name, values in (("X", X), ("y", Y), ("M", problem.M.numpy()), ("lambda u", weight)):
        _check_size(name, values)
    _check_size("M_free", np.array([problem.M_free]))
    if problem.sample_weight is not None:
        _check_size("sample_weight", problem.sample_weight.numpy())
    down = 1 - 4 * UNIT
    count, extra = len(groups), len(columns) - len(groups)
    nothing = np.zeros(extra)
    ridge = _rounded_down(weight * problem.alpha * down)
    price = _rounded_down(weight * (1 - problem.alpha) * down)
    rules = problem.rules
    must = np.ones(count + extra, dtype=bool)
    must[:count] = False if rules is None else rules.required.numpy()
    size = None if problem.sample_weight is None else problem.sample_weight.numpy()[:, None]
    return Data(
        np.ascontiguousarray(X), np.ascontiguousarray(Y), problem.n, problem.loss, columns,
        max(map(len, columns)), np.concatenate([problem.M.numpy(), nothing + problem.M_free]),
        np.concatenate([ridge, nothing]), np.concatenate([price, nothing]), at, count, must,
        None if rules is None else rules.most,
        np.zeros((0, 2), np.int64) if rules is None else rules.needs.numpy(),
        np.zeros((0, count), bool) if rules is None else rules.forbidden.numpy(), signed, size,
    )  # fmt: skip


def _check_size(name: str, values: Array) -> None:
    """Float64 squares these numbers and adds the squares, without overflow or underflow."""
    sizes = np.abs(values)
    largest = sizes.max(initial=0.0)
    smallest = sizes.min(initial=LARGEST, where=sizes > 0)
    if not (smallest >= 1 / LARGEST and largest <= LARGEST):
        wrong = largest if largest > LARGEST else smallest
        raise ValueError(
            f"{name} holds a number of size {wrong:g}: between {1 / LARGEST:g} and {LARGEST:g} the "
            "arithmetic of a proof is safe; choose other units"
        )


def _rounded_down(values: Array) -> Array:
    """Nothing in the place of what is so small that float64 no longer rounds it by a share of itself."""
    return np.where(values < NEGLIGIBLE, 0.0, values)

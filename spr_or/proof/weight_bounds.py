r"""What proves an M: bounds on the weights of every optimum of the problem without bounds.

With U the value of any solution (the *incumbent*), F(w) = loss + sum_i r_i ||w^i||^2, r_i = lambda u_i alpha,
p_i = lambda u_i (1 - alpha), and w* optimal with w*^i not zero:

0. F(w*) <= U - p_i, since w* pays for entity i.
1. Any loss that is not negative, alpha > 0: |w*_j| <= sqrt((U - p_i) / r_i).
2. Squared loss, Q = X'X/n + diag(r), W^ the minimum of F, s = F(0) - F(W^).  F is its minimum
   plus ||w - W^||_Q^2, and w*, the minimum over its own support, lies on the sphere with diameter
   from 0 to W^ (Thales), so that

   .. math:: |w^*_j| \le \min\Bigl\{ |\hat w_j| + \sqrt{(U - p_i - F(\hat w))\,\kappa_j},\;
                \tfrac12 \bigl(|\hat w_j| + \sqrt{s\,\kappa_j}\bigr)\Bigr\},
                \qquad \kappa_j = (Q^{-1})_{jj} .

3. Any *point* with slope nu of the loss and g = X' nu / n, alpha > 0, D_i what the bound of the point's
   tangent becomes when entity i has to be in use and is not bounded:

   .. math:: |w^*_j| \le \frac{|g_j|}{2\,r_i} + \sqrt{\frac{U - D_i}{r_i}} .

4. Logistic and Poisson loss, alpha > 0, an intercept b: |x_m w*| <= R_m = sqrt(U sum_j x_mj^2 / r_j), so
   that b pushes the samples of y = -1 to a loss of at least log(1 + exp(b - R_m)) each, and those of a rate
   y < exp(b - R_m) to at least l(b - R_m).  Where these by themselves cost more than n U, b is too large;
   likewise -b for y = +1, and for y > exp(-b + R_m).

Free columns have r = p = 0.  None of this needs more of w* than its value, but for Thales: w* is the minimum
over a subspace, or over a cone where weights must not be negative, and is orthogonal to W^ - w* in Q.

docs/explanation/derived-m.md has the proofs.  Columns are scaled by powers of two first, which
rounds nothing; columns of zeros stay at weight 0.  Every quantity is enclosed: linear systems by their
residual, the smallest eigenvalue by a verified factorisation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.bounds import phi
from spr_or.proof.check import Stated, objective_of, rule_faults
from spr_or.proof.data import LARGEST, Data, data_of
from spr_or.proof.gradients import pull
from spr_or.proof.losses import conjugate, slope
from spr_or.proof.rounding import SAFE, UNIT, Array, gamma, lengths, positive_definite, total

# Up to here min(n, p) gives a matrix to factorise; above, bounds 1 and 3 have to do.
LARGEST_SYSTEM = 5000
_COLUMNS = 2048
_UP = 1 + 1e-12
_FARTHEST = 700.0  # exp of more leaves float64
_SUPPORTS = 10_000  # that are tried for one that counts

Mask = NDArray[np.bool_]


def weight_bounds(
    problem: SparseTrainingProblem, incumbent: Array, point: Array | None = None
) -> Array:
    """Bounds (N,) on |w^i_j| in every optimum of the linear problem without bounds, and behind them one
    for each free column; see the top.

    Parameters
    ----------
    problem : linear, with a loss that the check takes; its M is not used
    incumbent : weights (P,) of any solution; the better, the tighter the bounds
    point : weights (P,) whose loss has the slope of bound 3, such as the solution of the relaxation;
        None leaves bound 3 out

    With these bounds or larger ones as M the optimal value and the optimal solutions
    are those of the problem without bounds.  Raises ``ValueError`` where no finite bound exists, or weights
    are not finite.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=1)
    >>> bounds = weight_bounds(p, np.array([1.8, 0.0]))  # the optimum is (1.818..., 0)
    >>> bool(bounds[0] > 1.81), bool(bounds[0] < 2.2)
    (True, True)
    """
    if problem.loss != "squared" and problem.alpha == 0:
        raise ValueError(
            f"M auto needs alpha > 0 for the {problem.loss} loss: without a quadratic penalty the weights "
            "of some data grow without end; take an alpha > 0 or give M as a number"
        )
    data = data_of(problem)
    with np.errstate(all="ignore"):
        level = level_of(data, problem, incumbent)
        sizes = [len(own) for own in data.columns]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        order = np.concatenate(data.columns)
        spare = np.maximum(level - data.price, 0.0)[owner]  # U - p_i, for each column
        ridge = data.ridge[owner]
        bounds = np.full((len(order), data.Y.shape[1]), np.inf)
        if problem.alpha > 0:
            plain = np.where(
                ridge > 0, _UP * np.sqrt(spare / np.where(ridge > 0, ridge, 1)), np.inf
            )
            bounds = np.minimum(bounds, plain[:, None])
        bounds = np.minimum(bounds, _intercepts(data, level, order)[:, None])
        if problem.loss == "squared" and min(data.X.shape) <= LARGEST_SYSTEM:
            D = np.empty(data.X.shape[1])
            D[order] = ridge
            bounds = np.minimum(bounds, _ellipsoid_or_none(data, D, order, spare))
        elif problem.alpha == 0:
            raise ValueError(
                f"M auto needs alpha > 0 above {LARGEST_SYSTEM} columns: take an alpha > 0 or give "
                "M as a number"
            )
        if point is not None and problem.alpha > 0:
            box = _largest(bounds, owner)
            bounds = np.minimum(bounds, _from_point(data, point, level, owner, order, box))
        found = _largest(bounds, owner)
    if not np.isfinite(found[: data.priced]).all():
        raise ValueError("M auto found no finite bound: give M as a number")
    if not np.isfinite(found).all():
        raise ValueError(
            "M auto found no finite bound for the weights of free columns: give M and M_free as numbers"
        )
    return found


def _intercepts(data: Data, level: float, order: Array) -> Array:
    """Bound 4 of each column, (columns,): infinite but for a free column that does not vary."""
    found = np.full(len(order), np.inf)
    if data.loss == "squared":
        return found
    inner = order[: sum(len(own) for own in data.columns[: data.priced])]
    owner = np.repeat(np.arange(data.priced), [len(own) for own in data.columns[: data.priced]])
    ridge = data.ridge[owner]
    if not (ridge > 0).all() or len(data.columns) != data.priced + 1:
        return found
    (column,) = data.columns[-1]
    constant = data.X[0, column]
    if constant == 0 or not (data.X[:, column] == constant).all():
        return found
    reach = _UP * np.sqrt(level * (np.square(data.X[:, inner]) / ridge).sum(axis=1))
    size = None if data.size is None else data.size[:, 0]
    found[-1] = (
        _UP * intercept_bound(reach, data.Y, size, data.n * level, data.loss) / abs(constant)
    )
    return found


def intercept_bound(
    reach: Array,
    y: Array,
    size: Array | None = None,
    level: float | None = None,
    loss: str = "logistic",
) -> float:
    """A bound on the intercept b of every optimum where |x_m w| <= ``reach`` (n,).

    ``y`` (n, 1) are the targets, ``size`` (n,) the weights of the samples; ``level`` is a sum of losses that
    the optimum does not pass, by default that of the prediction 0.  ``loss`` is "logistic" or "poisson".
    Infinite where one class is missing, or every target is 0.

    >>> bound = intercept_bound(np.array([1.0, 1.0]), np.array([[1.0], [-1.0]]))
    >>> bound > 1.0, bound < 3.0
    (True, True)
    """
    weight = np.ones(len(y)) if size is None else size
    cost = _logistic_cost if loss == "logistic" else _poisson_cost
    if level is None:
        least, _ = cost(y[:, 0], np.zeros(len(y)), 0.0)
        level = float((least * weight).sum()) * _UP
    return max(_largest_shift(cost, y[:, 0], reach, weight, level, side) for side in (-1.0, 1.0))


# For targets y (n,), predictions f (n,) and the side to which an intercept pushes them (0: none): what each
# sample costs at least where it is pushed as far as f or farther, and what rounding can put that off.
_Cost = Callable[[Array, Array, float], tuple[Array, Array]]


def _logistic_cost(y: Array, f: Array, side: float) -> tuple[Array, Array]:
    cost = np.logaddexp(0.0, -y * f) * (y * side <= 0)
    return cost, 1e-12 * cost


def _poisson_cost(y: Array, f: Array, side: float) -> tuple[Array, Array]:
    """It grows away from f = log y, and is nothing where f has not passed that."""
    with np.errstate(all="ignore"):
        best, f = np.log(y), np.minimum(f, _FARTHEST)
        least = np.where(y > 0, y * best - y, 0.0)
        passed = side * (f - best) > 0 if side else np.ones(len(y), dtype=bool)
        parts = np.exp(f) + np.abs(y * f) + np.abs(least) + y
        cost = np.maximum(np.exp(f) - y * f + least, 0.0)
    return np.where(passed, cost, 0.0), np.where(passed, 1e-14 * parts + 1e-12 * cost, 0.0)


def _largest_shift(
    cost: _Cost, y: Array, reach: Array, weight: Array, level: float, side: float
) -> float:
    """The least b found from which on an intercept of ``side`` times b costs more than the level."""

    def passed(b: float) -> bool:
        value, error = cost(y, side * (b - reach), side)
        found = float((weight * (value - error)).sum())
        return bool(found * (1 - 1e-12 * len(reach)) > level)

    low, high = 0.0, 1.0
    while not passed(high):
        high *= 2
        if high > LARGEST:
            return np.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if passed(middle) else (middle, high)
    return high


def level_of(data: Data, problem: SparseTrainingProblem, incumbent: Array) -> float:
    """U: at least the objective of weights (P,) without bounds, entities that are not zero paid; and others,
    at weight zero, where the rules do not let these be a support by themselves.

    Raises ``ValueError`` for weights that are not P finite numbers.
    """
    size = sum(at.size for at in data.at)
    if incumbent.shape != (size,) or not np.isfinite(incumbent).all():
        raise ValueError(f"the incumbent is not {size} finite numbers")
    own = data.at[: data.priced]
    used = np.array([float(np.any(incumbent[at] != 0)) for at in own])
    used = np.maximum(used, data.must[: data.priced])
    used = _counting(data, used == 1).astype(float)
    for at, columns in zip(data.at, data.columns, strict=True):
        if (incumbent[at][data.signed[columns]] < 0).any():
            raise ValueError("the incumbent is no solution: a weight must not be negative and is")
    value, error = objective_of(data, problem, Stated(incumbent, used, 0.0, 0.0, []))
    if not np.isfinite(value + error):
        raise ValueError("the incumbent has no finite objective")
    return value + error


def _counting(data: Data, used: Mask) -> Mask:
    """The support ``used`` (N,) with what it needs, and where that one is forbidden, with the cheapest
    entities that make it one that counts; ``ValueError`` where there is none such."""
    used = _with_needs(data, used)
    faults = rule_faults(data, used)
    if not faults:
        return used
    cheapest = sorted(np.flatnonzero(~used).tolist(), key=lambda i: float(data.price[i]))
    larger = itertools.chain.from_iterable(
        itertools.combinations(cheapest, count) for count in range(1, len(cheapest) + 1)
    )
    for more in itertools.islice(larger, _SUPPORTS if len(data.forbidden) else 0):
        other = used.copy()
        other[list(more)] = True
        other = _with_needs(data, other)
        if not rule_faults(data, other):
            return other
    raise ValueError(f"the incumbent is no solution: {faults[0]}")


def _with_needs(data: Data, used: Mask) -> Mask:
    """The support with all entities that its own need; a copy."""
    closed = used.copy()
    while True:
        lacking = [p for i, p in data.needs.tolist() if closed[i] and not closed[p]]
        if not lacking:
            return closed
        closed[lacking] = True


def _largest(bounds: Array, owner: Array) -> Array:
    """The largest bound of each entity, (N,); 0 for one that no optimum uses."""
    found = np.zeros(int(owner[-1]) + 1)
    np.maximum.at(found, owner, bounds.max(axis=1))
    return found


def _from_point(
    data: Data, point: Array, level: float, owner: Array, order: Array, box: Array
) -> Array:
    """Bound 3, (columns, q); ``box`` (N,) bounds the weights of the other entities."""
    if point.shape != (sum(at.size for at in data.at),) or not np.isfinite(point).all():
        raise ValueError("the point is not as many finite numbers as there are weights")
    q = data.Y.shape[1]
    W = np.concatenate([point[at].reshape(-1, q) for at in data.at])
    nu = slope(data, data.X[:, order] @ W)
    g = pull(data, nu, lengths(data.X))[order]
    ridge = data.ridge[owner, None]
    gain = np.bincount(owner, phi(g, ridge, box[owner, None]).sum(axis=1), len(data.columns))
    taken = np.maximum(gain * (1 + gamma(data.k * q + 8)) - data.price, 0.0)
    paid, error = total(taken)
    others = conjugate(data, nu) - paid - SAFE * error + taken * (1 - 8 * UNIT)
    penalised = data.ridge > 0
    safe = np.where(penalised, data.ridge, 1.0)
    alone = np.bincount(owner, np.square(g).sum(axis=1), len(data.columns)) / (4 * safe)
    slack = level - others - data.price + alone
    slack += 1e-13 * (abs(level) + np.abs(others) + data.price + alone)
    root = np.sqrt(np.maximum(slack, 0.0) / safe)[owner, None]
    found = np.asarray(_UP * (g / (2 * safe[owner, None]) + root))
    return np.where(penalised[owner, None], found, np.inf)


class _Inverse(NamedTuple):
    """Of Q = X'X/n + diag(D): upper bounds of diag(Q^-1) (p,), W^ = Q^-1 X'Y/n (p, q) about, and
    a proven lower bound of the smallest eigenvalue."""

    diagonal: Array
    solution: Array
    smallest: float


def _ellipsoid_or_none(data: Data, D: Array, order: Array, spare: Array) -> Array:
    """Bound 2, or infinity where float64 cannot factorise its matrix and bound 1 has to do."""
    try:
        return _ellipsoid(data, D, order, spare)
    except np.linalg.LinAlgError:
        if not (D > 0).all():
            raise _dependent() from None
        return np.full((len(order), data.Y.shape[1]), np.inf)


def _ellipsoid(data: Data, D: Array, order: Array, spare: Array) -> Array:
    """Bound 2, (columns, q) in entity order."""
    Y, n = data.Y, data.n
    rows, p = data.X.shape
    nothing = np.asarray(~data.X.any(axis=0))
    length = np.sqrt(np.square(data.X).sum(axis=0) / n + D)
    scale = np.exp2(-np.round(np.log2(np.where(length > 0, length, 1.0))))
    X = data.X * scale  # exact, as is D scale^2
    D = np.where(nothing & (D == 0), 1.0, D * np.square(scale))
    by_columns = p <= rows or not (D > 0).all()
    inverse = _by_columns(X, Y, n, D) if by_columns else _by_samples(X, Y, n, D)
    W, g = inverse.solution, gamma(rows + p + 20)
    # F(W), and half its gradient, which would be 0 at W^ itself; with what rounding can do to them.
    residual, size = X @ W - Y, np.abs(X) @ np.abs(W) + np.abs(Y)
    half = np.abs(X.T @ residual / n + D[:, None] * W)
    half += 2 * g * (np.abs(X).T @ size / n + D[:, None] * np.abs(W))
    # ||W - W^||_Q^2 = <half, Q^-1 half> for each output, (q,)
    off = np.square(half).sum(axis=0) / inverse.smallest
    if (D > 0).all():
        off = np.minimum(off, (np.square(half) / D[:, None]).sum(axis=0))
    off = off * SAFE
    misfit = np.square(np.maximum(np.abs(residual) - 2 * g * size, 0.0)).sum() / n
    at_W = float(misfit + (D[:, None] * np.square(W)).sum()) * (1 - 2 * g)
    floor = at_W - float(off.sum())
    zero = float(np.square(Y).sum() / n) * (1 + 2 * g)
    kappa = inverse.diagonal[order, None]
    centre = np.abs(W[order]) + np.sqrt(off * kappa)
    ball = centre + np.sqrt(np.maximum(spare - floor, 0.0)[:, None] * kappa)
    thales = (centre + np.sqrt(max(0.0, zero - floor) * kappa)) / 2
    bounds = _UP * np.minimum(ball, thales) * scale[order, None]
    return np.where(nothing[order, None], 0.0, bounds)


def _by_columns(X: Array, Y: Array, n: int, D: Array) -> _Inverse:
    """Through the p x p matrix Q.  With V about Q^-1 and the residual r = e_j - Q v of its column v,
    e_j'Q^-1 e_j = v_j + v'r + r'Q^-1 r."""
    rows, count = X.shape
    places = np.arange(count)
    Q = X.T @ X / n
    Q = np.tril(Q) + np.tril(Q, -1).T
    Q[places, places] += D
    g, trace = gamma(rows + count + 20), float(np.diagonal(Q).sum())
    try:
        V, solution = np.linalg.inv(Q), np.linalg.solve(Q, X.T @ Y / n)
        eigenvalue = 0.5 * float(np.linalg.eigvalsh(Q)[0])
    except np.linalg.LinAlgError:
        raise _dependent() from None
    # The norm of what rounding did to Q is at most g ||(|X|'|X|)/n|| <= g trace(Q).
    smallest = float(D.min())
    trial = np.full(count, eigenvalue + 2 * g * trace)
    if eigenvalue > smallest and positive_definite(Q, trial):
        smallest = eigenvalue
    if not smallest > 0 or not np.isfinite(V).all():
        raise _dependent()
    residual = -(Q @ V)
    residual[places, places] += 1
    size = lengths(V)
    r = lengths(residual) + SAFE * 3 * g * trace * size
    diagonal = np.diagonal(V) + SAFE * (size * r + np.square(r) / smallest)
    return _Inverse(diagonal, solution, smallest)


def _by_samples(X: Array, Y: Array, n: int, D: Array) -> _Inverse:
    """Through the matrix T = I + A A' of the samples, A = X (nD)^-1/2 with columns a_j (Woodbury).

    (Q^-1)_jj = (1 - a_j'T^-1 a_j) / D_j, and a'T^-1 a >= 2 a'z - z'T z for any z.
    """
    if not (D > 0).all():
        raise _dependent()
    rows, count = X.shape
    scale = 1 / np.sqrt(n * D)
    T = np.eye(rows)
    blocks = [slice(start, start + _COLUMNS) for start in range(0, count, _COLUMNS)]
    for block in blocks:
        A = X[:, block] * scale[block]
        T += A @ A.T
    g, trace = gamma(rows + count + 20), float(np.trace(T))
    target = np.linalg.solve(T, Y) / n
    diagonal, solution = np.empty(count), np.empty((count, Y.shape[1]))
    for block in blocks:
        A = X[:, block] * scale[block]
        Z = np.linalg.solve(T, A)
        a, z = lengths(A), lengths(Z)
        product = 2 * (A * Z).sum(axis=0) - (Z * (T @ Z)).sum(axis=0)
        product -= 2 * g * (2 * a * z + 2 * trace * np.square(z))
        diagonal[block] = (1 - product) / D[block] * (1 + 8 * UNIT)
        solution[block] = X[:, block].T @ target / D[block, None]
    return _Inverse(np.minimum(diagonal, (1 + 8 * UNIT) / D), solution, float(D.min()))


def _dependent() -> ValueError:
    return ValueError(
        "M auto found no finite bound: columns without a ridge (with alpha = 0, and free ones) must be "
        "linearly independent, and these are not (to rounding); take an alpha > 0, remove columns or "
        "penalise them, or give M as a number where that can be given"
    )

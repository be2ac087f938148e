r"""The perspective reformulation by outer approximation: linear programs, cuts, and HiGHS.

Every convex term is replaced by its tangents, added where the current solution violates the term:

* the perspective, weight by weight since ||w||^2 / y = sum_j w_j^2 / y:
  t_j >= 2 s w_j - s^2 y with the slope s = w_j / y of the point that is cut off;
* the loss, piece by piece: eta_e >= l_e(g) + l_e'(g) (g_e - g).  For the logistic and the softmax
  loss a piece is a sample and g_e its predictions; for the squared loss the singular directions of
  the data leave at most P squares.  The absolute and the hinge loss are linear programs already.

First the relaxation is solved this way.  Then the program with binary y is solved to optimality, the
incumbent's support is trained exactly (`fixed_support.fit`) and tangents there are added, until the bound of
HiGHS and the incumbent meet (Duran and Grossmann, Math. Programming 36, 1986): with the tangents of a
support's optimum no solution on that support is worth less than it, so every round visits another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spr_or.formulations import perspective
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers import fixed_support
from spr_or.solvers.certificate import Certificate, Solved, certify, feasible
from spr_or.solvers.highs_thread import run_highs
from spr_or.solvers.linear_data import Array, LinearData, linear_data, margin_split
from spr_or.solvers.time_limit import TimeLimit

# HiGHS accepts no tolerance below 1e-10; its default of 1e-7 would be visible in the comparisons.
_FEASIBILITY = 1e-9
# HiGHS ignores smaller coefficients; `_Master._row` keeps a cut valid without them.
_TINY = 1e-9
# Tangents whose terms together violate less than this share of the requested gap are not added.
_NEGLIGIBLE = 0.1
# Rounds without a smaller gap after which the linear program counts as solved.
_PATIENCE = 60
# Of the supports one flip away from a visited one, this many get their tangents too.
_NEIGHBOURS = 3
# The incumbent comes from `fixed_support.fit` and the trees are small: HiGHS's searches for a solution, for
# symmetry and for the best branching cost more than they save (a third of the time without them).
_MIP_OPTIONS = {
    "mip_rel_gap": 0.0,
    "mip_heuristic_effort": 0.0,
    "mip_heuristic_run_feasibility_jump": False,
    "mip_heuristic_run_rins": False,
    "mip_heuristic_run_rens": False,
    "mip_heuristic_run_root_reduced_cost": False,
    "mip_detect_symmetry": False,
    "mip_pscost_minreliable": 0,
}


def solve(
    problem: SparseTrainingProblem,
    relaxed: bool = False,
    gap: float = 1e-7,
    time_limit: float | None = None,
) -> Certificate:
    """The optimum of formulation (4) of a linear problem, or of its relaxation, by cuts in HiGHS.

    ``gap`` is relative to max(0.1, |objective|).  When stopped by ``time_limit`` (seconds) or Ctrl-C,
    the certificate holds the incumbent and the bound so far.  The bound is that of HiGHS on the
    outer approximation, proven to its feasibility tolerance of 1e-9.

    Raises ``ValueError`` for a network.

    >>> X = [[1.0, 0.0], [0.0, 1.0]]
    >>> p = SparseTrainingProblem.linear(X, [1, 0], [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> certificate = solve(p)
    >>> certificate.indicators.tolist(), round(certificate.objective, 6), certificate.status
    ([1.0, 0.0], 0.095455, 'optimal')
    """
    clock = TimeLimit(time_limit)
    data = linear_data(problem, "cuts")
    progress = _Progress(problem, integer=not relaxed, gap=gap)
    try:
        master = _Master(problem, data)
        status, y = _relax(problem, master, progress, clock)
        if not relaxed and not clock.spent:
            status = _branch(problem, master, progress, clock, y)
    except KeyboardInterrupt:
        status = "interrupted"
    return certify(
        problem,
        Solved(
            "perspective", "relaxed" if relaxed else "integer", "highs-cuts", version("highspy")
        ),
        status=status,
        bound=progress.bound,
        seconds=clock.seconds,
        weights=progress.theta,
        indicators=progress.y,
    )


class _Progress:
    """The incumbent and the bound; they stay readable when the solve is interrupted."""

    def __init__(self, problem: SparseTrainingProblem, integer: bool, gap: float) -> None:
        self._problem, self.integer, self._gap = problem, integer, gap
        self.theta = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
        self.y = torch.zeros(len(problem.entities), dtype=torch.float64)
        # w = 0, y = 0 satisfies every constraint, and no loss is negative.
        self.value, self.bound = _value(problem, self.theta, self.y), 0.0

    def offer(self, theta: Tensor, y: Tensor) -> None:
        """Take a feasible point as the incumbent if it is better."""
        value = _value(self._problem, theta, y)
        if value < self.value:
            self.theta, self.y, self.value = theta, y, value

    def raise_bound(self, bound: float) -> None:
        self.bound = max(self.bound, bound)

    @property
    def tolerance(self) -> float:
        """The absolute gap that is requested."""
        return self._gap * max(0.1, abs(self.value))

    def closed(self, value: float) -> bool:
        return value - self.bound <= self.tolerance


def _value(problem: SparseTrainingProblem, theta: Tensor, y: Tensor) -> float:
    penalty = perspective.penalty(problem.entities.rows(theta), y, problem.alpha)
    return float(problem.objective(theta, penalty))


def _relax(
    problem: SparseTrainingProblem, master: _Master, progress: _Progress, clock: TimeLimit
) -> tuple[str, Tensor]:
    """Cut until the linear program's solution is as good as its bound; returns a status and y.

    When HiGHS's tolerances let neither side move any more, the certificate judges what is left.
    """
    y, least, stalled = progress.y, math.inf, 0
    while stalled < _PATIENCE:
        if clock.spent or master.run(clock) != "Optimal":
            return "time_limit" if clock.spent else "inexact", y
        progress.raise_bound(master.highs.getInfo().objective_function_value)
        theta, y = feasible(problem, *master.point(), integer=False)
        if not progress.integer:
            progress.offer(theta, y)
        value = _value(problem, theta, y) if progress.integer else progress.value
        if progress.closed(value) or not master.cut(theta, y, progress.tolerance):
            break
        left = value - progress.bound
        stalled = 0 if left < 0.99 * least else stalled + 1
        least = min(left, least)
    master.drop_slack_cuts()
    return "optimal", y


def _branch(
    problem: SparseTrainingProblem,
    master: _Master,
    progress: _Progress,
    clock: TimeLimit,
    relaxed_y: Tensor,
) -> str:
    """Binary indicators from here on, one mixed-integer program in each round; returns a status."""
    for y in _nested_supports(relaxed_y):
        if clock.spent:
            return "time_limit"
        best = fixed_support.fit(problem, y).weights
        progress.offer(best, y)
        master.cut(best, y)
    value = math.inf
    while progress.value < value and not clock.spent:  # downhill by single flips
        value = progress.value
        _cut_neighbours(problem, master, progress, progress.y)
    master.restrict_to_binary(progress.tolerance)
    visited: set[tuple[float, ...]] = set()
    while not clock.spent:
        try:
            solved = master.run(clock)
        finally:  # a bound proven before the limit or Ctrl-C counts
            progress.raise_bound(master.highs.getInfo().mip_dual_bound)
        if solved != "Optimal":
            break
        theta, y = master.point()
        y = y.round()
        best = fixed_support.fit(problem, y).weights
        progress.offer(best, y)
        # Back at a support whose tangents it has, HiGHS is at its tolerances: the certificate judges.
        if progress.closed(progress.value) or tuple(y.tolist()) in visited:
            return "optimal"
        visited.add(tuple(y.tolist()))
        master.cut(best, y)
        master.cut(theta, y, progress.tolerance)
        _cut_neighbours(problem, master, progress, y)
    return "time_limit" if clock.spent else "inexact"


def _nested_supports(y: Tensor) -> list[Tensor]:
    """Supports {i : y_i >= threshold} of relaxed indicators, for every threshold that differs."""
    thresholds = y[y > 0].unique()
    return [(y >= threshold).to(y) for threshold in thresholds]


def _cut_neighbours(
    problem: SparseTrainingProblem, master: _Master, progress: _Progress, y: Tensor
) -> None:
    """Train the supports one flip away from y; the tangents of the best ones keep HiGHS off them."""
    fits = []
    for i in range(len(y)):
        flipped = y.clone()
        flipped[i] = 1 - y[i]
        weights, value, _ = fixed_support.fit(problem, flipped)
        progress.offer(weights, flipped)
        fits.append((value, i, weights, flipped))
    for *_, weights, flipped in sorted(fits, key=lambda fit: fit[:2])[:_NEIGHBOURS]:
        master.cut(weights, flipped)


class _Master:
    """The linear (later mixed-integer) program in HiGHS and the cuts it has been given.

    Columns: theta / M (P), y (N), ridge t (P), then those of the loss.  Scaled like this all columns
    with a bound lie in [-1, 1] and the others count in units of the objective, so that HiGHS's
    absolute tolerances mean the same on every problem.
    """

    def __init__(self, problem: SparseTrainingProblem, data: LinearData) -> None:
        import highspy

        self._data = data
        self.highs = highspy.Highs()
        self.highs.silent()
        for tolerance in ("primal", "dual", "mip"):
            self.highs.setOptionValue(f"{tolerance}_feasibility_tolerance", _FEASIBILITY)
        weights = len(data.M)
        self._theta = self._columns(np.zeros(weights), lower=-1.0, upper=1.0)
        self._y = self._columns(data.cost, lower=0.0, upper=1.0)
        self._t = self._columns(np.ones(weights))
        for j in range(weights):
            for sign in (1.0, -1.0):
                where = np.array([self._theta[j], self._y[data.owner[j]]])
                self._row(where, np.array([sign, -1.0]), upper=0.0)
        self._loss = None if LOSSES[problem.loss].curvature is None else _pieces(problem, data)
        if self._loss is None:
            self._linear_loss(problem)
        else:
            self._smooth_loss(self._loss)
        self._first_cut = self.highs.getNumRow()

    def _columns(
        self, cost: Array, lower: float = 0.0, upper: float = math.inf
    ) -> NDArray[np.int64]:
        """Add a column for each cost; returns their numbers."""
        first, count = self.highs.getNumCol(), len(cost)
        empty = np.zeros(0, dtype=np.int32)
        self.highs.addCols(
            count, cost, np.full(count, lower), np.full(count, upper),
            0, np.zeros(count, np.int32), empty, np.zeros(0),
        )  # fmt: skip
        return np.arange(first, first + count)

    def _row(
        self,
        columns: NDArray[np.int64],
        coefficients: Array,
        lower: float = -math.inf,
        upper: float = math.inf,
    ) -> None:
        """Add lower <= coefficients . columns <= upper, without its tiny coefficients.

        The columns of such coefficients lie in [-1, 1]. Both sides are relaxed by the most that the
        dropped terms can contribute, so that the row still holds wherever the full row held.
        """
        keep = np.abs(coefficients) >= _TINY
        slack = float(np.abs(coefficients[~keep]).sum())
        self.highs.addRow(
            lower - slack, upper + slack, int(keep.sum()),
            columns[keep].astype(np.int32), coefficients[keep],
        )  # fmt: skip

    def _linear_loss(self, problem: SparseTrainingProblem) -> None:
        B, m, negative = margin_split(problem, self._data)
        B, m = B * self._data.M / problem.n, m / problem.n
        above = self._columns(np.ones(len(m)))
        below = self._columns(np.full(len(m), negative))
        for row in range(len(m)):
            where = np.concatenate([self._theta, [above[row], below[row]]])
            self._row(where, np.concatenate([B[row], [1.0, -1.0]]), m[row], m[row])

    def _smooth_loss(self, loss: _Pieces) -> None:
        self._g = self._columns(np.zeros(len(loss.G)), lower=-1.0, upper=1.0)
        self._eta = self._columns(np.ones(len(loss.G) // loss.width))
        self.highs.changeObjectiveOffset(loss.offset)
        for row, g in enumerate(self._g):
            where = np.concatenate([self._theta, [g]])
            scaled = loss.G[row] * self._data.M / loss.reach[row]
            self._row(where, np.concatenate([scaled, [-1.0]]), 0.0, 0.0)

    def run(self, clock: TimeLimit) -> str:
        """HiGHS's status; a failure for numerical reasons gets a second try without the old basis."""
        status = run_highs(self.highs, clock)
        if status != "Optimal" and not clock.spent:
            self.highs.clearSolver()
            status = run_highs(self.highs, clock)
        return status

    def _solution(self) -> Array:
        return np.array(self.highs.getSolution().col_value)

    def point(self) -> tuple[Tensor, Tensor]:
        """theta (P,) and y (N,) of HiGHS's current solution."""
        x = self._solution()
        return torch.from_numpy(x[self._theta] * self._data.M), torch.from_numpy(x[self._y])

    def drop_slack_cuts(self) -> None:
        """Forget the cuts without a multiplier: the current solution stays optimal, programs shrink."""
        duals = np.array(self.highs.getSolution().row_dual)
        slack = np.flatnonzero(duals == 0)
        slack = slack[slack >= self._first_cut].astype(np.int32)
        self.highs.deleteRows(len(slack), slack)

    def restrict_to_binary(self, tolerance: float) -> None:
        import highspy

        kind = np.full(len(self._y), highspy.HighsVarType.kInteger)
        self.highs.changeColsIntegrality(len(kind), self._y.astype(np.int32), kind)
        for name, value in _MIP_OPTIONS.items():
            self.highs.setOptionValue(name, value)
        self.highs.setOptionValue("mip_abs_gap", tolerance / 10)

    def cut(self, theta: Tensor, y: Tensor, tolerance: float | None = None) -> int:
        """Add the tangents at (theta, y); returns their number.

        With a ``tolerance``, only those that the current solution violates are added, and only while
        their violations can add up to more than a share of it.
        """
        x = None
        negligible = -math.inf
        if tolerance is not None:
            x = self._solution()
            negligible = _NEGLIGIBLE * tolerance
        return self._cut_perspective(theta.numpy(), y.numpy(), x, negligible) + self._cut_loss(
            theta.numpy(), x, negligible
        )

    def _cut_perspective(self, theta: Array, y: Array, x: Array | None, negligible: float) -> int:
        data = self._data
        raised = y[data.owner]
        s = np.divide(theta, raised * data.M, out=np.zeros_like(theta), where=raised > 0)
        s = np.clip(s, -1, 1)
        unit = data.ridge * data.M**2
        chosen = unit * s**2 > _TINY
        if x is not None:
            says = unit * (2 * s * x[self._theta] - s**2 * x[self._y][data.owner])
            chosen &= says - x[self._t] > negligible / len(s)
        for j in np.flatnonzero(chosen):
            where = np.array([self._t[j], self._theta[j], self._y[data.owner[j]]])
            self._row(where, np.array([1.0, -2 * unit[j] * s[j], unit[j] * s[j] ** 2]), lower=0.0)
        return int(chosen.sum())

    def _cut_loss(self, theta: Array, x: Array | None, negligible: float) -> int:
        loss = self._loss
        if loss is None:
            return 0
        g = (loss.G @ theta).reshape(-1, loss.width)
        value, slope = loss.tangent(g)
        constant = loss.weight * (value - (slope * g).sum(-1))
        slope = loss.weight * slope * loss.reach.reshape(-1, loss.width)
        columns = self._g.reshape(-1, loss.width)
        chosen = np.ones(len(g), dtype=bool)
        if x is not None:
            says = constant + (slope * x[columns]).sum(-1)
            chosen = says - x[self._eta] > negligible / len(g)
        for e in np.flatnonzero(chosen):
            where = np.concatenate([[self._eta[e]], columns[e]])
            self._row(where, np.concatenate([[1.0], -slope[e]]), lower=constant[e])
        return int(chosen.sum())


class _Pieces(NamedTuple):
    """A smooth loss as offset + weight sum_e l_e(g_e), where g = G theta has ``width`` rows for each piece.

    ``tangent`` takes g (E, width) to the values (E,) and slopes (E, width); ``reach`` bounds |G theta|.
    """

    G: Array
    reach: Array
    width: int
    weight: float
    offset: float
    tangent: Callable[[Array], tuple[Array, Array]]


def _pieces(problem: SparseTrainingProblem, data: LinearData) -> _Pieces:
    r"""The squared loss is split along A = U S V':

    ||A theta - y||^2 = ||S V' theta - U' y||^2 + ||y||^2 - ||U' y||^2.
    """
    if problem.loss == "squared":
        U, S, Vt = np.linalg.svd(data.A / math.sqrt(problem.n), full_matrices=False)
        target = data.target / math.sqrt(problem.n)
        c = (U.T @ target)[:, None]
        outside = target - U @ c[:, 0]
        G = S[:, None] * Vt
        return _Pieces(
            G, _reach(G, data), 1, 1.0, float(outside @ outside),
            lambda g: (((g - c) ** 2)[:, 0], 2 * (g - c)),
        )  # fmt: skip
    loss = LOSSES[problem.loss]

    def tangent(g: Array) -> tuple[Array, Array]:
        f = torch.from_numpy(g)
        return loss.value(f, problem.y).numpy(), loss.gradient(f, problem.y).numpy()

    reach = _reach(data.A, data)
    return _Pieces(data.A, reach, problem.n_outputs, 1 / problem.n, 0.0, tangent)


def _reach(G: Array, data: LinearData) -> Array:
    """The largest |G theta| in the box; 1 for a row of zeros."""
    reach = np.abs(G) @ data.M
    return np.where(reach > 0, reach, 1.0)

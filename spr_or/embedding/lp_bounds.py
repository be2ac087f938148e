r"""Tighter bounds by linear programs: the extremes of a form over a relaxation of what stands before it.

The relaxation has all values so far as variables, within their bounds, and for a ReLU a = max(0, z) with
L < 0 < U the triangle

.. math::  a \ge z, \qquad a \ge 0, \qquad a \le \frac{U}{U - L} (z - L),

for one with L >= 0 the row a = z, for a maximum a >= z of each member; every z = A x + b may be off by the
slack of its rounding, so that what torch computes is feasible.

**Safe.**  HiGHS solves within tolerances, so its value is not taken.  For min c x over rows
:math:`r \le R x \le s` and a box, any multipliers y give the bound

.. math::  \sum_i \bigl(y_i^+ r_i - y_i^- s_i\bigr) + \sum_j \min_{l_j \le x_j \le u_j} (c - R^T y)_j x_j

(Neumaier and Shcherbina, Mathematical Programming 99, 2004); it is evaluated here with HiGHS's multipliers
and lowered by its own rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spr_or.embedding.bounds import Bounds, interval_bounds
from spr_or.embedding.feed_forward import Activation, Array, FeedForward, Form
from spr_or.solvers.time_limit import TimeLimit


def lp_bounds(
    network: FeedForward, lower: Array, upper: Array, clock: TimeLimit | None = None
) -> Bounds:
    """Interval bounds, with the rows of each form that matter tightened by two linear programs each.

    Those are the rows of a ReLU that can have either sign, and those of a maximum.  Rows that read nothing
    but inputs are exact already.  When ``clock`` has run out, the rest keep what interval arithmetic gives.

    >>> from spr_or.embedding.reading import read_network
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1), nn.ReLU())
    >>> for tensor, number in ((net[0].weight, 1.0), (net[2].weight, 1.0), (net[2].bias, -1.0)):
    ...     _ = nn.init.constant_(tensor, number)
    >>> _ = net[2].weight.data[0, 1].neg_()  # relu(x) - relu(x) - 1
    >>> box = np.array([-1.0]), np.array([1.0])
    >>> read = read_network(net, (1,))
    >>> for found in (interval_bounds(read, *box), lp_bounds(read, *box)):
    ...     print([round(float(end[0]), 4) for end in found.before[1]])
    [-2.0, 0.0]
    [-1.5, -0.5]
    """
    clock = clock or TimeLimit(None)

    def tighten(k: int, low: Array, high: Array, before: list[Any]) -> tuple[Array, Array]:
        step = network.activations[k]
        L, U = before[k]
        rows = np.flatnonzero(_worth_tightening(step, L, U))
        if not k or clock.spent or not len(rows):
            return L, U
        program = _Relaxation(network, k, low, high, before)
        slack = step.form.slack(np.maximum(abs(low), abs(high)), network.unit)
        L, U = L.copy(), U.copy()
        for i in rows:
            if clock.spent:
                break
            c = step.form.matrix[[i]].toarray()[0]
            L[i] = max(L[i], program.least(c, clock) + step.form.offset[i] - slack[i])
            U[i] = min(U[i], -program.least(-c, clock) + step.form.offset[i] + slack[i])
        return L, U

    return interval_bounds(network, lower, upper, tighten)


def _worth_tightening(step: Activation, L: Array, U: Array) -> Array:
    """Rows that can have either sign, or stand in a maximum; a single value has its bounds already."""
    several = np.diff(step.form.matrix.indptr) > 1
    return several if step.windows is not None else several & (L < 0) & (U > 0)


def least_values(
    network: FeedForward, bounds: Bounds, form: Form, clock: TimeLimit | None = None
) -> Array:
    """What no row of a form of all values falls below, in float64 and in torch: (m,).

    When ``clock`` has run out, the rest get what their intervals give.
    """
    clock = clock or TimeLimit(None)
    program = _Relaxation(
        network, len(network.activations), bounds.lower, bounds.upper, list(bounds.before)
    )
    size = np.maximum(abs(bounds.lower), abs(bounds.upper))
    slack = form.slack(size, network.unit)
    rows = np.zeros((len(form), len(size)))
    rows[:, : form.matrix.shape[1]] = form.matrix.toarray()
    return np.array([program.least(c, clock) for c in rows]) + form.offset - slack


class _Relaxation:
    """The linear program of the activations before step ``k``, kept in HiGHS between objectives."""

    def __init__(
        self, network: FeedForward, k: int, lower: Array, upper: Array, before: list[Any]
    ) -> None:
        import highspy

        count = len(lower)
        self.lower, self.upper = lower, upper
        self.rows, self.low, self.high = _rows(network, k, lower, upper, before)
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = count, self.rows.shape[0]
        model.col_cost_ = np.zeros(count)
        model.col_lower_, model.col_upper_ = lower, upper
        model.row_lower_, model.row_upper_ = self.low, self.high
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = self.rows.indptr
        model.a_matrix_.index_ = self.rows.indices
        model.a_matrix_.value_ = self.rows.data
        self.solver = highspy.Highs()
        self.solver.setOptionValue("output_flag", False)
        self.solver.passModel(model)
        self.columns = np.arange(count, dtype=np.int32)

    def least(self, c: Array, clock: TimeLimit) -> float:
        """A bound from below of c x, by the multipliers at the minimum or where the time ends."""
        y = np.zeros(len(self.low))
        if not clock.spent:
            self.solver.changeColsCost(len(c), self.columns, c)
            # HiGHS counts the time of all its runs.
            self.solver.setOptionValue("time_limit", self.solver.getRunTime() + clock.left())
            self.solver.run()
            found = np.asarray(self.solver.getSolution().row_dual)
            y = found if len(found) == len(y) else y
        # A row without an end on the side of its multiplier gives no bound there.
        y = np.where(np.isinf(np.where(y > 0, self.low, self.high)), 0.0, y)
        ends = np.where(y > 0, self.low, np.where(y < 0, self.high, 0.0))
        left = c - self.rows.T @ y
        corner = np.where(left > 0, self.lower, self.upper)
        size = np.maximum(abs(self.lower), abs(self.upper))
        pulled = abs(self.rows).T @ abs(y)
        total = abs(y) @ abs(ends) + (abs(c) + pulled) @ size
        rounding = 2.0**-52 * (len(c) + 2 * len(y) + 8) * total
        return float(y @ ends + left @ corner - rounding)


def _rows(
    network: FeedForward, k: int, lower: Array, upper: Array, before: list[Any]
) -> tuple[Any, Array, Array]:
    """R and the ends of r <= R x <= s, for the activations before step k."""
    from scipy import sparse

    size = np.maximum(abs(lower), abs(upper))
    count = len(lower)
    parts: list[Any] = []
    lows: list[Array] = []
    highs: list[Array] = []

    def add(own: Any, form: Form, rows: Array, factor: Array, low: Array, high: Array) -> None:
        """Rows x[own] - factor A x between low and high."""
        A = form.matrix[rows].multiply(factor[:, None]).tocsr()
        A = sparse.csr_array((A.data, A.indices, A.indptr), shape=(len(rows), count))
        picks = sparse.csr_array(
            (np.ones(len(rows)), (np.arange(len(rows)), own)), shape=(len(rows), count)
        )
        parts.append((picks - A).tocsr())
        lows.append(low)
        highs.append(high)

    for step, (L, U) in zip(network.activations[:k], before[:k], strict=True):
        form, b = step.form, step.form.offset
        slack = form.slack(size, network.unit)
        if step.windows is not None:
            members = step.windows.tocoo()
            rows = members.col
            above = (b - slack)[rows]
            add(step.first + members.row, form, rows, np.ones(len(rows)), above, above + np.inf)
            continue
        split, active = np.flatnonzero((L < 0) & (U > 0)), np.flatnonzero(L >= 0)
        one = np.ones(len(split))
        above = (b - slack)[split]
        add(step.first + split, form, split, one, above, above + np.inf)
        slope = U[split] / (U[split] - L[split])
        below = slope * (b + slack - L)[split]
        add(step.first + split, form, split, slope, below - np.inf, below)
        one = np.ones(len(active))
        add(step.first + active, form, active, one, (b - slack)[active], (b + slack)[active])
    none = np.zeros(0)
    R = sparse.vstack([sparse.csr_array((0, count)), *parts]).tocsr()
    return R, np.concatenate([none, *lows]), np.concatenate([none, *highs])

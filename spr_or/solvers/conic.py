r"""The continuous relaxation in y as a conic program, by cvxpy and an interior-point solver.

With f = X W the predictions,

.. math::  \min \tfrac1n \sum_m \ell(f_m, y_m) + \lambda \sum_i u_i [\alpha t_i + (1-\alpha) y_i]
           \quad\text{s.t.}\quad |w^i_j| \le M_i y_i,\; 0 \le y_i \le 1,

where the formulations differ only in t_i: perspective has the rotated cone
||w^i||^2 <= t_i y_i, written ||(2 w^i, t_i - y_i)|| <= t_i + y_i; big-M has ||w^i||^2 <= t_i.

The reported bound is computed here and not taken from the solver: the multipliers of f = X W are moved
into the domain of the conjugate loss and put into the Fenchel dual, whose value is a lower bound for
any multipliers.
"""

from __future__ import annotations

import math
import warnings
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.certificate import Certificate, Solved, certify, feasible
from spr_or.solvers.linear_data import linear_data
from spr_or.solvers.time_limit import TimeLimit

FORMULATIONS = ("bigm", "perspective")

# Clarabel reaches these on most problems. Where it does not, the certificate's gap shows it.
_TOLERANCE = 1e-10


class _Model(NamedTuple):
    """A cvxpy problem and the parts of it that are read afterwards."""

    problem: Any
    theta: Any
    y: Any
    link: Any  # f = X W
    cone: Any | None  # the rotated cones, one for each entity
    above: Any  # w <= M y
    below: Any  # -w <= M y


def solve(
    problem: SparseTrainingProblem,
    formulation: str = "perspective",
    time_limit: float | None = None,
    solver: str = "CLARABEL",
) -> Certificate:
    """Solve the relaxation of formulation (1)-(3) or (4) of a linear problem.

    ``solver`` is any conic solver that cvxpy has installed ("CLARABEL", "MOSEK", ...).  When stopped
    by ``time_limit`` (seconds) or Ctrl-C the certificate holds what is proven: w = 0 at worst.
    With alpha = 0 both formulations are one problem; with alpha = 1 the indicator of a zero entity
    costs nothing, and the solver's choice in [0, 1] is returned.

    Raises ``ValueError`` for a network, an unknown formulation and a solver that is not installed.

    >>> X = [[1.0, 0.0], [0.0, 1.0]]
    >>> p = SparseTrainingProblem.linear(X, [1, 0], [[0], [1]], lam=0.1, alpha=0.5, M=2)
    >>> certificate = solve(p)
    >>> certificate.status, round(certificate.objective, 6), certificate.gap < 1e-6
    ('optimal', 0.095, True)
    """
    return _solve(problem, formulation, time_limit, solver)[0]


def solve_with_duals(
    problem: SparseTrainingProblem, time_limit: float | None = None
) -> tuple[Certificate, Tensor]:
    """The perspective relaxation, and the gradient of lambda u z according to its multipliers.

    The second value, rows (N, k_max), comes only from the multipliers of the cones and of
    |w| <= M y: stationarity in w makes it minus the gradient of the loss, and, where z is
    differentiable, lambda u_i z'(w^i).  nan if the solver was stopped.
    """
    certificate, model = _solve(problem, "perspective", time_limit, "CLARABEL")
    nothing = torch.full(problem.entities.index.shape, math.nan, dtype=torch.float64)
    if model is None or model.above.dual_value is None:
        return certificate, nothing
    push = _array(model.above.dual_value) - _array(model.below.dual_value)
    rows = problem.entities.rows(torch.from_numpy(push))
    if model.cone is not None:
        # The multiplier (s, (v, r)) of ||(2 w, t - y)|| <= t + y enters as -<v, 2 w>.
        inner = _array(model.cone.dual_value[1]).reshape(-1, len(problem.entities))
        rows = rows - 2 * torch.from_numpy(inner[:-1].T)
    return certificate, rows.where(_occupied(problem), 0.0)


def bigm_dual_bound(problem: SparseTrainingProblem, nu: Tensor) -> Tensor:
    r"""A lower bound on the big-M relaxation from any nu (n, q), as `dual_bound` is for the other.

    The relaxed penalty alpha ||w||^2 + (1 - alpha) ||w||_inf / M has on the box the conjugate

    .. math::  \max_{0 \le y \le 1} \sum_j \bigl(|s_j| r_j - \alpha r_j^2\bigr) - (1-\alpha) y,
               \qquad r_j = \min(|s_j| / 2\alpha,\, M y),

    concave in y with derivative M sum_j (|s_j| - 2 alpha M y)_+ - (1 - alpha).  Each m gives a root
    for the m largest |s_j|; the root searched for is the largest of these.
    """
    conjugate = LOSSES[problem.loss].conjugate(nu, problem.y).mean(-1)
    scale = (problem.n * problem.lam * problem.u).unsqueeze(-1)
    slope = (problem.entities.rows((problem.X.mT @ nu).flatten()) / scale).abs()
    alpha, M = problem.alpha, problem.M.unsqueeze(-1)
    if alpha == 0:
        y = (M * slope.sum(-1, keepdim=True) > 1).to(slope)
        r = M * y
    else:
        ordered = slope.sort(-1, descending=True).values
        m = torch.arange(1, ordered.shape[-1] + 1)
        roots = (ordered.cumsum(-1) - (1 - alpha) / M) / (2 * alpha * M * m)
        y = roots.amax(-1, keepdim=True).clamp(0, 1)
        r = torch.minimum(slope / (2 * alpha), M * y)
    best = (slope * r - alpha * r * r).sum(-1) - (1 - alpha) * y.squeeze(-1)
    return -conjugate - problem.lam * (problem.u * best).sum()


def _solve(
    problem: SparseTrainingProblem, formulation: str, time_limit: float | None, solver: str
) -> tuple[Certificate, _Model | None]:
    if formulation not in FORMULATIONS:
        raise ValueError(f"formulation must be 'bigm' or 'perspective', got {formulation!r}")
    import cvxpy as cp

    if solver not in cp.installed_solvers():
        raise ValueError(
            f"solver {solver!r} is not installed; cvxpy finds {', '.join(cp.installed_solvers())}"
        )
    clock = TimeLimit(time_limit)
    # w = 0, y = 0 satisfies every constraint: the answer after an early stop.
    theta = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    y = torch.zeros(len(problem.entities), dtype=torch.float64)
    nus, model, status = [], None, "time_limit"
    try:
        model = _build(cp, problem, formulation)
        if not clock.spent:
            solved = _run(cp, model, solver, clock)
            status = {"optimal": "optimal", "user_limit": "time_limit"}.get(solved, "inexact")
        if model.theta.value is not None and model.link.dual_value is not None:
            theta, y = (torch.from_numpy(_array(v.value)) for v in (model.theta, model.y))
            nus.append(-problem.n * torch.from_numpy(_array(model.link.dual_value)))
    except KeyboardInterrupt:
        status, model = "interrupted", None
    theta, y = feasible(problem, theta, y, integer=False)
    bound = _bound(problem, formulation, theta, nus)
    certificate = certify(
        problem,
        Solved(formulation, "relaxed", solver.lower(), _version(solver)),
        status=status,
        bound=bound,
        seconds=clock.seconds,
        weights=theta,
        indicators=y,
    )
    return certificate, model


def _build(cp: Any, problem: SparseTrainingProblem, formulation: str) -> _Model:
    data = linear_data(problem, "conic")
    n, q, alpha = problem.n, problem.n_outputs, problem.alpha
    theta, y = cp.Variable(len(data.M)), cp.Variable(len(problem.entities))
    f = cp.Variable((n, q))
    link = f == problem.X.numpy() @ cp.reshape(theta, (problem.X.shape[1], q), order="C")
    above, below = theta <= cp.multiply(data.M, y[data.owner]), None
    below = -theta <= cp.multiply(data.M, y[data.owner])
    constraints = [link, above, below, y <= 1]
    objective = _loss(cp, problem, f) / n + data.cost @ y
    cone = None
    if alpha > 0 and formulation == "bigm":
        objective += data.ridge @ cp.square(theta)
    elif alpha > 0:
        t = cp.Variable(len(problem.entities))
        padded = cp.hstack([theta, np.zeros(1)])[problem.entities.index.numpy().T.reshape(-1)]
        rows = cp.reshape(padded, problem.entities.index.numpy().T.shape, order="C")
        cone = cp.SOC(t + y, cp.vstack([2 * rows, cp.reshape(t - y, (1, t.size), order="C")]))
        constraints.append(cone)
        objective += (problem.lam * alpha * problem.u.numpy()) @ t
    return _Model(
        cp.Problem(cp.Minimize(objective), constraints), theta, y, link, cone, above, below
    )


def _loss(cp: Any, problem: SparseTrainingProblem, f: Any) -> Any:
    """The sum of the losses over samples as a cvxpy expression of the predictions (n, q)."""
    y = problem.y.numpy()
    if problem.loss == "squared":
        return cp.sum_squares(f - y)
    if problem.loss == "absolute":
        return cp.sum(cp.abs(f - y))
    if problem.loss == "hinge":
        return cp.sum(cp.pos(1 - cp.multiply(y, f)))
    if problem.loss == "logistic":
        return cp.sum(cp.logistic(-cp.multiply(y, f)))
    picked = np.zeros(f.shape)
    picked[np.arange(problem.n), y] = 1
    return cp.sum(cp.log_sum_exp(f, axis=1)) - cp.sum(cp.multiply(picked, f))


def _run(cp: Any, model: _Model, solver: str, clock: TimeLimit) -> str:
    """Solve with tight tolerances; cvxpy's status."""
    options: dict[str, Any] = {}
    if solver == "CLARABEL":
        tight = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
        options = {name: _TOLERANCE for name in tight}
        # "Insufficient progress" is the usual end at tolerances this tight, and a solution.
        options["accept_unknown"] = True
        if math.isfinite(clock.limit):
            options["time_limit"] = max(clock.left(), 1e-3)
    elif solver == "MOSEK":
        gap = "MSK_DPAR_INTPNT_CO_TOL_"
        options["mosek_params"] = {gap + name: _TOLERANCE for name in ("PFEAS", "DFEAS", "REL_GAP")}
        if math.isfinite(clock.limit):
            options["mosek_params"]["MSK_DPAR_OPTIMIZER_MAX_TIME"] = max(clock.left(), 1e-3)
    with warnings.catch_warnings():
        # "Solution may be inaccurate": the certificate measures that itself.
        warnings.simplefilter("ignore", UserWarning)
        try:
            model.problem.solve(solver=solver, **options)
        except cp.SolverError:
            return "solver_error"
    return {"optimal_inaccurate": "optimal"}.get(model.problem.status, model.problem.status)


def _bound(
    problem: SparseTrainingProblem, formulation: str, theta: Tensor, nus: list[Tensor]
) -> float:
    """The best Fenchel bound among the multipliers and the loss gradient at the solution."""
    loss = LOSSES[problem.loss]
    candidates = [*nus, loss.gradient(problem.predict(theta), problem.y)]
    bounds = []
    for nu in candidates:
        inside = loss.project(nu, problem.y)
        if formulation == "bigm":
            bounds.append(float(bigm_dual_bound(problem, inside)))
        else:
            bounds.append(float(problem.dual_bound(inside)))
    return max(bounds)


def _occupied(problem: SparseTrainingProblem) -> Tensor:
    """Which slots of the padded rows hold a weight, (N, k_max) bool."""
    return problem.entities.index < problem.entities.n_parameters


def _array(value: Any) -> np.ndarray:
    return np.asarray(value, dtype=np.float64)


def _version(solver: str) -> str:
    names = {"CLARABEL": "clarabel", "MOSEK": "mosek"}
    return version(names.get(solver, "cvxpy"))

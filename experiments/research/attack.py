"""Attack the certified solver and its check, for as long as you like.

    python experiments/research/attack.py --problems 2000 --edits 10000 --seed 0
    python experiments/research/attack.py --minutes 60

Problem number s is drawn with seed s: 2 to 5 entities, columns and targets over twenty orders of magnitude,
duplicate and almost equal columns, columns of zeros, fewer samples than columns, alpha at its ends, unequal
u, several outputs, entities of single cells, separable logistic data, M given or derived.  Every answer is
compared with rational arithmetic (the logistic loss: 50 digits), never with the code under attack: for each
support the optimum is found from an active set and solved in fractions.

Counted, and to be zero:

* false bounds: a stated bound above the objective of a feasible solution;
* false objectives: below what the weights cost, by more than 1e-12 of the loss at zero;
* refused: an answer that its own check refuses; gaps: "optimal" with a gap above the one asked for;
* tracebacks: anything but an answer or a ``ValueError`` that says what to do;
* accepted edits: a changed certificate that claims something false and passes the check.

Exit status: 0 nothing was found, 1 something was.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import torch
from scipy.optimize import lsq_linear, minimize

from spr_or.certified_solver.derived_m import solve_without_bounds
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem

GAP = 1e-6
SECONDS = 0.5
mpmath.mp.dps = 50


# --- problems -----------------------------------------------------------------------------------------


def draw(seed: int) -> tuple[SparseTrainingProblem, bool]:
    """A small problem with something odd about it, and whether its M is to be derived."""
    rng = np.random.default_rng(seed)
    loss = "logistic" if seed % 4 == 3 else "squared"
    sizes = rng.integers(1, 4, size=rng.integers(2, 6))
    p, n = int(sizes.sum()), int(rng.integers(2, 25))
    q = int(rng.integers(2, 4)) if loss == "squared" and rng.random() < 0.25 else 1
    X = rng.normal(size=(n, p))
    if rng.random() < 0.3:
        X += 3 * rng.normal(size=(n, 1))
    for j in range(1, p):
        kind = rng.random()
        if kind < 0.08:
            X[:, j] = X[:, j - 1]
        elif kind < 0.2:
            X[:, j] = X[:, j - 1] + 10.0 ** rng.uniform(-9, -2) * X[:, j]
        elif kind < 0.25:
            X[:, j] = 0.0
    if rng.random() < 0.1:
        X = np.arange(1.0, n + 1)[:, None] ** np.arange(1, p + 1) * 10.0
    if rng.random() < 0.05:
        X[:] = 0.0
    if rng.random() < 0.3:
        X = X * 10.0 ** rng.uniform(-8, 8, size=p)
    W = rng.normal(size=(p, q)) * (rng.random((p, 1)) < 0.5)
    typical = np.maximum(np.sqrt(np.square(X).mean(0)), 1e-300)
    y = (X / typical) @ W + rng.choice([0.0, 0.3, 2.0]) * rng.normal(size=(n, q))
    if rng.random() < 0.05:
        y[:] = 0.0
    if loss == "logistic":
        y = np.where(y > 0, 1.0, -1.0)
    elif rng.random() < 0.3:
        y = y * 10.0 ** rng.uniform(-12, 6)
    stops = np.cumsum(sizes)
    parts: list[Any] = [list(range(e - s, e)) for s, e in zip(sizes, stops, strict=True)]
    if q > 1 and rng.random() < 0.3:
        parts = [[(j, o) for j in part] for part in parts for o in range(q)][:6]
        covered = {cell for part in parts for cell in part}
        parts.append([c for c in itertools.product(range(p), range(q)) if c not in covered])
        parts = [part for part in parts if part]
    zero = float(np.square(y).sum(1).mean()) if loss == "squared" else float(np.log(2))
    lam = max(zero, 1e-30) * 10.0 ** rng.uniform(-4, 0.3)
    alpha = float(rng.choice([0.0, 1e-8, 0.02, 0.3, 0.9, 1.0]))
    size = float(np.abs(y).max() or 1.0) / float(np.median(typical))
    M = size * 10.0 ** rng.uniform(-1.5, 1.5)
    u = 10.0 ** rng.uniform(-1, 1, size=len(parts)) if rng.random() < 0.5 else np.ones(len(parts))
    problem = SparseTrainingProblem.linear(
        X, y, parts, loss, lam=lam, alpha=alpha, M=M, u=u, name=f"attack-{seed}"
    )
    return problem, bool(rng.random() < 0.4)


# --- rational arithmetic ------------------------------------------------------------------------------


def exact_objective(problem: SparseTrainingProblem, theta: Any, used: list[bool]) -> Any:
    """Formulation (1) at weights theta (P,): a Fraction, or an mpf for the logistic loss."""
    q = problem.y.shape[1]
    X = [[Fraction(x) for x in row] for row in problem.X.tolist()]
    W = [Fraction(x) for x in theta]
    total: Any = Fraction(0)
    for row, targets in zip(X, problem.y.tolist(), strict=True):
        for o, y in enumerate(targets):
            f = sum((x * W[j * q + o] for j, x in enumerate(row) if W[j * q + o]), Fraction(0))
            total += (f - Fraction(y)) ** 2 if problem.loss == "squared" else _log_loss(f, y)
    value = total / problem.n
    lam, alpha = Fraction(problem.lam), Fraction(problem.alpha)
    for group, u, on in zip(problem.entities.groups, problem.u.tolist(), used, strict=True):
        squares = sum((W[j] ** 2 for j in group), Fraction(0))
        term = lam * Fraction(u) * (alpha * squares + (1 - alpha) * on)
        value += term if isinstance(value, Fraction) else _mpf(term)
    return value


def _mpf(x: Fraction) -> Any:
    return mpmath.mpf(x.numerator) / x.denominator


def _log_loss(f: Fraction, y: float) -> Any:
    return mpmath.log1p(mpmath.exp(-_mpf(f) * int(y)))


def best_known(problem: SparseTrainingProblem, bounded: bool) -> Any:
    """The least objective over all supports; for the squared loss from exact systems of equations."""
    count = len(problem.entities)
    best = None
    for used in itertools.product((False, True), repeat=count):
        theta = (_squared if problem.loss == "squared" else _logistic)(problem, used, bounded)
        value = exact_objective(problem, theta, list(used))
        best = value if best is None else min(best, value)
    return best


def _squared(problem: SparseTrainingProblem, used: tuple[bool, ...], bounded: bool) -> list[Any]:
    """The best weights on a support, in fractions: the active set by scipy, the rest solved exactly.

    Where the active set is not the right one the weights are feasible all the same.
    """
    q, n = problem.y.shape[1], problem.n
    X, y = problem.X.numpy(), problem.y.numpy()
    theta: list[Any] = [Fraction(0)] * problem.entities.n_parameters
    owner = {j: i for i, group in enumerate(problem.entities.groups) for j in group if used[i]}
    for o in range(q):
        cells = sorted(j for j in owner if j % q == o)
        if not cells:
            continue
        columns = [j // q for j in cells]
        ridge = [problem.lam * float(problem.u[owner[j]]) * problem.alpha for j in cells]
        M = np.array([float(problem.M[owner[j]]) if bounded else np.inf for j in cells])
        scale = np.sqrt(np.square(X[:, columns]).sum(0) / n + ridge)
        scale = np.where(scale > 0, scale, 1.0)
        A = np.vstack([X[:, columns] / np.sqrt(n), np.diag(np.sqrt(ridge))]) / scale
        b = np.concatenate([y[:, o] / np.sqrt(n), np.zeros(len(cells))])
        size = float(np.abs(b).max()) or 1.0
        limit = np.maximum(M * scale / size, 1e-300)
        if bounded:
            w = lsq_linear(A, b / size, (-limit, limit), method="bvls", tol=1e-15).x
        else:
            w = np.linalg.lstsq(A, b / size, rcond=1e-13)[0]
        at = [k for k in range(len(cells)) if bounded and abs(w[k]) >= limit[k] * (1 - 1e-12)]
        fixed = {k: Fraction(float(M[k])) * (1 if w[k] > 0 else -1) for k in at}
        found = _solved(X[:, columns], y[:, o], n, ridge, fixed)
        float_weights = [Fraction(float(v)) for v in w * size / scale]
        for k, j in enumerate(cells):
            value = found[k] if found is not None else float_weights[k]
            top = Fraction(float(M[k])) if bounded else abs(value)
            theta[j] = max(-top, min(top, value))
    return theta


def _solved(
    X: Any, y: Any, n: int, ridge: list[float], fixed: dict[int, Fraction]
) -> list[Fraction] | None:
    """The normal equations of the columns not fixed, in fractions; None where they are singular."""
    count = len(ridge)
    free = [k for k in range(count) if k not in fixed]
    columns = [[Fraction(x) for x in X[:, k].tolist()] for k in range(count)]
    target = [Fraction(x) for x in y.tolist()]
    for k, value in fixed.items():
        target = [t - c * value for t, c in zip(target, columns[k], strict=True)]
    rows = [
        [sum((a * b for a, b in zip(columns[i], columns[j], strict=True)), Fraction(0)) / n
         + (Fraction(ridge[i]) if i == j else 0) for j in free]
        + [sum((a * b for a, b in zip(columns[i], target, strict=True)), Fraction(0)) / n]
        for i in free
    ]  # fmt: skip
    for k in range(len(free)):
        pivot = next((r for r in range(k, len(free)) if rows[r][k]), None)
        if pivot is None:
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for r in range(len(free)):
            if r != k and rows[r][k]:
                rows[r] = [a - rows[r][k] * b for a, b in zip(rows[r], rows[k], strict=True)]
    found = dict(zip(free, (row[-1] for row in rows), strict=True)) | fixed
    return [found[k] for k in range(count)]


def _logistic(problem: SparseTrainingProblem, used: tuple[bool, ...], bounded: bool) -> list[Any]:
    """Good weights on a support: scipy's L-BFGS-B in scaled coordinates."""
    X, y = problem.X.numpy(), problem.y.numpy()[:, 0]
    at = [j for i, group in enumerate(problem.entities.groups) if used[i] for j in group]
    theta = np.zeros(problem.entities.n_parameters)
    if not at:
        return theta.tolist()
    owner = {j: i for i, group in enumerate(problem.entities.groups) for j in group}
    ridge = np.array([problem.lam * float(problem.u[owner[j]]) * problem.alpha for j in at])
    M = np.array([float(problem.M[owner[j]]) if bounded else np.inf for j in at])
    scale = np.sqrt(np.square(X[:, at]).mean(0) + ridge)
    scale = np.where(scale > 0, scale, 1.0)
    Z = X[:, at] / scale

    def value(w: Any) -> tuple[float, Any]:
        margin = y * (Z @ w)
        slope = -y / (1 + np.exp(np.clip(margin, -700, 700)))
        smooth = np.logaddexp(0, -margin).mean() + (ridge * np.square(w / scale)).sum()
        return smooth, Z.T @ slope / len(y) + 2 * ridge * w / np.square(scale)

    limit = np.minimum(M * scale, 1e6)
    found = minimize(
        value, np.zeros(len(at)), jac=True, method="L-BFGS-B",
        bounds=list(zip(-limit, limit, strict=True)), options={"maxiter": 500, "ftol": 1e-15, "gtol": 1e-12},
    )  # fmt: skip
    theta[at] = np.clip(found.x / scale, -M, M)
    return theta.tolist()


# --- edits --------------------------------------------------------------------------------------------


def edit(certificate: Any, rng: np.random.Generator, lie: float) -> Any:
    """A changed copy that claims the bound ``lie``, above the optimum."""
    changed = replace(certificate, bound=lie, proof=copy.deepcopy(certificate.proof))
    records = changed.proof.records
    for _ in range(int(rng.integers(1, 4))):
        record = records[int(rng.integers(len(records)))]
        choice = EDITS[int(rng.integers(len(EDITS)))]
        choice(records, record, rng)
    kind = rng.random()
    if kind < 0.15:
        changed = replace(changed, objective=max(lie, certificate.objective * (1 + 1e-3)))
    elif kind < 0.25:
        changed = replace(changed, bound=float(rng.choice([np.nan, np.inf, 1e308])))
    elif kind < 0.3:
        changed = replace(changed, objective=float(rng.choice([np.nan, np.inf, -np.inf])))
    return changed


def _weights(records: Any, record: Any, rng: Any) -> None:
    if record.W.size:
        factor = 10.0 ** rng.uniform(-3, 12) * rng.normal(size=record.W.shape)
        record.W = record.W + factor * float(rng.choice([1e-6, 1.0, 1e150]))


def _strange_weights(records: Any, record: Any, rng: Any) -> None:
    if record.W.size:
        W = record.W.copy()
        W.reshape(-1)[int(rng.integers(W.size))] = float(
            rng.choice([np.nan, np.inf, -np.inf, 1e308, 5e-324])
        )
        record.W = W


def _zeros(records: Any, record: Any, rng: Any) -> None:
    more = np.array([int(rng.integers(-1, 6))])
    record.zeros = np.concatenate([record.zeros, more])


def _ones(records: Any, record: Any, rng: Any) -> None:
    more = np.array([int(rng.integers(-1, 6))])
    record.ones = np.concatenate([record.ones, more])


def _cut(records: Any, record: Any, rng: Any) -> None:
    del records[max(1, int(rng.integers(1, len(records) + 1))) :]


def _leaf(records: Any, record: Any, rng: Any) -> None:
    number = next(i for i, r in enumerate(records) if r is record)
    del records[number + 1 :]
    record.branch = -1


def _parent(records: Any, record: Any, rng: Any) -> None:
    record.parent = int(rng.integers(-2, len(records) + 1))


def _value(records: Any, record: Any, rng: Any) -> None:
    record.value = int(rng.integers(-2, 3))


def _branch(records: Any, record: Any, rng: Any) -> None:
    record.branch = int(rng.integers(-2, 7))


def _curvature(records: Any, record: Any, rng: Any) -> None:
    if record.d is not None:
        record.d = record.d * float(rng.choice([1 + 1e-6, 1.5, 50.0, -1.0, np.nan, 1e300]))
    else:
        n, k = record.W.shape[:2]
        record.d = np.full((n, k), 10.0 ** rng.uniform(-6, 6))


def _entities(records: Any, record: Any, rng: Any) -> None:
    if len(record.entities):
        entities = record.entities.copy()
        entities[int(rng.integers(len(entities)))] = int(rng.integers(-2, 7))
        record.entities = entities


def _nothing(records: Any, record: Any, rng: Any) -> None:
    """Only the claim is false."""


EDITS: list[Callable[[Any, Any, Any], None]] = [
    _weights, _strange_weights, _zeros, _ones, _cut, _leaf, _parent, _value, _branch, _curvature,
    _entities, _nothing,
]  # fmt: skip


# --- the attack ---------------------------------------------------------------------------------------


def attack(seed: int, edits: int, found: Counter, say: Callable[[str], None]) -> None:
    """One problem, its answer, and some edits of its certificate."""
    problem, derive = draw(seed)
    try:
        if derive:
            certificate, _ = solve_without_bounds(problem, GAP, SECONDS)
        else:
            certificate = branch_and_bound(problem, GAP, SECONDS)
        outcome = certificate.check()
    except ValueError as error:
        found["told why there is no answer"] += 1
        if not any(hint in str(error) for hint in ("M auto", "choose other units")):
            found["TRACEBACKS"] += 1
            say(f"{seed}: ValueError {error}")
        return
    except Exception:
        found["TRACEBACKS"] += 1
        say(f"{seed}: {traceback.format_exc()}")
        return
    found[f"status {certificate.status}"] += 1
    if not outcome.ok:
        found["REFUSED"] += 1
        say(f"{seed}: refused: {outcome.problems}")
    if certificate.status == "optimal":
        allowed = GAP * abs(outcome.objective) + 1e-9 * zero_loss(problem)
        if not outcome.objective - outcome.bound <= allowed:
            found["GAPS"] += 1
            say(f"{seed}: optimal with {outcome.objective} against {outcome.bound}")
    best = best_known(problem, bounded=not derive)
    if not certificate.bound <= best:
        found["FALSE BOUNDS"] += 1
        say(f"{seed}: bound {certificate.bound!r} above {float(best)!r}")
    used = [bool(x) for x in certificate.indicators.tolist()]
    exact = exact_objective(certificate.problem, certificate.weights.tolist(), used)
    # It is what the weights cost at most, so it may lie above, by what rounding can do to large weights.
    if not certificate.objective >= float(exact) - 1e-12 * zero_loss(problem):
        found["FALSE OBJECTIVES"] += 1
        say(f"{seed}: objective {certificate.objective!r}, in fractions {float(exact)!r}")
    rng = np.random.default_rng(seed)
    lie = max(float(best) * (1 + 1e-9) + 1e-9 * zero_loss(problem), float(np.nextafter(0, 1)))
    for number in range(edits):
        try:
            accepted = edit(certificate, rng, lie).check().ok
        except Exception:
            found["TRACEBACKS"] += 1
            say(f"{seed}, edit {number}: {traceback.format_exc()}")
            continue
        found["edits"] += 1
        if accepted:
            found["ACCEPTED EDITS"] += 1
            say(
                f"{seed}, edit {number}: a bound of {lie} was accepted, the optimum is {float(best)}"
            )


def zero_loss(problem: SparseTrainingProblem) -> float:
    """The mean loss of the prediction 0."""
    if problem.loss == "squared":
        return float(problem.y.square().sum() / problem.n)
    return float(np.log(2))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--edits", type=int, default=1000, help="over all problems")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem")
    parser.add_argument("--minutes", type=float, help="go on until then, whatever --problems says")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: Counter = Counter()
    end = time.monotonic() + 60 * (arguments.minutes or 0)
    each = -(-arguments.edits // arguments.problems)
    for seed in itertools.count(arguments.seed):
        done = seed - arguments.seed
        if (arguments.minutes is None and done >= arguments.problems) or (
            arguments.minutes is not None and time.monotonic() > end
        ):
            break
        attack(seed, each, found, print)
        found["problems"] += 1
        if done % 100 == 99:
            print(f"{done + 1} problems: {dict(found)}", flush=True)
    print(f"{dict(found)}")
    return int(any(name.isupper() for name in found))


if __name__ == "__main__":
    raise SystemExit(main())

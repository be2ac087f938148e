r"""Root bounds that three ideas would give, beside those of the certified solver: docs/lab/solver.md.

Run ``python experiments/research/root_bounds.py --like H3 --groups 16`` from the repository's root.

Every bound is the value of one semidefinite program in the moments of the solution: w, W for w w', and
the indicators y.  With p_i = lambda (1 - alpha), Q and c as in `spr_or.certified_solver.design`,

.. math::  \min \langle Q, W\rangle - 2 c'w + c_0 + p'y, \qquad
           \begin{pmatrix} 1 & w' \\ w & W \end{pmatrix} \succeq 0,

and for entities C, whose parts of w and W are w_C and W_C, one of

* **rank-one terms** (a'w)^2 / min(1, sum of y), for all vectors a with support in C at once:
  [[sum of y_i, w_C'], [w_C, W_C]] is positive semidefinite.  With one entity in each C this is the best
  block of D for every entity.
* **the hull** over the supports S of C: (y_C, w_C, W_C) is a sum of moments (pi_S, w_S, W_S), one for
  each S and zero outside S, with sum of pi_S = 1.  Its dual is the best curvature D_C; hulls may overlap.
* **the box**: W_jj <= M^2 y_i, which puts multipliers of |w_j| <= M y_i into the search for D.

The instances are those of `named_instances` with fewer groups and five times as many samples as groups, so
that the ratio of samples to columns stays 1.25.  Clarabel solves them; with 16 groups, five and ten seconds
for the first lines and minutes for the hulls.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import torch
from numpy.typing import NDArray

from spr_or.bench.named_instances import GROUPS, group_regression
from spr_or.certified_solver.clusters import partition
from spr_or.certified_solver.design import Design, design_of
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem

Array = NDArray[np.float64]
Members = Sequence[int]


class Root(NamedTuple):
    """A bound, the indicators (N,) at it, and the processor seconds it took."""

    bound: float
    y: Array
    seconds: float


def instance(like: str, groups: int, seed: int) -> SparseTrainingProblem:
    """A smaller relative of a named instance, with a tenth of its groups active, at least two."""
    g = GROUPS[like]
    active = max(2, groups * g.active // g.N)
    X, y = group_regression(5 * groups, groups, g.size, seed, g.rho, active, g.snr)
    columns = np.arange(groups * g.size).reshape(groups, g.size).tolist()
    return SparseTrainingProblem.linear(X, y, columns, lam=g.lam, alpha=g.alpha, M=g.M)


def root(
    design: Design,
    rank_one: Iterable[Members] = (),
    hulls: Iterable[Members] = (),
    box: bool = False,
) -> Root:
    """The best bound with rank-one terms and hulls over the entities given, beside the blocks."""
    assert design.moments is not None
    N, k, _ = design.shape
    Q, c = design.quadratic().numpy(), design.moments.C[:, 0].numpy()
    Z = cp.Variable((N * k + 1, N * k + 1), PSD=True)
    y = cp.Variable(N)
    constraints = [Z[0, 0] == 1, y >= 0, y <= 1]

    def part(C: Members) -> list[int]:
        return [1 + i * k + j for i in C for j in range(k)]

    for C in [*([i] for i in range(N)), *rank_one]:
        at, term = part(C), cp.Variable((len(C) * k + 1,) * 2, PSD=True)
        constraints += [term[0, 0] == cp.sum(y[list(C)]), term[0, 1:] == Z[0, at]]
        constraints += [term[1:, 1:] == Z[at][:, at]]
    for C in hulls:
        used: list[Any] = [0] * len(C)
        moments: Any = 0
        total: Any = 0
        for S in itertools.product((False, True), repeat=len(C)):
            places = [slot for slot in range(len(C)) if S[slot]]
            if not places:
                continue  # the empty support takes what the others leave of 1
            own = cp.Variable((len(places) * k + 1,) * 2, PSD=True)
            rows = [0, *(1 + slot * k + j for slot in places for j in range(k))]
            into = np.eye(len(C) * k + 1)[:, rows]
            moments, total = moments + into @ own @ into.T, total + own[0, 0]
            for slot in places:
                used[slot] = used[slot] + own[0, 0]
        at = part(C)
        constraints += [moments[0, 1:] == Z[0, at], moments[1:, 1:] == Z[at][:, at], total <= 1]
        constraints += [used[slot] == y[i] for slot, i in enumerate(C)]
    if box:
        M = np.repeat(design.M.numpy(), k)
        constraints.append(
            cp.diag(Z)[1:] <= cp.multiply(M**2, np.kron(np.eye(N), np.ones((k, 1))) @ y)
        )
    value = cp.sum(cp.multiply(Q, Z[1:, 1:])) - 2 * c @ Z[0, 1:] + design.price.numpy() @ y
    problem = cp.Problem(cp.Minimize(value + float(design.moments.c0)), constraints)
    began = time.process_time()
    problem.solve(solver="CLARABEL")
    return Root(float(problem.value), np.asarray(y.value), time.process_time() - began)


def main() -> None:
    """Print one line for each bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--like", default="H3", choices=[n for n in GROUPS if n.startswith("H")])
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="for the optimum")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    problem = instance(asked.like, asked.groups, asked.seed)
    best = branch_and_bound(problem, time_limit=asked.seconds)
    print(f"optimum: {best.objective:.4f}, proven within {100 * best.gap:.2f} %", flush=True)
    design = design_of(problem).with_moments()
    pairs = list(itertools.combinations(range(asked.groups), 2))

    def tell(name: str, found: Root) -> Root:
        lacks = 100 * (1 - found.bound / best.objective)
        print(f"{name}: {found.bound:.4f}, lacks {lacks:.2f} %, {found.seconds:.1f} s", flush=True)
        return found

    blocks = tell("blocks", root(design))
    tell("blocks and the box", root(design, box=True))
    tell("rank-one terms of all pairs", root(design, rank_one=pairs))
    tell("hulls of all pairs", root(design, hulls=pairs))
    members = partition(design, torch.from_numpy(blocks.y).clamp(0, 1))
    if members is not None:
        clusters = [[i for i in row if i >= 0] for row in members.tolist()]
        tell(f"disjoint clusters of {members.shape[1]}", root(design, hulls=clusters))


if __name__ == "__main__":
    main()

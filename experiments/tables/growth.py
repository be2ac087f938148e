"""How search and check of the certified solver grow with the number of groups; and its hard instances.

    python experiments/tables/growth.py [--seconds 60] [--rows growth,hard,named]

Groups of four columns.  ``growth`` has the settings of E1 to E4 with n = max(100, 2 N) samples; ``hard``
has noise as strong as the signal and n = 5 N (lambda 0.1, alpha 0.05, M 2), three seeds; ``named`` are E1 to
E4, H2 and H3.  Prints a table: processor seconds of search and check, one thread, and the gap at the limit,
which is by the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch

from spr_or.bench import named_instances
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem

GAP = 1e-4


def groups(
    N: int, n: int, snr: float, seed: int, lam: float, alpha: float, M: float
) -> SparseTrainingProblem:
    """An instance as those of `named_instances`."""
    X, y = named_instances.group_regression(n, N, 4, seed, snr=snr)
    columns = np.arange(4 * N).reshape(N, 4).tolist()
    return SparseTrainingProblem.linear(X, y, columns, lam=lam, alpha=alpha, M=M)


def rows(wanted: list[str]) -> Iterator[tuple[str, SparseTrainingProblem]]:
    """Names and problems, made one by one."""
    if "growth" in wanted:
        for N in (25, 50, 100, 200, 400, 800, 1600):
            yield f"growth, N = {N}", groups(N, max(100, 2 * N), 5.0, 0, 0.3, 0.1, 4.0)
    if "hard" in wanted:
        for N in (24, 30):
            for seed in range(3):
                yield f"hard, N = {N}, seed {seed}", groups(N, 5 * N, 1.0, seed, 0.1, 0.05, 2.0)
    if "named" in wanted:
        for name in ("E1", "E2", "E3", "E4", "H2", "H3"):
            yield name, named_instances.problem(name)


def main() -> None:
    """Solve and check every row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rows", default="growth,hard,named")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    branch_and_bound(named_instances.problem("S1"), GAP)  # warms up
    print("| instance | gap | nodes | search, s | check, s |\n| --- | ---: | ---: | ---: | ---: |")
    for name, problem in rows(asked.rows.split(",")):
        began = time.process_time()
        found = branch_and_bound(problem, GAP, time_limit=asked.seconds)
        searched = time.process_time()
        holds = found.check().ok
        checked = time.process_time()
        gap = "proven" if found.status == "optimal" else f"{100 * found.gap:.2f} %"
        print(
            f"| {name} | {gap}{'' if holds else ', NOT CONFIRMED'} | {found.nodes} "
            f"| {searched - began:.2f} | {checked - searched:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

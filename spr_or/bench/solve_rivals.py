"""el0ps or l0bnb on one problem, as a script for an interpreter that has them but not SPR-OR:

    PYTHON solve_rivals.py {el0ps,l0bnb} PROBLEM.npz ANSWER.json

PROBLEM holds X, y, l0, l2, M (`named_instances.L0Terms`), gap and time_limit.  A small problem is
solved first in the same process: so that numba's compilation is not timed.
"""

# mypy: ignore-errors
# Neither package is a dependency, and the interpreter may be another one.

import functools
import json
import math
import os
import sys
import threading
import time
from importlib.metadata import version

import numpy as np


def el0ps(X, y, l0, l2, M, gap, time_limit):
    """Weights, the objective and bound that el0ps states, and its nodes."""
    # It asks for MPI, which it needs only on several machines, and which needs its own library.
    sys.modules["mpi4py"] = None
    import pybnb

    pybnb.Solver = functools.partial(pybnb.Solver, comm=None)
    from el0ps.datafit import Leastsquares
    from el0ps.penalty import BigmL2norm
    from el0ps.solver import BnbSolver

    solver = BnbSolver(relative_gap=gap, time_limit=time_limit)
    inner, kept = solver.solver.solve, []  # its result drops the bound
    solver.solver.solve = lambda *args, **kwargs: kept.append(inner(*args, **kwargs)) or kept[0]
    result = solver.solve(Leastsquares(y), BigmL2norm(M, l2), X, l0)
    return result.x, result.objective_value, kept[0].bound, result.iter_count


def l0bnb(X, y, l0, l2, M, gap, time_limit):
    """Weights, the objective and bound that l0bnb states, and its nodes."""
    np.Inf = np.inf  # l0bnb 1.0.0 uses this name, which numpy 2 has dropped
    from l0bnb import BNBTree

    tree = BNBTree(X, y)
    result = tree.solve(l0, l2, M, gap_tol=gap, time_limit=time_limit)
    left = result.gap
    if left > gap and result.sol_time < time_limit:
        left = gap  # an empty queue is a proof too, and it does not update the gap then
    bound = result.cost * (1 - left) if left <= 1 else -math.inf
    return result.beta, result.cost, bound, tree.number_of_nodes


RIVALS = {"el0ps": el0ps, "l0bnb": l0bnb}


def main(name, problem_file, answer_file):
    """Solve the problem in one file, write the answer to the other."""
    solve = RIVALS[name]
    with np.load(problem_file) as stored:
        X, y = stored["X"], stored["y"]
        settings = {key: float(value) for key, value in stored.items() if key not in ("X", "y")}
    solve(**_small(), gap=1e-4, time_limit=10.0)
    start = time.perf_counter()
    weights, objective, bound, nodes = solve(X, y, **settings)
    answer = {
        "seconds": time.perf_counter() - start,
        "version": version(name),
        "weights": np.asarray(weights).tolist(),
        "objective": float(objective),
        "bound": float(bound) if math.isfinite(bound) else None,
        "nodes": int(nodes),
    }
    with open(answer_file, "w", encoding="utf-8") as file:
        json.dump(answer, file)


def _small():
    """A problem that needs branching, so that all of a solver gets compiled."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 20)) + 2 * rng.normal(size=(30, 1))
    X /= np.linalg.norm(X, axis=0)
    y = X @ rng.normal(size=20) + rng.normal(size=30) / 5
    return {"X": X, "y": y, "l0": 0.02, "l2": 0.05, "M": 2.0}


def end_with_input():
    """End when the process is gone that holds the other end of the standard input."""

    def watch():
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_input()
    main(*sys.argv[1:])

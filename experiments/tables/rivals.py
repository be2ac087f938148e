"""Processor time of other solvers on single columns, as a ratio to the certified solver's.

    python experiments/tables/rivals.py run ANSWERS.json --rivals-python PYTHON [--rounds 3]
    python experiments/tables/rivals.py page ANSWERS.json      # writes its table on docs/lab/solver.md

PYTHON has el0ps, l0bnb, okridge, abess and skglm, as far as they can be installed, and not SPR-OR.  One
process of it answers all questions, so that numba compiles once, before anything is timed; between two of its
answers the certified solver solves the same problem again.  abess and skglm prove nothing: their support is
refitted, and what is stated beside their time is how far it lies above the optimum.
"""

# mypy: ignore-errors
# The rivals are no dependencies, and their interpreter is another one.

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "lab" / "solver.md"
BEGIN, END = "<!-- written by rivals.py -->", "<!-- end of rivals.py -->"
RIVALS = ("el0ps", "l0bnb", "l0bnb warm", "okridge", "abess", "skglm")
SIZES = [(200, 100), (300, 200), (800, 80), (500, 1000), (300, 60), (2000, 500), (5000, 1000),
         (1000, 5000)]  # fmt: skip
NOISY = (300, 60)
L0, L2, M, GAP, LIMIT = 0.02, 0.1, 2.0, 1e-4, 25.0
LONG = 3.0  # seconds; a rival's run that takes longer is not repeated


# --- in the rivals' interpreter -------------------------------------------------------------------


def _bench():
    """The calls of el0ps and l0bnb that `spr-or bench solve` makes."""
    path = ROOT / "spr_or" / "bench" / "solve_rivals.py"
    spec = importlib.util.spec_from_file_location("solve_rivals", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _l0bnb_warm(X, y, start):
    np.Inf = np.inf  # as in solve_rivals.l0bnb
    from l0bnb import BNBTree

    found = BNBTree(X, y).solve(L0, L2, M, gap_tol=GAP, time_limit=LIMIT, warm_start=start)
    return found.beta, found.sol_time < LIMIT


def _okridge(X, y, k):
    from okridge.tree import BNBTree

    _, beta, gap, _, _ = BNBTree(X, y, lambda2=2 * L2).solve(k, gap_tol=GAP, time_limit=LIMIT)
    return beta, gap <= GAP


def _abess(X, y, k):
    from abess.linear import LinearRegression

    model = LinearRegression(support_size=k, fit_intercept=False, thread=1)
    return model.fit(X, y).coef_, False


def _skglm(X, y):
    """MCP, which keeps a column where hard thresholding at the price L0 does."""
    from skglm import MCPRegression

    size = np.sqrt(len(y))  # its columns have variance 1
    model = MCPRegression(alpha=np.sqrt(2 * L0) / size, fit_intercept=False)
    return model.fit(X * size, y).coef_ * size, False


def _answer(name, X, y, start):
    if name in ("el0ps", "l0bnb"):
        weights, objective, bound, _ = _bench().RIVALS[name](X, y, L0, L2, M, GAP, LIMIT)
        return weights, objective - bound <= 1.01 * GAP * abs(objective)
    if name == "l0bnb warm":
        return _l0bnb_warm(X, y, start)
    if name == "okridge":
        return _okridge(X, y, np.count_nonzero(start))
    return _abess(X, y, np.count_nonzero(start)) if name == "abess" else _skglm(X, y)


def serve():
    """Answer questions on standard input, one a line, until it ends."""
    own, sys.stdout = sys.stdout, sys.stderr  # some of them print
    small = _bench()._small()
    for line in sys.stdin:
        name, file = json.loads(line)
        try:
            if file is None:
                X, y, start = small["X"], small["y"], np.repeat([1.0, 0.0], [3, 17])
            else:
                with np.load(file) as stored:
                    X, y, start = stored["X"], stored["y"], stored["start"]
            before = time.process_time()
            weights, proven = _answer(name, X, y, start)
            seconds = time.process_time() - before
            answer = {
                "seconds": seconds, "proven": bool(proven),
                "support": np.flatnonzero(np.abs(weights) > 1e-9).tolist(),
            }  # fmt: skip
        except Exception as error:  # whatever a foreign package raises is its answer
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(answer), file=own, flush=True)


# --- in ours ----------------------------------------------------------------------------------------


def value_of(X, y, support):
    """1/2 ||y - Xb||^2 + L0 |support| + L2 ||b||^2 for the best b on the support."""
    A = X[:, support]
    b = np.linalg.solve(A.T @ A + 2 * L2 * np.eye(len(support)), A.T @ y)
    return 0.5 * ((y - A @ b) ** 2).sum() + L0 * len(support) + L2 * (b @ b)


def run(file, python, rounds):
    """Time all, round by round, and store the answers after each instance."""
    from spr_or.bench.named_instances import column_regression
    from spr_or.certified_solver.solver import branch_and_bound
    from spr_or.formulations.entities import features
    from spr_or.formulations.problem import SparseTrainingProblem

    worker = subprocess.Popen(
        [python, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def ask(name, data):
        print(json.dumps([name, data]), file=worker.stdin, flush=True)
        return json.loads(worker.stdout.readline())

    def ours(problem):
        before = time.process_time()
        certificate = branch_and_bound(problem, GAP, LIMIT)
        return certificate, time.process_time() - before

    rivals = {name: ask(name, None) for name in RIVALS}
    working = [name for name, answer in rivals.items() if "error" not in answer]
    print({name: answer.get("error", "works") for name, answer in rivals.items()}, flush=True)
    rows = []
    for n, p in SIZES:
        X, y = column_regression(n, p, snr=1.0 if (n, p) == NOISY else 10.0)
        problem = SparseTrainingProblem.linear(
            X, y, features(p), lam=2 * (L0 + L2) / n, alpha=L2 / (L0 + L2), M=M
        )
        certificate, _ = ours(problem)  # warms up
        start = certificate.weights.numpy()
        best = value_of(X, y, np.flatnonzero(start))
        row = {
            "n": n, "p": p, "status": certificate.status, "groups": int(np.count_nonzero(start)),
            "ours": [], **{name: [] for name in working},
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            data = f"{folder}/problem.npz"
            np.savez(data, X=X, y=y, start=start)
            for _ in range(rounds):
                row["ours"].append(ours(problem)[1])
                for name in working:
                    if row[name] and row[name][0].get("seconds", 0.0) > LONG:
                        continue
                    answer = ask(name, data)
                    if "error" not in answer:
                        answer["above"] = value_of(X, y, answer["support"]) / best - 1
                    row[name].append(answer)
        rows.append(row)
        print(json.dumps(row)[:2000], flush=True)
        content = {
            "errors": {name: a["error"] for name, a in rivals.items() if "error" in a},
            "rows": rows,
        }
        Path(file).write_text(json.dumps(content, indent=1))
    worker.stdin.close()
    worker.wait()


def cell(row, name):
    """The ratio of median times, what is open, and how far the answer lies above the optimum."""
    answers = row.get(name)
    if answers is None or any("error" in answer for answer in answers):
        return "failed"
    times = statistics.median(answer["seconds"] for answer in answers)
    times /= statistics.median(row["ours"])
    ratio = f"{times:.0f}" if times >= 100 else f"{times:.2g}"
    above = answers[-1]["above"]
    if name not in ("abess", "skglm") and not answers[-1]["proven"]:
        ratio += " (open)"
    return f"{ratio}, {100 * above:.2g} % above" if above > 2 * GAP else ratio


def page(file):
    """Put the table on the page, between its marks."""
    rows = json.loads(Path(file).read_text())["rows"]
    lines = [
        "| samples × columns | kept | SPR-OR, seconds | " + " | ".join(RIVALS) + " |",
        "| --- | ---: | ---: |" + " ---: |" * len(RIVALS),
    ]
    for row in rows:
        noisy = ", noisy" if (row["n"], row["p"]) == NOISY else ""
        open_ = "" if row["status"] == "optimal" else " (open)"
        lines.append(
            f"| {row['n']} × {row['p']}{noisy} | {row['groups']} "
            f"| {statistics.median(row['ours']):.2f}{open_} | "
            + " | ".join(cell(row, name) for name in RIVALS) + " |"
        )  # fmt: skip
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(
        f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8"
    )


def main():
    """The steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["run", "page", "serve"])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--rivals-python")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if asked.step == "serve":
        serve()
    elif asked.step == "page":
        page(asked.file)
    else:
        run(asked.file, asked.rivals_python, asked.rounds)


if __name__ == "__main__":
    main()

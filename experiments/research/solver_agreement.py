"""Branch and bound against enumeration and SCIP on random small problems, every certificate checked.

Run it with `python experiments/research/solver_agreement.py`.  Problem number s is drawn with seed s:
squared loss with one output, squared loss with two or three, logistic loss; 4 to 9 entities of 1 to
4 weights; lambda, alpha (0 and 1 included) and M over several orders of magnitude; columns from
independent to almost collinear, fewer samples than columns included.

A problem agrees when

* all objectives that are proven optimal lie within 1e-5 of each other, relative (plus 1e-7 for
  SCIP's tolerances where the optimum is almost zero);
* no bound lies above an objective by more than that, nor ours above enumeration's by more than 1e-9;
* `certificate.check()` confirms ours.

SCIP has a time limit; where it ends early, its objective and bound take part, not its status.  It runs
in a separate process, because on a few problems it does not return and has to be ended.
Exit status: 0 all agree, 1 otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch

from spr_or import SparseTrainingProblem
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.solvers import enumeration, scip
from spr_or.solvers.certificate import Certificate
from spr_or.utils.files import write_json

KINDS = ("squared", "squared, many outputs", "logistic")
GAP = 1e-6
RELATIVE, ABSOLUTE = 1e-5, 1e-7
SCIP_SECONDS = 20.0


class OtherProcess:
    """Calls in another process, which is replaced when one of them does not return."""

    def __init__(self) -> None:
        self.pool = _pool()

    def call(self, function: Callable, *arguments: object, patience: float) -> object | None:
        """What the function returns, or None if it takes longer than ``patience`` seconds."""
        try:
            return self.pool.apply_async(function, arguments).get(patience)
        except multiprocessing.TimeoutError:
            self.close()
            self.pool = _pool()
            return None

    def close(self) -> None:
        """End the process."""
        self.pool.terminate()
        self.pool.join()


def _pool() -> Pool:
    return multiprocessing.get_context("spawn").Pool(1)


@dataclass(frozen=True)
class Outcome:
    """One problem: the answer of each solver, and what is wrong, if anything.

    ``apart``: the largest relative difference between two proven optima; ``solved``: the solvers that
    proved one; ``silent``: those that gave no answer.
    """

    seed: int
    kind: str
    entities: int
    lam: float
    alpha: float
    M: float
    objective: float
    bound: float
    nodes: int
    checked: bool
    apart: float
    solved: list[str]
    faults: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)


def random_problem(seed: int) -> tuple[str, SparseTrainingProblem]:
    """Its kind and the problem."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    sizes = rng.integers(1, 5, size=rng.integers(4, 10))
    p, n = int(sizes.sum()), int(rng.integers(8, 41))
    q = int(rng.integers(2, 4)) if kind == "squared, many outputs" else 1
    rho = rng.choice([0.0, 0.5, 0.9, 0.99])
    common = rng.normal(size=(n, 1))
    X = np.sqrt(1 - rho) * rng.normal(size=(n, p)) + np.sqrt(rho) * common
    W = rng.normal(size=(p, q)) * np.repeat(rng.random(len(sizes)) < 0.5, sizes)[:, None]
    y = X @ W + 10 ** rng.uniform(-1, 0.5) * rng.normal(size=(n, q))
    if kind == "logistic":
        y = np.where(y > 0, 1.0, -1.0)
    ends = np.cumsum(sizes)
    groups = [list(range(e - k, e)) for k, e in zip(sizes.tolist(), ends.tolist(), strict=True)]
    return kind, SparseTrainingProblem.linear(
        X, y, groups, "logistic" if kind == "logistic" else "squared",
        lam=10 ** rng.uniform(-3, 0.5),
        alpha=float(rng.choice([0.0, 1.0, 10 ** rng.uniform(-3, -1), rng.uniform(0.1, 0.99)])),
        M=10 ** rng.uniform(-0.7, 1.5),
        u=rng.uniform(0.5, 2, len(sizes)) if rng.random() < 0.5 else "uniform",
        name=f"random {seed}",
    )  # fmt: skip


def compare(
    seed: int, process: OtherProcess | None = None, scip_seconds: float = SCIP_SECONDS
) -> Outcome:
    """Solve problem ``seed`` in all four ways; without SCIP's two if there is no process for them."""
    kind, problem = random_problem(seed)
    ours = branch_and_bound(problem, gap=GAP)
    answers: dict[str, Certificate] = {"ours": ours, "enumeration": enumeration.solve(problem)}
    silent = []
    patience = 3 * scip_seconds + 20  # the first call imports everything
    for name in scip.FORMULATIONS if process else ():
        answer = process.call(scip.solve, problem, name, False, scip_seconds, patience=patience)
        if isinstance(answer, Certificate):
            answers[f"SCIP {name}"] = answer
        else:
            silent.append(f"SCIP {name}")
    check = ours.check()
    faults = [f"check: {found}" for found in check.problems]
    faults += [f"{name} says {c.status}" for name, c in answers.items() if _failed(name, c)]
    optima = {name: c.objective for name, c in answers.items() if c.status == "optimal"}
    apart = 0.0
    for a, b in itertools.combinations(optima, 2):
        difference = abs(optima[a] - optima[b])
        scale = max(abs(optima[a]), abs(optima[b]))
        if difference > RELATIVE * scale + ABSOLUTE:
            faults.append(f"{a} {optima[a]:.9g}, {b} {optima[b]:.9g}")
        apart = max(apart, difference / max(scale, 1e-12))
    for (a, x), (b, z) in itertools.permutations(answers.items(), 2):
        allowed = RELATIVE * abs(z.objective) + ABSOLUTE
        if {a, b} == {"ours", "enumeration"}:
            allowed = 1e-9 * max(1.0, abs(z.objective))
        if x.bound > z.objective + allowed:
            faults.append(f"{a}'s bound {x.bound:.9g} above {b}'s objective {z.objective:.9g}")
    return Outcome(
        seed, kind, len(problem.entities), problem.lam, problem.alpha, float(problem.M[0]),
        ours.objective, ours.bound, ours.nodes, check.ok, apart, list(optima), faults, silent,
    )  # fmt: skip


def _failed(name: str, certificate: Certificate) -> bool:
    """Ours and enumeration must end; SCIP may run out of time, or admit that it is inexact."""
    return not name.startswith("SCIP") and certificate.status != "optimal"


def _crashed(seed: int, error: Exception) -> Outcome:
    kind, p = random_problem(seed)
    fault = f"{type(error).__name__}: {error}"
    return Outcome(
        seed, kind, len(p.entities), p.lam, p.alpha, float(p.M[0]), 0.0, 0.0, 0, False, 0.0, [],
        [fault],
    )  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """Kind by kind in Markdown, then every fault."""
    solvers = ["enumeration", *(f"SCIP {name}" for name in scip.FORMULATIONS)]
    heads = ["loss", "problems", "agree", "checked", *solvers, "largest difference", "nodes"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for kind in (*KINDS, "all"):
        rows = [o for o in outcomes if kind in (o.kind, "all")]
        if not rows:
            continue
        cells = [
            kind, str(len(rows)), str(sum(not o.faults for o in rows)),
            str(sum(o.checked for o in rows)),
            *(str(sum(name in o.solved for o in rows)) for name in solvers),
            f"{max(o.apart for o in rows):.1e}", f"{sum(o.nodes for o in rows)}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    faults = [f"seed {o.seed} ({o.kind}): {'; '.join(o.faults)}" for o in outcomes if o.faults]
    silent = [f"seed {o.seed}: no answer from {', '.join(o.silent)}" for o in outcomes if o.silent]
    lines += ["", *(faults or ["No disagreement."]), *silent]
    return "\n".join(lines)


def main() -> int:
    """Compare, show progress, print the table."""
    from rich.console import Console
    from rich.progress import track

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="the first problem's")
    parser.add_argument("--count", type=int, default=200, help="how many problems")
    parser.add_argument(
        "--scip-seconds", type=float, default=SCIP_SECONDS, help="for each formulation; 0: no SCIP"
    )
    parser.add_argument("--json", type=Path, help="write every outcome here")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error(f"--count must be at least 1, got {arguments.count}")
    torch.set_num_threads(1)  # the problems are tiny
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    process = OtherProcess() if arguments.scip_seconds > 0 else None
    outcomes: list[Outcome] = []
    console = Console(stderr=True)
    try:
        for seed in track(seeds, "comparing", console=console, transient=True):
            try:
                outcomes.append(compare(seed, process, arguments.scip_seconds))
            except Exception as error:  # of any solver: a disagreement like others
                outcomes.append(_crashed(seed, error))
            if outcomes[-1].faults:
                console.print(f"seed {seed}: {'; '.join(outcomes[-1].faults)}")
    except KeyboardInterrupt:
        print(f"interrupted after {len(outcomes)} of {arguments.count} problems", file=sys.stderr)
    finally:
        if process is not None:
            process.close()
    if outcomes:
        print(table(outcomes))
    if arguments.json is not None:
        write_json(arguments.json, {"outcomes": [asdict(o) for o in outcomes]})
    if len(outcomes) < arguments.count:
        return 130
    return int(any(o.faults for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())

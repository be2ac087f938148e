"""One solver on one named instance, in a separate process; `spr_or.bench.solve` starts it.

python -m spr_or.bench.solve_worker SOLVER INSTANCE TIME_LIMIT GAP THREADS ANSWER.json
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from spr_or.bench import named_instances
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.certificate import Certificate
from spr_or.utils.files import write_json
from spr_or.utils.orphans import end_with_input

Solve = Callable[[SparseTrainingProblem, float, float], Certificate]


def main(
    solver: str, instance: str, time_limit: str, gap: str, threads: str, answer_file: str
) -> None:
    """Solve a small problem, then the instance; write what came out."""
    import torch

    torch.set_num_threads(int(threads))
    solve = solver_of(solver)
    solve(_small(), 10.0, float(gap))  # imports and first calls are not in the time
    problem = named_instances.problem(instance)
    certificate = solve(problem, float(time_limit), float(gap))
    write_json(answer_file, answer_of(certificate))


def solver_of(name: str) -> Solve:
    """The function behind a name of `solve.SOLVERS`."""
    from spr_or.certified_solver.solver import branch_and_bound
    from spr_or.solvers import outer_approximation, scip

    known: dict[str, Solve] = {
        "spr-or": lambda p, limit, gap: branch_and_bound(p, gap, limit),
        "spr-or-cuda": lambda p, limit, gap: branch_and_bound(p, gap, limit, device="cuda"),
        "scip-bigm": lambda p, limit, gap: scip.solve(p, "bigm", time_limit=limit, gap=gap),
        "scip-cone": lambda p, limit, gap: scip.solve(p, "perspective", time_limit=limit, gap=gap),
        "scip-default": lambda p, limit, gap: scip.solve(
            p, "bigm", time_limit=limit, gap=gap, own_settings=False
        ),
        "highs-cuts": lambda p, limit, gap: outer_approximation.solve(p, gap=gap, time_limit=limit),
    }
    return known[name]


def answer_of(certificate: Certificate) -> dict[str, Any]:
    """What the parent needs of a certificate, as plain values; its proof, if any, is checked here."""
    from spr_or.proof.certificate import ProofCertificate

    answer: dict[str, Any] = {
        "version": certificate.version,
        "status": certificate.status,
        "seconds": certificate.seconds,
        "objective": _finite(certificate.objective),
        "bound": _finite(certificate.bound),
    }
    if isinstance(certificate, ProofCertificate):
        check = certificate.check()
        answer |= {
            "nodes": certificate.nodes,
            "checked": check.ok,
            "note": "; ".join(check.problems),
            "trace": [[p.seconds, p.objective, _finite(p.bound)] for p in certificate.trace],
        }
    return answer


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _small() -> SparseTrainingProblem:
    X, y = named_instances.group_regression(30, 4, 2, active=2)
    groups = [[2 * i, 2 * i + 1] for i in range(4)]
    return SparseTrainingProblem.linear(X, y, groups, lam=0.3, alpha=0.1, M=4.0)


if __name__ == "__main__":
    end_with_input()
    main(*sys.argv[1:])

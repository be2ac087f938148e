"""A row of `spr-or bench solve`: one solver on one instance, in a child process.

What comes back is made feasible and evaluated here (`certify`), and every proof of ours is checked
(`solve_worker`).  el0ps and l0bnb minimise n/2 times our objective (`named_instances.l0_terms`); that
the objective they state is n/2 times ours at their weights is checked too.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spr_or.utils.interrupts import held_interrupt

OWN = ("spr-or", "spr-or-cuda", "scip-bigm", "scip-cone", "scip-default", "highs-cuts")
RIVALS = ("el0ps", "l0bnb")
SOLVERS = (*OWN, *RIVALS)
# A squared loss is min(n, p) squares of p terms: half a million take 4 GB in Pyomo, 0.4 GB in HiGHS.
_MODEL_TERMS = {
    "scip-bigm": 600_000,
    "scip-cone": 600_000,
    "scip-default": 600_000,
    "highs-cuts": 10_000_000,
}
# What takes longer than this factor of its time limit and these seconds, in which numba compiles and
# Pyomo builds, is stopped from outside.
_GRACE = (1.25, 180.0)
_POLL = 0.05
# Objectives and bounds of different solvers may differ by their gaps and tolerances.
_AGREE = 2.0


@dataclass(frozen=True)
class Row:
    """One solver on one instance.

    status : of the certificate; "stopped" (had to be killed), "failed", "skipped" say why in ``note``
    seconds, peak_mb : wall-clock time of the solve; largest resident memory of its process
    objective, bound, gap : evaluated here; None where there is none
    nodes, checked : relaxations solved, and whether the proof was confirmed, where known
    trace : [seconds, objective, bound] over time, where known
    """

    instance: str
    N: int
    weights: int
    samples: int
    solver: str
    time_limit: float
    threads: int
    asked_gap: float
    status: str
    version: str = ""
    seconds: float | None = None
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    nodes: int | None = None
    checked: bool | None = None
    peak_mb: float | None = None
    note: str = ""
    trace: list[list[float | None]] = field(default_factory=list)

    @property
    def settings(self) -> tuple[str, str, float, int, float]:
        """What identifies a row."""
        return self.instance, self.solver, self.time_limit, self.threads, self.asked_gap


@dataclass(frozen=True)
class Settings:
    """Settings of all solvers: seconds, threads, relative gap, and the interpreters of el0ps and l0bnb."""

    time_limit: float
    threads: int
    gap: float
    pythons: dict[str, str]


def run(problem: Any, empty: Row, settings: Settings) -> Row:
    """Solve in a child process; ``empty`` is the row to fill."""
    from spr_or.bench.named_instances import applies

    if empty.solver in RIVALS and not applies(problem):
        return replace(empty, note="takes single columns only")
    terms = min(problem.n, empty.weights) * empty.weights
    if terms > _MODEL_TERMS.get(empty.solver, math.inf):
        return replace(empty, note=f"its model would hold {terms / 1e6:.1f} million terms")
    with tempfile.TemporaryDirectory() as folder:
        answer_file = Path(folder) / "answer.json"
        if empty.solver in RIVALS:
            arguments = _rival_arguments(problem, empty, settings, Path(folder))
        else:
            arguments = [
                sys.executable, "-m", "spr_or.bench.solve_worker", empty.solver, empty.instance,
                str(settings.time_limit), str(settings.gap), str(settings.threads),
            ]  # fmt: skip
        factor, more = _GRACE
        limit = factor * settings.time_limit + more
        code, peak, message = _child([*arguments, str(answer_file)], settings.threads, limit)
        if code is None:
            return replace(empty, status="stopped", peak_mb=peak, note=f"no answer in {limit:g} s")
        if code != 0 or not answer_file.exists():
            return replace(empty, status="failed", peak_mb=peak, note=f"exit {code}: {message}")
        answer = json.loads(answer_file.read_text(encoding="utf-8"))
    if empty.solver in RIVALS:
        answer = _rival_answer(problem, answer, settings)
    objective, bound = answer["objective"], answer["bound"]
    known = objective is not None and bound is not None
    gap = max(0.0, objective - bound) / max(1e-10, abs(objective)) if known else None
    return replace(empty, **answer, gap=gap, peak_mb=peak)


def _rival_arguments(problem: Any, row: Row, settings: Settings, folder: Path) -> list[str]:
    import numpy as np

    from spr_or.bench import solve_rivals
    from spr_or.bench.named_instances import l0_terms

    data = folder / "problem.npz"
    terms = l0_terms(problem)._asdict()
    np.savez(data, **terms, gap=settings.gap, time_limit=settings.time_limit)
    return [settings.pythons[row.solver], str(Path(solve_rivals.__file__)), row.solver, str(data)]


def _rival_answer(problem: Any, answer: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The answer of el0ps or l0bnb in terms of our problem: the objective evaluated here."""
    import torch

    from spr_or.bench.named_instances import l0_terms
    from spr_or.solvers.certificate import Solved, certify

    scale = l0_terms(problem).scale
    weights = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    weights[problem.entities.index[:, 0]] = torch.tensor(answer["weights"], dtype=torch.float64)
    bound = -math.inf if answer["bound"] is None else answer["bound"] / scale
    ended = "optimal" if answer["seconds"] < settings.time_limit else "time_limit"
    certificate = certify(
        problem, Solved("bigm", "integer", "l0", answer["version"]),
        status=ended, bound=bound, seconds=answer["seconds"], weights=weights,
        indicators=problem.entities.rows(weights).abs().amax(-1).ne(0).double(),
        tolerance=_AGREE * settings.gap,
    )  # fmt: skip
    stated = answer["objective"] / scale
    agrees = math.isclose(stated, certificate.objective, rel_tol=_AGREE * settings.gap)
    return {
        "version": certificate.version,
        "status": certificate.status,
        "seconds": certificate.seconds,
        "objective": certificate.objective,
        "bound": certificate.bound if math.isfinite(certificate.bound) else None,
        "nodes": answer["nodes"],
        "note": "" if agrees else f"states the objective {stated:.9g}",
    }


def _child(arguments: list[str], threads: int, limit: float) -> tuple[int | None, float, str]:
    """Exit status (None: had to be killed), peak memory in MB, and the last line it wrote."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    environment = os.environ | {f"{name}_NUM_THREADS": str(threads) for name in names}
    process = None
    with tempfile.TemporaryFile() as errors:
        try:
            with held_interrupt():
                # The child ends with its input: when this process ends, in whatever way.
                process = subprocess.Popen(
                    arguments,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            start, peak = time.perf_counter(), 0.0
            while process.poll() is None and time.perf_counter() - start < limit:
                peak = max(peak, _peak_mb(process.pid))
                time.sleep(_POLL)
            code = process.poll()
        finally:
            if process is not None:
                process.kill()  # nothing happens to one that has ended
                process.communicate()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    return code, peak, lines[-1] if lines else ""


def _peak_mb(pid: int) -> float:
    """The largest resident memory of a process so far, in MB; 0 where the system does not report it."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError):
        pass
    return 0.0


def contradictions(rows: Sequence[Row]) -> list[str]:
    """Proofs that were not confirmed, wrong statements, bounds above another solver's objective."""
    found = [f"{r.instance}, {r.solver}: {r.note or 'proof'}" for r in rows if r.checked is False]
    found += [f"{r.instance}, {r.solver} {r.note}" for r in rows if r.note.startswith("states")]
    for instance, group in itertools.groupby(
        sorted(rows, key=lambda r: r.instance), lambda r: r.instance
    ):
        for a, b in itertools.permutations(group, 2):
            if a.bound is None or b.objective is None:
                continue
            if a.bound > b.objective * (1 + _AGREE * max(a.asked_gap, b.asked_gap)):
                found.append(
                    f"{instance}: {a.solver} proves at least {a.bound:.9g}, "
                    f"{b.solver} has {b.objective:.9g}"
                )
    return found

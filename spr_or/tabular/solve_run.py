"""One solve or a path of them on one's own data: what is solved, stored, and stopped by Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from spr_or.certified_solver.derived_m import AutomaticBound, solve_without_bounds
from spr_or.certified_solver.lambda_path import PathPoint, follow
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.proof.certificate import ProofCertificate, SearchProgress
from spr_or.tabular.folder import clear_pool, lambda_folder
from spr_or.tabular.limits import Limits
from spr_or.tabular.path_table import write_path
from spr_or.tabular.prepare import OwnData
from spr_or.tabular.recheck import stored
from spr_or.tabular.results import write_result
from spr_or.tabular.solve_log import solve_log
from spr_or.utils.interrupts import answered_by

GAP_PICTURE = "gap.png"
_WORTH_A_PICTURE = 5.0  # seconds of a search; drawing takes up to a second

Answer = tuple[ProofCertificate, AutomaticBound | None]
# For a lambda: the context in which it is solved, with a function that hears of the progress.
Watch = Callable[[float], AbstractContextManager[Callable[[SearchProgress], None]]]


@dataclass
class Stop:
    """Whether Ctrl-C was pressed, and whether a solver is at work that a second one may break off."""

    asked: bool = False
    working: bool = False


@dataclass(frozen=True)
class SolveRun:
    """What every lambda shares; ``M`` None: derived from the data and proven.

    ``time_limit`` and ``limits`` hold for each lambda; ``problem`` carries the lambda of a single solve, and
    ``start`` are weights for it to begin with.
    """

    data: OwnData
    problem: SparseTrainingProblem
    M: float | None
    gap: float
    time_limit: float | None
    device: str
    folder: Path
    stop: Stop
    watch: Watch
    limits: Limits = Limits()
    start: Tensor | None = None

    def solve(self, problem: SparseTrainingProblem, start: Tensor | None) -> Answer:
        """One lambda; the certificate has an empty ``trace`` where Ctrl-C came before any solution."""
        bound: AutomaticBound | None = None
        latest: SearchProgress | None = None
        self.stop.working = True
        with self.watch(problem.lam) as show, solve_log(self.folder, problem, self.gap) as log:

            def heard(now: SearchProgress) -> None:
                nonlocal latest
                latest = now
                show(now)
                log.round(now)

            def stop() -> bool:
                return self.stop.asked or self.limits.reached(latest) is not None

            if self.M is None:
                certificate, bound = solve_without_bounds(
                    problem, self.gap, self.time_limit, self.device, start=start, progress=heard,
                    stop=stop,
                )  # fmt: skip
            else:
                certificate = branch_and_bound(
                    problem, self.gap, self.time_limit, device=self.device, start=start,
                    progress=heard, stop=stop,
                )  # fmt: skip
            limit = self.limits.reached(latest)
            if certificate.status == "interrupted" and not self.stop.asked and limit is not None:
                certificate = replace(certificate, status=limit)
            log.end(certificate)
        self.stop.working = False
        return certificate, bound


def solve_one(run: SolveRun) -> ProofCertificate | None:
    """Solve, and write the results into the folder, with gap.png where the search took a while; None if
    stopped before any solution."""
    certificate, bound = run.solve(run.problem, run.start)
    if not certificate.trace:
        return None
    clear_pool(run.folder)
    write_result(run.folder, run.data, certificate, bound, run.gap)
    (run.folder / GAP_PICTURE).unlink(missing_ok=True)
    if certificate.seconds >= _WORTH_A_PICTURE:
        from spr_or.tabular.solve_figures import gap_over_time

        gap_over_time(certificate.trace, certificate, run.folder / GAP_PICTURE)
    return certificate


def solve_path(run: SolveRun, lams: list[float]) -> list[PathPoint]:
    """Solve for each lambda, largest first, and write each result and the path so far.

    What the folder already holds, and a check confirms, is not solved again.  Ctrl-C ends the path
    after the lambda at work, and there are no points if it came before the first solution.
    """
    places = {lam: lambda_folder(run.folder, number) for number, lam in enumerate(lams, 1)}

    def known(lam: float) -> ProofCertificate | None:
        return stored(places[lam], run.data, lam, run.problem.alpha, run.M, run.gap, lams)

    points: list[PathPoint] = []
    try:
        for point in follow(run.problem, lams, run.solve, known):
            if not point.certificate.trace:
                break
            if not point.stored:
                write_result(
                    places[point.lam], run.data, point.certificate, point.bound, run.gap, lams
                )
            points.append(point)
            write_path(run.folder, run.data, points)
            if run.stop.asked:
                break
    except KeyboardInterrupt:
        if not points:
            raise
    if points:
        from spr_or.tabular.solve_figures import over_lambda

        over_lambda(points, list(run.data.groups), run.folder / "path.png")
    return points


@contextmanager
def patient_interrupt(say: Callable[[str], object]) -> Iterator[Stop]:
    """Ctrl-C is noted and answered after the step that runs; a second one breaks it off."""
    stop = Stop()

    def note(signum: int, frame: Any) -> None:
        if stop.asked and stop.working:
            raise KeyboardInterrupt
        if not stop.asked:
            stop.asked = True
            say("stopping after this step; Ctrl-C again stops at once")

    with answered_by(note):
        yield stop

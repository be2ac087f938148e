"""`spr-or solve`: the groups of columns that explain one's own data best, with a proof."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from spr_or.certified_solver.derived_m import AutomaticBound
    from spr_or.certified_solver.lambda_path import Point
    from spr_or.certified_solver.proof_certificate import ProofCertificate
    from spr_or.certified_solver.search import Progress
    from spr_or.formulations.problem import SparseTrainingProblem
    from spr_or.tabular.prepare import OwnData

    Answer = tuple[ProofCertificate, AutomaticBound | None]

_SHOWN = 20  # rows of the table of groups


@dataclass
class _Stop:
    """Whether Ctrl-C was pressed, and whether a solver is at work that a second one may break off."""

    asked: bool = False
    working: bool = False


def command(
    data_file: Annotated[
        Path, typer.Argument(metavar="DATA", help="A CSV file with a header, or npz with X and y.")
    ],
    target: Annotated[
        str | None,
        typer.Option(help="Column to explain, or several as A,B; npz: the array (default y)."),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Groups of columns: a number of consecutive ones, a separator (age_1, age_2 "
            "with _), or a .json or .csv file column -> group. Default: one a column.",
        ),
    ] = None,
    lam: Annotated[float | None, typer.Option(help="Strength of the penalty.")] = None,
    alpha: Annotated[
        float, typer.Option(help="Share of the penalty on squared weights, 0 to 1.")
    ] = 0.1,
    M: Annotated[
        str,
        typer.Option(
            "--M", help="Bound on the weights: auto (proven to cut off no optimum) or a number."
        ),
    ] = "auto",
    path: Annotated[
        str | None,
        typer.Option(
            metavar="K|L1,L2,..",
            help="Instead of --lam: so many values of lambda down from the empty model, or a list.",
        ),
    ] = None,
    loss: Annotated[str, typer.Option(help="squared or logistic.")] = "squared",
    intercept: Annotated[
        bool | None,
        typer.Option(
            "--intercept/--no-intercept",
            help="An intercept without penalty. Default: with the squared loss.",
        ),
    ] = None,
    standardise: Annotated[
        bool,
        typer.Option(
            "--standardise",
            help="Divide columns by their standard deviation; lambda, alpha and M then apply to "
            "the weights of the divided columns.",
        ),
    ] = False,
    gap: Annotated[float, typer.Option(help="Relative gap to prove.")] = 1e-4,
    time_limit: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds, on a path for each lambda.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Results. Default: runs/solve-NAME-OF-DATA.")
    ] = None,
) -> None:
    """Choose the groups of columns that explain a target best, and prove it.

    Ctrl-C stops with the best so far and its proven gap. `spr-or check DIR` checks the result again.

    Exit status: 0 proven to the gap, 1 stopped by the time limit, 2 bad usage or data, 130 interrupted.
    """
    from rich.console import Console

    from spr_or.tabular.prepare import prepare

    folder = out or Path("runs") / f"solve-{data_file.stem}"
    try:
        bound = _bound_of(M)
        data = prepare(data_file, target, groups, loss, intercept, standardise)
        problem = data.problem(1.0 if lam is None else lam, alpha, bound or 1.0)
        _check_device(device)
        _check_limits(gap, time_limit)
        lams = _lambdas(problem, lam, path)
        folder.mkdir(parents=True, exist_ok=True)
        console = Console(highlight=False, soft_wrap=True)
        with _patient_interrupt() as stop:
            _describe(console, data, bound)
            run = _Run(data, problem, bound, gap, time_limit, device, folder, stop)
            made = _one(console, run) if path is None else _path(console, run, lams)
    except (ValueError, OSError) as error:
        raise _failed(str(error), 2) from None
    except KeyboardInterrupt:
        raise _failed("interrupted before there was a first solution", 130) from None
    if stop.asked:
        raise typer.Exit(130)
    raise typer.Exit(0 if all(c.gap <= gap for c in made) else 1)


@dataclass(frozen=True)
class _Run:
    """What every lambda shares; ``M`` None: auto."""

    data: OwnData
    problem: SparseTrainingProblem
    M: float | None
    gap: float
    time_limit: float | None
    device: str
    folder: Path
    stop: _Stop

    def solve(self, problem: SparseTrainingProblem, start: Tensor | None) -> Answer:
        """One lambda, with a line of progress."""
        from spr_or.certified_solver.derived_m import solve_without_bounds
        from spr_or.certified_solver.solver import branch_and_bound

        bound: AutomaticBound | None = None
        self.stop.working = True
        with _progress_line(problem.lam) as show:

            def listen(now: Progress) -> None:
                show(now)
                if self.stop.asked:
                    raise KeyboardInterrupt

            if self.M is None:
                certificate, bound = solve_without_bounds(
                    problem, self.gap, self.time_limit, self.device, start=start, progress=listen
                )
            else:
                certificate = branch_and_bound(
                    problem, self.gap, self.time_limit, device=self.device, start=start,
                    progress=listen,
                )  # fmt: skip
        self.stop.working = False
        if not certificate.proof.records:  # broken off before anything was proven
            raise KeyboardInterrupt
        return (_as_proven(certificate) if self.stop.asked else certificate), bound


def _as_proven(certificate: ProofCertificate) -> ProofCertificate:
    """A search broken off in the middle of a step may state more than its tree proves: state that."""
    found = certificate.check()
    if found.ok:
        return certificate
    return replace(certificate, bound=found.bound, status="interrupted")


def _one(console: Any, run: _Run) -> list[ProofCertificate]:
    from spr_or.tabular.results import write_result
    from spr_or.tabular.solve_figures import gap_over_time

    certificate, bound = run.solve(run.problem, None)
    write_result(run.folder, run.data, certificate, bound)
    gap_over_time(certificate.trace, certificate, run.folder / "gap.png")
    _report(console, run.data, certificate)
    console.print(
        f"results: {run.folder} (weights.csv, groups.csv, gap.png, result.json, certificate.json)"
    )
    return [certificate]


def _path(console: Any, run: _Run, lams: list[float]) -> list[ProofCertificate]:
    from spr_or.certified_solver.lambda_path import follow
    from spr_or.tabular.path_table import write_path
    from spr_or.tabular.results import stored, write_result
    from spr_or.tabular.solve_figures import over_lambda

    places = {lam: run.folder / f"lambda-{number:02d}" for number, lam in enumerate(lams, 1)}

    def known(lam: float) -> ProofCertificate | None:
        return stored(places[lam], run.data, lam, run.problem.alpha, run.M, run.gap)

    points: list[Point] = []
    console.print(
        f"{'lambda':>11} {'groups':>6} {'objective':>12} {'bound':>12} {'gap %':>8}  status"
    )
    try:
        for point in follow(run.problem, lams, run.solve, known):
            c = point.certificate
            if not point.stored:
                write_result(places[point.lam], run.data, c, point.bound)
            points.append(point)
            write_path(run.folder, run.data, points)
            console.print(
                f"{point.lam:11.5g} {int(c.indicators.sum()):6d} {c.objective:12.6g} "
                f"{c.bound:12.6g} {100 * c.gap:8.4f}  {c.status}"
                f"{' (from before)' if point.stored else ''}"
            )
            if run.stop.asked:
                break
    except KeyboardInterrupt:
        if not points:
            raise
    over_lambda(points, list(run.data.groups), run.folder / "path.png")
    console.print(
        f"results: {run.folder} (path.csv, path.json, path.png, and a folder for each lambda)"
    )
    return [point.certificate for point in points]


def _bound_of(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"--M must be auto or a positive number, got {text!r}")
    return value


def _check_limits(gap: float, time_limit: float | None) -> None:
    if not 0 <= gap < math.inf:
        raise ValueError(f"--gap must be a number of at least 0, got {gap}")
    if time_limit is not None and not time_limit >= 0:
        raise ValueError(f"--time-limit must be at least 0 seconds, got {time_limit}")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: {reason}") from None


def _lambdas(problem: SparseTrainingProblem, lam: float | None, path: str | None) -> list[float]:
    from spr_or.certified_solver.lambda_path import grid, zero_from

    if (lam is None) == (path is None):
        raise ValueError("give either --lam, or --path for many values of it")
    if path is None:
        return []
    if path.strip().isdigit():
        return grid(zero_from(problem), int(path))
    try:
        lams = sorted({float(part) for part in path.split(",")}, reverse=True)
    except ValueError:
        lams = []
    if not lams or not all(0 < value < math.inf for value in lams):
        raise ValueError(
            f"--path must be a number of values or a list of positive ones, got {path!r}"
        )
    return lams


def _describe(console: Any, data: OwnData, bound: float | None) -> None:
    table = data.table
    n, p = table.X.shape
    console.print(
        f"{data.path.name}: {n} rows, {p} columns in {len(data.groups)} groups, "
        f"target {', '.join(table.targets)}, {data.loss} loss, "
        f"{'with' if data.intercept else 'no'} intercept"
    )
    if table.classes:
        console.print(
            f"the model scores {table.classes[1]!r} (+1) against {table.classes[0]!r} (-1)"
        )
    if data.standardise:
        what = "a bound derived from the data" if bound is None else f"M = {bound:g}"
        console.print(
            "columns are divided by their standard deviation: lambda, alpha and M "
            f"({what}) apply to the weights of the divided columns; weights.csv has those of the "
            "columns as they are"
        )


def _report(console: Any, data: OwnData, certificate: ProofCertificate) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from spr_or.tabular.prepare import r_squared
    from spr_or.tabular.results import kept_groups

    problem = certificate.problem
    kept = kept_groups(data, certificate)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("group kept", overflow="fold")
    for heading in ("columns", "norm of weights", "largest / M"):
        table.add_column(heading, justify="right")
    for group in kept[:_SHOWN]:
        table.add_row(
            group.name, str(len(group.columns)), f"{group.norm:.4g}", f"{group.share_of_M:.2f}"
        )
    if kept:
        console.print(table)
    if len(kept) > _SHOWN:
        console.print(f"and {len(kept) - _SHOWN} more: see groups.csv")
    fit = f"mean loss {float(problem.loss_value(certificate.weights)):.6g}"
    if data.loss == "squared" and data.intercept:
        fit += f", R2 {r_squared(data, problem, certificate.weights):.4f}"
    console.print(f"{len(kept)} of {len(data.groups)} groups kept, {fit}")
    console.print(
        f"{certificate.status.replace('_', ' ')}: objective {certificate.objective:.8g}, proven "
        f"bound {certificate.bound:.8g}, gap {100 * certificate.gap:.4g} %, "
        f"{certificate.nodes} nodes, {certificate.seconds:.1f} s"
    )
    active = [
        name for name, on in zip(data.groups, certificate.m_active.tolist(), strict=True) if on
    ]
    if active:
        console.print(
            f"[yellow]M is active[/] at {len(active)} groups ({', '.join(active[:3])}): a larger M "
            "may give a better model; --M auto cuts off none"
        )


@contextmanager
def _progress_line(lam: float) -> Iterator[Callable[[Progress], None]]:
    """A line on stderr that says where the search stands."""
    from rich.console import Console
    from rich.progress import Progress as Line
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Line(*columns, console=Console(stderr=True), transient=True) as line:
        task = line.add_task(f"lambda {lam:.4g}: relaxation and first solutions")

        def show(now: Progress) -> None:
            line.update(
                task,
                description=f"lambda {lam:.4g}: incumbent {now.objective:.6g}, bound "
                f"{now.bound:.6g}, gap {100 * now.gap:.3f} %, {now.nodes} nodes, {now.open} open",
            )

        yield show


@contextmanager
def _patient_interrupt() -> Iterator[_Stop]:
    """Ctrl-C is noted and answered after the step that runs; a second one breaks it off."""
    stop = _Stop()

    def note(signum: int, frame: Any) -> None:
        if stop.asked and stop.working:
            raise KeyboardInterrupt
        if not stop.asked:
            stop.asked = True
            typer.echo("\nstopping after this step; Ctrl-C again stops at once", err=True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _failed(message: str, status: int) -> typer.Exit:
    typer.secho(f"error: {message}", fg="red", bold=True, err=True)
    return typer.Exit(status)

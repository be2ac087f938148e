"""`spr-or verify`: climb the ladder of bounds on small instances and check every claim."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr_or.utils.files import write_json
from spr_or.utils.import_path import load_object

if TYPE_CHECKING:
    from spr_or.formulations.problem import SparseTrainingProblem
    from spr_or.verification.ladder import Ladder


def command(
    instances: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INSTANCE]...",
            help="Names from --list, or module:function that returns a SparseTrainingProblem. "
            "Default: all.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Write all numbers to F.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="F", help="Draw the ladders to F (png, pdf, svg).")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.01, metavar="S", help="Seconds for each rung.")
    ] = 60.0,
    sweep_m: Annotated[
        bool,
        typer.Option(
            "--sweep-m",
            help="Instead: how the bounds of each instance move with M, drawn to --plot "
            "(default sweep_m.png).",
        ),
    ] = False,
    variant: Annotated[
        str,
        typer.Option(help="The closed form claimed to be exact: exact, printed or authors2022."),
    ] = "exact",
    show_list: Annotated[bool, typer.Option("--list", help="List the instances and stop.")] = False,
) -> None:
    """Prove the formulations against each other on small instances.

    Exit status: 0 all claims hold, 1 a claim fails, 2 bad usage, 130 interrupted.
    """
    import torch

    from spr_or.formulations.projected import VARIANTS
    from spr_or.verification.instances import INSTANCES

    torch.set_num_threads(1)  # the tensors are tiny: a second thread only waits for the first
    if show_list:
        for name, make in INSTANCES.items():
            typer.echo(f"{name:22s} {(make.__doc__ or '').splitlines()[0]}")
        raise typer.Exit
    if variant not in VARIANTS:
        raise typer.BadParameter(
            f"{variant!r} is none of {', '.join(VARIANTS)}", param_hint="--variant"
        )
    for path in (json_file, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"the folder of {path} does not exist: make it first")
    default = ["regression-8x3"] if sweep_m else list(INSTANCES)
    problems = [_problem(name) for name in instances or default]
    if sweep_m:
        _sweep(problems, json_file, plot or Path("sweep_m.png"), time_limit)
    else:
        _verify(problems, json_file, plot, time_limit, variant)


def _problem(name: str) -> SparseTrainingProblem:
    from spr_or.formulations.problem import SparseTrainingProblem
    from spr_or.verification.instances import INSTANCES

    if name in INSTANCES:
        return INSTANCES[name]()
    if ":" not in name:
        near = difflib.get_close_matches(name, INSTANCES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see --list."
        raise typer.BadParameter(f"no instance is called {name!r}: {hint}")
    try:
        make = load_object(name)
        problem = make() if callable(make) else make
    except (ImportError, AttributeError, ValueError) as error:
        raise typer.BadParameter(f"{name}: {error}") from None
    if not isinstance(problem, SparseTrainingProblem):
        raise typer.BadParameter(
            f"{name} returns {type(problem).__name__}, not a SparseTrainingProblem"
        )
    return problem


def _verify(
    problems: list[SparseTrainingProblem],
    json_file: Path | None,
    plot: Path | None,
    time_limit: float,
    variant: str,
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from spr_or.verification.ladder_of_bounds import verify

    console = Console()
    ladders: list[Ladder] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(problems))
        for problem in problems:

            def report(label: str, name: str = problem.name) -> None:
                progress.update(task, description=f"{name}: {label}")

            ladder = verify(problem, time_limit=time_limit, variant=variant, on_rung=report)
            ladders.append(ladder)
            progress.advance(task)
            _print_ladder(console, ladder)
            if ladder.interrupted:
                break
    ok = all(ladder.ok for ladder in ladders) and len(ladders) == len(problems)
    _print_summary(console, ladders)
    if json_file:
        write_json(json_file, {"ok": ok, "instances": [ladder.to_dict() for ladder in ladders]})
        console.print(f"numbers: {json_file}")
    if plot:
        from spr_or.verification.plots import plot_ladders

        plot_ladders(ladders, plot)
        console.print(f"picture: {plot}")
    if any(ladder.interrupted for ladder in ladders):
        raise typer.Exit(130)
    raise typer.Exit(0 if ok else 1)


def _print_ladder(console: Any, ladder: Ladder) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=f"{ladder.name}: {ladder.n_entities} entities",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("rung", "solver"):
        table.add_column(heading, no_wrap=True)
    for heading in ("value", "bound", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for rung in ladder.rungs:
        table.add_row(
            f"{rung.formulation} {rung.integrality}",
            rung.solver,
            f"{rung.value:.6f}",
            f"{rung.bound:.6f}",
            f"{rung.seconds:.2f}",
            rung.status,
        )
    console.print(table)
    for check in ladder.checks:
        mark = "[green]holds[/]" if check.holds else "[bold red]FAILS[/]"
        console.print(f"  {mark} {check.claim}", highlight=False, soft_wrap=True)
    console.print()


def _print_summary(console: Any, ladders: list[Ladder]) -> None:
    failed = [(ladder, c) for ladder in ladders for c in ladder.checks if not c.holds]
    claims = sum(len(ladder.checks) for ladder in ladders)
    if any(ladder.interrupted for ladder in ladders):
        console.print("[yellow]interrupted[/]: the claims of the last instance were not checked")
    if failed:
        console.print(f"[bold red]{len(failed)} of {claims} claims fail[/]")
        for ladder, check in failed:
            console.print(f"  {ladder.name}: {check.claim} (slack {check.slack:.3g})")
    else:
        console.print(f"[green]all {claims} claims hold[/] on {len(ladders)} instances")


def _sweep(
    problems: list[SparseTrainingProblem], json_file: Path | None, plot: Path, time_limit: float
) -> None:
    from rich.console import Console
    from rich.progress import track

    from spr_or.verification.bounds_over_m import FACTORS, bounds_at
    from spr_or.verification.plots import plot_sweep

    console = Console(stderr=True)
    wrong = [problem.name for problem in problems if not problem.convex]
    if wrong:
        raise typer.BadParameter(f"--sweep-m takes linear models: {', '.join(wrong)} is a network")
    points = [(problem, factor) for problem in problems for factor in FACTORS]
    found = [
        bounds_at(problem, factor, time_limit)
        for problem, factor in track(points, "bounds over M", console=console, transient=True)
    ]
    plot_sweep(found, plot)
    console.print(f"picture: {plot}")
    if json_file:
        write_json(json_file, {"sweep": [vars(point) for point in found]})
        console.print(f"numbers: {json_file}")

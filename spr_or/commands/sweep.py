"""`spr-or sweep`: many runs of one recipe, over processes or a Ray cluster."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr_or.commands.many_runs import (
    DryRun,
    Engine,
    EngineName,
    Gpus,
    Jobs,
    Resume,
    Set,
    carry_out,
    end_with,
    list_runs,
    load,
)
from spr_or.utils import outputs, terminal
from spr_or.utils.counted import counted

if TYPE_CHECKING:
    from rich.console import Console


def command(
    sweep: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP",
            help="A recipe and keys to vary: a TOML file, or a shipped name such as table01.",
        ),
    ],
    set_: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the sweep. Default: runs/NAME-OF-SWEEP.",
            callback=outputs.folder,
        ),
    ] = None,
    jobs: Jobs = 1,
    engine: EngineName = Engine.local,
    gpus: Gpus = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe with many settings.

    Runs that are finished are read, not repeated: the same command goes on after a stop.

    Exit status: 0 done, 1 runs have failed, 2 bad usage, sweep, recipe or data, or a folder in
    which another sweep is at work, 130 interrupted.
    """
    from spr_or.sweeps.sweep_file import load_sweep

    screen = terminal.console()
    plan = load(lambda: load_sweep(sweep, set_ or []))
    folder = out or Path("runs") / sweep.stem
    if dry_run:
        list_runs(screen, plan, folder)
        return
    result = carry_out(plan, folder, jobs, engine, gpus, resume, _find_data)
    _show(screen, plan, folder, result)
    end_with(result, plan, folder)


def _find_data(todo: Any) -> None:
    """Find the data of all runs, so that data that are missing end the sweep and not every run."""
    from spr_or.training.data.load import find_splits

    for data in dict.fromkeys(point.recipe.data for point in todo):
        find_splits(data)


def _show(screen: Console, plan: Any, folder: Path, result: Any) -> None:
    from spr_or.sweeps import show

    if not result.finished:
        return
    notes = {point.recipe.note for point in plan.runs} - {""}
    found = show.means(plan.keys, result.finished)
    terminal.show(screen, show.rich_table(plan.name, plan.keys, found))
    for note in notes:
        terminal.say(screen, note)
    for outcome, count in Counter(row["note"] for row in result.finished).items():
        if outcome:
            runs = counted(count, "run")
            terminal.say(screen, f"{runs}: {outcome}, see the column note of table.csv", "yellow")
    title = f"{plan.name}: {counted(len(result.finished), 'run')}"
    show.figure(title, plan.keys, result.finished, folder / "pareto.png")
    screen.print(f"{folder / 'table.csv'}, {folder / 'pareto.png'}")

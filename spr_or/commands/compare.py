"""`spr-or compare`: pruning methods side by side, from one dense network for each seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    list_runs,
    load,
)
from spr_or.utils import outputs, terminal


def command(
    comparison: Annotated[
        Path,
        typer.Argument(
            metavar="COMPARISON",
            help="Methods and budgets: a TOML file, or a shipped name such as digits.",
        ),
    ],
    set_: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the comparison. Default: runs/compare-NAME.",
            callback=outputs.folder,
        ),
    ] = None,
    jobs: Jobs = 1,
    engine: EngineName = Engine.local,
    gpus: Gpus = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Compare pruning methods at equal budgets.

    Each method gets the same dense network, budget, fine-tuning and removal. Methods, networks and
    budgets that do not fit each other are told before anything is trained. A method that fails
    or collapses later is a line of the table with its reason. Runs that are finished are read, not
    repeated: the same command goes on after a stop.

    Exit status: 0 done, 1 no run ended well, 2 bad usage, comparison, recipe or data, 130 interrupted.
    """
    from spr_or.sweeps.compare_file import load_comparison
    from spr_or.sweeps.comparison import PICTURES, rich_table, significance, write_comparison

    screen = terminal.console()
    plan = load(lambda: load_comparison(comparison, set_ or []))
    folder = out or Path("runs") / f"compare-{comparison.stem}"
    if dry_run:
        list_runs(screen, plan, folder)
        return
    result = carry_out(plan, folder, jobs, engine, gpus, resume, _check)
    lines = write_comparison(plan, folder)
    terminal.show(screen, rich_table(plan.name, lines))
    terminal.say(screen, significance(lines))
    screen.print(", ".join(str(folder / name) for name in ("comparison.md", *PICTURES)))
    if not result.finished:
        raise terminal.failed(
            f"no run ended well, see {folder / 'failed.csv'}; --resume runs them again", 1
        )


def _check(todo: Any) -> None:
    """What can be told before training, once for each method and budget."""
    from spr_or.sweeps.checking import check_all

    check_all(todo)

"""`spr-or run`: train, prune, compact and report what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr_or.utils import outputs, terminal

if TYPE_CHECKING:
    from rich.console import Console


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="A recipe: a TOML file, or a shipped name such as digits."
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key: spr.target_removed_pct=60, seeds=[1]. Repeat it for several keys.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the results. Default: runs/NAME-OF-RECIPE.",
            callback=outputs.folder,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run in that folder, from its last finished epoch."
        ),
    ] = False,
) -> None:
    """Train, prune, fine-tune and compact a network.

    A recipe trains a dense network, prunes it with SPR, fine-tunes what is left, removes the pruned
    filters for good (compacts) and writes a report. How much is to go is best said as a budget,
    spr.target_removed_pct=60; lambda then follows.

    Exit status: 0 done, 1 the run failed, removed nothing or left a network that guesses, 2 bad
    usage, recipe or data, or a folder that holds another run or in which one is at work, 130
    interrupted.
    """
    from spr_or.training import distributed
    from spr_or.training.checkpoint import CheckpointError
    from spr_or.training.data.parquet import DataError
    from spr_or.training.recipe import RecipeError, load_recipe
    from spr_or.training.run_progress import RunDisplay
    from spr_or.training.runner import FolderInUse, run_recipe
    from spr_or.training.seed_run import RunError
    from spr_or.utils.files import DiskFull

    rank, processes = distributed.launched()
    who = f"process {rank} of {processes}: " if processes > 1 else ""

    def stop(message: object, status: int) -> typer.Exit:
        return terminal.failed(f"{who}{message}", status)

    try:
        checked = load_recipe(recipe, set_ or [])
        folder = out or Path("runs") / recipe.stem
        summary = run_recipe(checked, folder, resume=resume, display=RunDisplay())
    except (RecipeError, DataError, FolderInUse) as error:
        raise stop(error, 2) from None
    except (RunError, CheckpointError, DiskFull) as error:
        raise stop(error, 1) from None
    except KeyboardInterrupt:
        raise stop("interrupted; --resume continues from the last finished epoch", 130) from None
    if rank == 0:
        screen = terminal.console()
        _print_summary(screen, summary)
        screen.print(f"report: {folder / 'report.html'}")
    if processes > 1:
        distributed.leave()


def _print_summary(screen: Console, summary: dict[str, Any]) -> None:
    from spr_or.training.report.rows import CLOCK_ROWS, RATIO_ROWS, ROWS, shown

    seeds = len(summary.get("seeds", [0]))
    deviations = summary["std"] if seeds > 1 else {}
    optional = [row for row in (*RATIO_ROWS, *CLOCK_ROWS) if row[1] in summary]
    columns: tuple[str, ...] = ("measure", "value")
    if seeds > 1:
        columns = ("measure", f"mean of {seeds} seeds", "±")
    rows = []
    for label, key, form in (*ROWS, *optional):
        spread = shown(form, deviations[key]) if key in deviations else ""
        rows.append((label, shown(form, summary[key]), spread)[: len(columns)])
    title = f"{summary['name']}: {summary['model']} on {summary['dataset']}"
    terminal.show(screen, terminal.table(columns, rows, title=title, text=("measure",)))

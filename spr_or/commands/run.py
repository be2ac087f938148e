"""`spr-or run`: train, prune, compact and report what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    recipe: Annotated[Path, typer.Argument(help="A recipe in TOML, such as those in experiments.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key: spr.lam=20, seeds=[1]."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the results. Default: runs/NAME-OF-RECIPE."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue what stands in the folder, if anything.")
    ] = False,
) -> None:
    """Train dense, prune with SPR, fine-tune, compact, and write a report.

    Exit status: 0 done, 1 the run failed, 2 bad usage or recipe, 130 interrupted.
    """
    from rich.console import Console

    from spr_or.training import distributed
    from spr_or.training.checkpoint import CheckpointError
    from spr_or.training.data.parquet import DataError
    from spr_or.training.recipe import RecipeError, load_recipe
    from spr_or.training.run_progress import RunDisplay
    from spr_or.training.runner import run_recipe
    from spr_or.training.seed_run import RunError
    from spr_or.utils.files import DiskFull

    errors = Console(stderr=True)
    rank, processes = distributed.launched()
    who = f"process {rank} of {processes}: " if processes > 1 else ""

    def stop(message: object, status: int) -> typer.Exit:
        errors.print(f"{who}error: {message}", style="bold red", markup=False, soft_wrap=True)
        return typer.Exit(status)

    try:
        checked = load_recipe(recipe, set_ or [])
        folder = out or Path("runs") / recipe.stem
        summary = run_recipe(checked, folder, resume=resume, display=RunDisplay())
    except RecipeError as error:
        raise stop(error, 2) from None
    except (RunError, DataError, CheckpointError, DiskFull) as error:
        raise stop(error, 1) from None
    except KeyboardInterrupt:
        raise stop("interrupted; --resume continues from the last finished epoch", 130) from None
    if rank > 0:
        return
    console = Console()
    _print_summary(console, summary)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _print_summary(console: Any, summary: dict[str, Any]) -> None:
    from rich.table import Table

    from spr_or.training.report.rows import CLOCK_ROWS, RATIO_ROWS, ROWS, shown

    seeds = len(summary.get("seeds", [0]))
    title = f"{summary['name']}: {summary['model']} on {summary['dataset']}"
    table = Table(title=title, title_justify="left", show_header=seeds > 1)
    table.add_column("")
    table.add_column(f"mean of {seeds} seeds", justify="right")
    if seeds > 1:
        table.add_column("±", justify="right")
    for label, key, form in ROWS:
        deviation = [form.format(summary["std"][key])] if seeds > 1 else []
        table.add_row(label, form.format(summary[key]), *deviation)
    for label, key, form in (*RATIO_ROWS, *CLOCK_ROWS):
        if key in summary:
            table.add_row(label, shown(form, summary[key]))
    console.print(table)

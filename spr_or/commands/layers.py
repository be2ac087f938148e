"""`spr-or layers`: the input channels that reproduce each layer best, and what is proven of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a finished `spr-or run`.")
    ],
    seconds: Annotated[
        float, typer.Option("--time", min=1.0, metavar="S", help="For all layers together.")
    ] = 600.0,
    gap: Annotated[
        float, typer.Option(min=0.0, help="Relative gap at which a layer counts as proven.")
    ] = 0.01,
    keep: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Share of channels asked for where SPR kept all or none."
        ),
    ] = 0.9,
    max_channels: Annotated[
        int, typer.Option(min=2, help="Layers with more input channels are skipped.")
    ] = 64,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", metavar="NAME", help="Only this one; repeat.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Solve stored layers again whose gap was not proven.")
    ] = False,
) -> None:
    """Compare SPR's masks and magnitude pruning with the best channels found, and a proven bound.

    Layers that are done are stored in RUN/layers and read back: run it again to go on after Ctrl-C.
    Exit status: 0 done, 1 the run cannot be studied, 130 interrupted.
    """
    from rich.console import Console

    from spr_or.layer_study.layer_report import table, write_report
    from spr_or.layer_study.run import LayersError, Settings, study_run
    from spr_or.layer_study.study_progress import StudyDisplay
    from spr_or.training.data.parquet import DataError
    from spr_or.training.recipe import RecipeError

    console, errors = Console(), Console(stderr=True)
    settings = Settings(gap, keep, max_channels)
    try:
        with StudyDisplay() as display:
            finished = study_run(
                run, settings, seconds=seconds, only=layer, again=again, display=display
            )
    except (LayersError, RecipeError, DataError) as error:
        errors.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if finished.studies:
        console.print(table(finished.studies))
    for name, reason in finished.skipped.items():
        console.print(f"skipped {name}: {reason}", highlight=False, soft_wrap=True, markup=False)
    for note in finished.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    for path in write_report(run, finished):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True, markup=False)
    if finished.left or any(study.status == "interrupted" for study in finished.studies):
        left = ", ".join(finished.left) or "one with an open gap"
        errors.print(f"not finished: {left}; the same command goes on", style="yellow")
        raise typer.Exit(130)

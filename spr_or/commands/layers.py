"""`spr-or layers`: the input channels that reproduce each layer best, and what is proven of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr_or.utils import terminal


def command(
    run: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a finished `spr-or run`.")
    ],
    time_limit: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="For all layers together.")
    ] = 600.0,
    gap: Annotated[
        float,
        typer.Option(min=0.0, metavar="X", help="Relative gap at which a layer counts as proven."),
    ] = 0.01,
    keep: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="X",
            help="Share of channels asked for where SPR kept all or none.",
        ),
    ] = 0.9,
    max_channels: Annotated[
        int, typer.Option(min=2, metavar="N", help="Layers with more input channels are skipped.")
    ] = 64,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="NAME", help="Only this one; give it several times."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Take up the stored layers whose gap was left open, too."),
    ] = False,
) -> None:
    """Compare the channels SPR kept with the best of each layer.

    For each convolution an exact problem is solved: which input channels reproduce its output best.
    SPR's masks and magnitude pruning are set beside the answer. Layers that are done are stored in
    DIR/layers and read back: the same command goes on after a stop.

    Exit status: 0 done, 1 the time limit left the gap of a layer open, 2 the run cannot be studied,
    130 interrupted.
    """

    from spr_or.layer_study.layer_report import table, write_report
    from spr_or.layer_study.study_progress import StudyDisplay
    from spr_or.layer_study.study_run import LayersError, Settings, study_run
    from spr_or.training.data.parquet import DataError
    from spr_or.training.recipe import RecipeError
    from spr_or.utils.files import DiskFull

    screen = terminal.console()
    settings = Settings(gap, keep, max_channels)
    try:
        with StudyDisplay() as display:
            finished = study_run(
                run, settings, seconds=time_limit, only=layer, again=resume, display=display
            )
    except (LayersError, RecipeError, DataError) as error:
        raise terminal.failed(error, 2) from None
    except DiskFull as error:
        raise terminal.failed(error, 1) from None
    if finished.studies:
        terminal.show(screen, table(finished.studies))
    for name, reason in finished.skipped.items():
        terminal.say(screen, f"skipped {name}: {reason}")
    for note in finished.notes:
        terminal.say(screen, f"note: {note}")
    for path in write_report(run, finished):
        terminal.say(screen, f"wrote {path}")
    if finished.left or any(study.status == "interrupted" for study in finished.studies):
        left = ", ".join(finished.left) or "one with an open gap"
        terminal.complain(f"not finished: {left}; the same command goes on")
        raise typer.Exit(130)
    unproven = [study.layer for study in finished.studies if study.status != "optimal"]
    if unproven:
        names = ", ".join(unproven)
        terminal.complain(f"not proven to the gap: {names}; --resume takes them up again")
        raise typer.Exit(1)

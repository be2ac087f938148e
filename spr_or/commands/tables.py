"""`spr-or tables`: the paper's tables, with our runs beside what was published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr_or.utils import outputs, terminal
from spr_or.utils.counted import counted


def command(
    runs: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="A folder of runs, from spr-or run or sweep, however deep."
        ),
    ] = Path("runs"),
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Where tables.md, tables.csv and figures go.",
            callback=outputs.folder,
        ),
    ] = Path("runs/tables"),
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The published figures. Default: those shipped."),
    ] = None,
) -> None:
    """Put own runs beside the published figures.

    What was not run says so.

    Exit status: 0 done, 1 the disk is full, 2 bad usage or no runs, 130 interrupted.
    """
    from spr_or.paper_tables.ours import find_runs, settings
    from spr_or.paper_tables.published import REFERENCE, read_epoch_times, read_published
    from spr_or.paper_tables.tables_report import write_report
    from spr_or.utils.files import DiskFull

    errors = terminal.console(stderr=True)
    folder = reference or REFERENCE
    try:
        published, times = read_published(folder), read_epoch_times(folder)
        found, unfinished = find_runs(runs, lambda text: terminal.say(errors, text, "yellow"))
    except ValueError as error:
        raise terminal.failed(error, 2) from None
    try:
        write_report(out, settings(found), published, times, unfinished)
    except DiskFull as error:
        raise terminal.failed(error, 1) from None
    screen = terminal.console()
    screen.print(f"{counted(len(found), 'run')} read, {len(unfinished)} not finished")
    terminal.say(screen, f"wrote {out / 'tables.md'}")

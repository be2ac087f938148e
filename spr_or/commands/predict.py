"""`spr-or predict`: predictions of a result of `spr-or solve` for new data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr_or.utils import terminal
from spr_or.utils.first_imports import collector_paused


def command(
    result: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that spr-or solve wrote.")
    ],
    data_file: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="New data: any kind of file that spr-or solve reads, with or "
            "without the target.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV file for the predictions.  [default: the screen]"),
    ] = None,
) -> None:  # fmt: skip
    """Predict the target of new data with a stored result.

    The data are prepared as they were for the fit: the same levels of words, the same scaling, the
    same means in gaps. Only the columns of the groups kept are needed. There is one line for each
    row of the data. With the logistic loss it holds the likelier label and the probability of the
    label that the model scores, with the Poisson loss the rate.

    For a path over lambda whose lambda was chosen by --cv or --ic, DIR may be the folder of the
    path.

    Exit status: 0 done, 2 no result, or data that do not fit it, 130 interrupted.
    """
    with collector_paused():
        from spr_or.tabular.predictions import predict, result_in, table_text
        from spr_or.tabular.source import TableError
        from spr_or.utils.files import write_text

    try:
        found = predict(result_in(result), data_file)
        text = table_text(found)
        if out is not None:
            write_text(out, text)
    except (TableError, OSError) as error:
        raise terminal.failed(error, 2) from None
    for note in found.notes:
        terminal.complain(note, "yellow")
    if out is None:
        typer.echo(text, nl=False)
    else:
        terminal.say(terminal.console(), f"{len(found.rows)} predictions: {out}")

"""`spr-or check`: check what `spr-or solve` left, from the data alone and in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr_or.utils import terminal


def command(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="Folders that spr-or solve wrote, paths included."),
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The data file, if it is no longer where it was."),
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="In rational arithmetic: squared loss, up to 40 weights."),
    ] = False,
) -> None:
    """Check what spr-or solve left, from the data.

    The solution, the proof of its bound and the bound M on the weights are computed again; no
    number of the solver is trusted.

    Exit status: 0 everything holds, 1 something does not, 2 nothing to check, 130 interrupted.
    """
    import torch

    from spr_or.tabular.read import TableError
    from spr_or.tabular.results import recheck

    torch.set_num_threads(1)  # one order of adding, the same every time
    fine = True
    screen = terminal.console()
    try:
        for folder in _expanded(folders):
            with terminal.progress() as progress:
                progress.step(f"checking {folder}")
                found = recheck(folder, data, exact)
            for problem in found.problems:
                typer.secho(f"{folder}: {terminal.printable(problem)}", fg="red", err=True)
            if found.ok:
                M = "M proven" if found.m_proven else "M as given, not proven"
                numbers = f"objective {found.objective:.10g}, bound {found.bound:.10g}"
                terminal.say(screen, f"{folder}: holds; {numbers}, {M}")
            fine = fine and found.ok
    except TableError as error:
        raise terminal.failed(error, 2) from None
    raise typer.Exit(0 if fine else 1)


def _expanded(folders: list[Path]) -> list[Path]:
    """The folder of a path stands for those of its lambdas; a certificate for its folder."""
    found = []
    for folder in folders:
        if folder.name in ("certificate.json", "result.json"):
            folder = folder.parent
        inside = sorted(path.parent for path in folder.glob("lambda-*/result.json"))
        alone = (folder / "result.json").exists() or not inside
        found += [folder, *inside] if alone else inside
    return found

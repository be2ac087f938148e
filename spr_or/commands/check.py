"""`spr-or check`: check what `spr-or solve` left, from the data alone and in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders that spr-or solve wrote, paths included."),
    ],
    data: Annotated[
        Path | None, typer.Option(help="The data file, where it is no longer in its old place.")
    ] = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="In rational arithmetic: squared loss, up to 40 weights."),
    ] = False,
) -> None:
    """Check solutions, proofs and bounds M again; nothing that the solver computed is trusted.

    Exit status: 0 everything holds, 1 something does not, 2 nothing to check.
    """
    import torch

    from spr_or.tabular.read import TableError
    from spr_or.tabular.results import recheck

    torch.set_num_threads(1)  # one order of adding, the same every time
    fine = True
    try:
        for folder in _expanded(folders):
            found = recheck(folder, data, exact)
            for problem in found.problems:
                typer.secho(f"{folder}: {problem}", fg="red", err=True)
            if not found.problems:
                M = "M proven" if found.m_proven else "M as given, not proven"
                typer.echo(
                    f"{folder}: holds; objective {found.objective:.10g}, bound {found.bound:.10g}, {M}"
                )
            fine = fine and not found.problems
    except TableError as error:
        typer.secho(f"error: {error}", fg="red", bold=True, err=True)
        raise typer.Exit(2) from None
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

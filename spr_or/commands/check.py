"""`spr-or check`: check what `spr-or solve` left, from the data alone and in a fresh process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spr_or.utils import terminal
from spr_or.utils.first_imports import collector_paused

if TYPE_CHECKING:
    from rich.console import Console

    from spr_or.tabular.recheck import Recheck


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
    number of the solver is trusted. What was checked is printed: data, target, loss, lambda, alpha
    and M. Stated numbers and tables have to agree with what was computed.

    Exit status: 0 everything holds, 1 something does not, 2 nothing to check, or a file that
    cannot be read, 130 interrupted.
    """
    with collector_paused():
        import torch

        from spr_or.tabular.folder import pool_folders
        from spr_or.tabular.pool import pool_faults
        from spr_or.tabular.recheck import path_faults, recheck
        from spr_or.tabular.source import TableError
        from spr_or.tabular.stored_result import read_result

    torch.set_num_threads(1)  # one order of adding, the same every time
    fine = True
    screen = terminal.console()
    try:
        for folder in map(_folder, folders):
            inside = _lambdas(folder)
            alone = (folder / "result.json").exists() or not inside
            faults = path_faults(folder) if inside else []
            fine = _tell(folder, faults) and fine
            pool = pool_folders(folder)
            checked = []
            for place in [folder, *inside, *pool] if alone else inside:
                with terminal.progress() as progress:
                    progress.step(f"checking {place}")
                    found = recheck(place, data, exact, _shown(progress))
                fine = _tell(place, found.problems) and fine
                checked.append((place, found))
                if found.ok:
                    _report(screen, place, found)
            if pool or (folder / "pool.json").exists():
                members = [(p, f) for p, f in checked if p not in inside]
                results = [read_result(place) for place, _ in members]
                faults = pool_faults(folder, results, [found.bound for _, found in members])
                fine = _tell(folder, faults) and fine
    except TableError as error:
        raise terminal.failed(error, 2) from None
    raise typer.Exit(0 if fine else 1)


def _shown(progress: terminal.Progress) -> Callable[[int, int], None]:
    """Tells how many records of a proof are done."""
    return lambda done, of: progress.detail(f"{done} of {of} records")


def _folder(given: Path) -> Path:
    """A certificate or result stands for its folder."""
    return given.parent if given.name in ("certificate.json", "result.json") else given


def _lambdas(folder: Path) -> list[Path]:
    """The results of a path, which its folder stands for."""
    from spr_or.tabular.folder import lambda_folders

    return lambda_folders(folder)


def _tell(folder: Path, problems: list[str]) -> bool:
    """Say what does not hold; whether there is nothing of the kind."""
    for problem in problems:
        terminal.complain(f"{folder}: {problem}", "red")
    return not problems


def _report(screen: Console, folder: Path, found: Recheck) -> None:
    """What holds, and of what."""
    M = "M proven" if found.m_proven else "M as given, not proven"
    terminal.say(
        screen,
        f"{folder}: holds; objective {found.objective:.10g}, bound {found.bound:.10g}, "
        f"gap {100 * found.gap:.4g} %, {M}",
    )
    about = found.subject
    if about is None:
        return
    low, high = about.M
    size = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    known = "derived from the data and proven" if found.m_proven else "given"
    for line in (
        f"data {about.file.name} (SHA-256 {about.sha256[:12]}), target {', '.join(about.targets)}, "
        f"{about.rows} rows, {about.columns} columns in {about.groups} groups",
        f"{about.loss} loss, lambda {about.lam:.6g}, alpha {about.alpha:g}, M {size} ({known}), "
        f"{'with' if about.intercept else 'no'} intercept, "
        f"{'standardised' if about.standardised else 'not standardised'}",
        *about.rules,
    ):
        terminal.say(screen, f"  {line}", indent="  ")

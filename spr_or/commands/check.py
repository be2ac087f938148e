"""`spr-or check`: check what `spr-or solve` left, from the data alone and in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

        from spr_or.tabular.folder import alpha_folders
        from spr_or.tabular.source import TableError

    torch.set_num_threads(1)  # one order of adding, the same every time
    fine = True
    screen = terminal.console()
    try:
        for folder in map(_folder, folders):
            paths = alpha_folders(folder) or [folder]
            found = {}
            for path in paths:
                for place in _places(path):
                    found[place] = _recheck(screen, place, data, exact)
                    fine = found[place].ok and fine
            for place in paths:
                fine = (
                    _tell(place, _path_faults(place, found) + _pool_faults(place, found)) and fine
                )
            fine = _tell(folder, _choice_faults(folder, found)) and fine
    except TableError as error:
        raise terminal.failed(error, 2) from None
    raise typer.Exit(0 if fine else 1)


def _folder(given: Path) -> Path:
    """A certificate or result stands for its folder."""
    return given.parent if given.name in ("certificate.json", "result.json") else given


def _places(folder: Path) -> list[Path]:
    """The results in a folder: its own with its pool, those of a path, or, wrongly, both."""
    from spr_or.tabular.folder import lambda_folders, pool_folders

    inside = lambda_folders(folder)
    own = (folder / "result.json").exists() or not inside
    return [*([folder] if own else []), *inside, *(pool_folders(folder) if own else [])]


def _recheck(screen: Console, place: Path, data: Path | None, exact: bool) -> Recheck:
    """Check one result, and say what was found."""
    from spr_or.tabular.recheck import recheck

    with terminal.progress() as progress:
        progress.step(f"checking {place}")
        found = recheck(place, data, exact, _shown(progress))
    _tell(place, found.problems)
    if found.ok:
        _report(screen, place, found)
    return found


def _path_faults(folder: Path, found: Mapping[Path, Recheck]) -> list[str]:
    """What does not fit together of a path."""
    from spr_or.tabular.folder import lambda_folders
    from spr_or.tabular.recheck import path_faults

    inside = lambda_folders(folder)
    return path_faults(folder, inside, [found[place].result for place in inside]) if inside else []


def _pool_faults(folder: Path, found: Mapping[Path, Recheck]) -> list[str]:
    """What does not fit together of a result and its pool."""
    from spr_or.tabular.folder import pool_folders
    from spr_or.tabular.pool import pool_faults

    members = pool_folders(folder)
    if not members and not (folder / "pool.json").exists():
        return []
    if folder not in found:
        return ["a pool is in the folder, and the result that it belongs to is not"]
    own = [found[place] for place in (folder, *members)]
    return pool_faults(folder, [one.result for one in own], [one.bound for one in own])


def _choice_faults(folder: Path, found: Mapping[Path, Recheck]) -> list[str]:
    """What does not hold of the choice among the lambdas of a path, or of several."""
    from spr_or.tabular.folder import path_results
    from spr_or.tabular.stored_choice import NAME, TABLE, choice_faults

    places = path_results(folder)
    if not places or not any((folder / name).exists() for name in (NAME, TABLE)):
        return []
    own = [found[place] for place in places]
    return choice_faults(folder, places, [one.result for one in own], [one.criteria for one in own])


def _shown(progress: terminal.Progress) -> Callable[[int, int], None]:
    """Tells how many records of a proof are done."""
    return lambda done, of: progress.detail(f"{done} of {of} records")


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

"""`spr-or sweep`: many runs of one recipe, over processes or a Ray cluster."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr_or.utils import outputs, terminal
from spr_or.utils.counted import counted

if TYPE_CHECKING:
    from rich.console import Console


class Engine(StrEnum):
    """Where the runs of a sweep are computed."""

    local = "local"
    ray = "ray"


def command(
    sweep: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP",
            help="A recipe and keys to vary: a TOML file, or a shipped name such as table01.",
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe in all runs."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the sweep. Default: runs/NAME-OF-SWEEP.",
            callback=outputs.folder,
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs at once on this machine.")
    ] = 1,
    engine: Annotated[
        Engine,
        typer.Option(metavar="NAME", help="local (processes here) or ray (a Ray cluster)."),
    ] = Engine.local,
    gpus: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="X", help="Ray: share of a GPU for each run. Default: 1 if there is any."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Take up the runs that failed before, too; they are left alone else."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and where they stand; start none.")
    ] = False,
) -> None:
    """Run a recipe with many settings.

    Runs that are finished are read, not repeated: the same command goes on after a stop.

    Exit status: 0 done, 1 runs have failed, 2 bad usage, sweep, recipe or data, or a folder in
    which another sweep is at work, 130 interrupted.
    """
    from spr_or.sweeps.sweep import run_sweep
    from spr_or.sweeps.sweep_file import SweepError, load_sweep
    from spr_or.training.data.parquet import DataError
    from spr_or.training.recipe import RecipeError
    from spr_or.utils.files import DiskFull

    errors, screen = terminal.console(stderr=True), terminal.console()
    try:
        plan = load_sweep(sweep, set_ or [])
        folder = out or Path("runs") / sweep.stem
        if dry_run:
            _list(screen, plan, folder)
            return
        terminal.say(errors, f"{plan.name}: {counted(len(plan.runs), 'run')} in {folder}")
        pool = _pool(engine, jobs, gpus)
        result = run_sweep(
            plan,
            folder,
            pool,
            retry_failed=resume,
            # The machines of a Ray cluster have folders of their own.
            on_begin=_find_data if engine is Engine.local else lambda todo: None,
            on_end=_teller(errors, plan),
            warn=lambda message: terminal.say(errors, f"warning: {message}", "yellow"),
        )
    except (SweepError, RecipeError, DataError) as error:
        raise terminal.failed(error, 2) from None
    except DiskFull as error:
        raise terminal.failed(error, 1) from None
    except ConnectionError as error:
        raise terminal.failed(f"no Ray cluster answers at $RAY_ADDRESS: {error}", 2) from None
    except ImportError as error:
        raise terminal.failed(
            f"--engine ray needs Ray: pip install 'spr-or[ray]' ({error})", 2
        ) from None
    except KeyboardInterrupt:
        raise terminal.failed("interrupted; the same command continues", 130) from None
    _show(screen, plan, folder, result)
    if result.failed:
        raise terminal.failed(
            f"{len(result.failed)} of {counted(len(plan.runs), 'run')} failed, see {folder / 'failed.csv'}; "
            "--resume runs them again",
            1,
        )


def _pool(engine: Engine, jobs: int, gpus: float | None) -> Any:
    from spr_or.sweeps.pools import LocalPool, RayPool

    return RayPool(jobs, gpus=gpus) if engine is Engine.ray else LocalPool(jobs)


def _find_data(todo: Any) -> None:
    """Find the data of all runs, so that data that are missing end the sweep and not every run."""
    from spr_or.training.data.load import find_splits

    for data in dict.fromkeys(point.recipe.data for point in todo):
        find_splits(data)


def _list(screen: Console, plan: Any, folder: Path) -> None:
    from spr_or.sweeps.jobs import dense_folder_name, dense_recipe
    from spr_or.sweeps.sweep import state_of

    rows, shared = [], set()
    for point in plan.runs:
        values = [str(point.changes.get(key, "")) for key in plan.keys]
        dense = "none"
        if point.recipe.dense.epochs:
            dense = dense_folder_name(dense_recipe(point.recipe))
            shared.add(dense)
        rows.append((*values, str(point.seed), state_of(point, folder.absolute()), dense))
    columns = (*plan.keys, "seed", "state", "dense phase")
    title = f"{plan.name} in {folder}"
    terminal.show(screen, terminal.table(columns, rows, title=title, text=("state", "dense phase")))
    screen.print(f"{counted(len(plan.runs), 'run')}, {counted(len(shared), 'dense phase')}")


def _teller(errors: Console, plan: Any) -> Any:
    """A line for each run that ends."""

    def tell(progress: Any) -> None:
        outcome = f"failed: {progress.error}" if progress.error else "done"
        line = f"[{progress.done}/{progress.total}] {progress.job.name}: {outcome}"
        terminal.say(errors, line, "red" if progress.error else None)

    return tell


def _show(screen: Console, plan: Any, folder: Path, result: Any) -> None:
    from spr_or.sweeps import show

    if not result.finished:
        return
    notes = {point.recipe.note for point in plan.runs} - {""}
    found = show.means(plan.keys, result.finished)
    terminal.show(screen, show.rich_table(plan.name, plan.keys, found))
    for note in notes:
        terminal.say(screen, note)
    for outcome, count in Counter(row["note"] for row in result.finished).items():
        if outcome:
            runs = counted(count, "run")
            terminal.say(screen, f"{runs}: {outcome}, see the column note of table.csv", "yellow")
    title = f"{plan.name}: {counted(len(result.finished), 'run')}"
    show.figure(title, plan.keys, result.finished, folder / "pareto.png")
    screen.print(f"{folder / 'table.csv'}, {folder / 'pareto.png'}")

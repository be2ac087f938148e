"""`spr-or sweep`: many runs of one recipe, over processes or a Ray cluster."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Engine(StrEnum):
    """Where the runs of a sweep are computed."""

    local = "local"
    ray = "ray"


def command(
    sweep: Annotated[Path, typer.Argument(help="A sweep file in TOML; docs/sweep.md shows one.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe in all runs."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the sweep. Default: runs/NAME-OF-SWEEP."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once on this machine.")] = 1,
    engine: Annotated[
        Engine, typer.Option(help="Processes here, or a Ray cluster.")
    ] = Engine.local,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, help="Ray: share of a GPU for each run. Default: 1 if there is any."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run those again that failed before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and where they stand; start none.")
    ] = False,
) -> None:
    """Run every setting of a sweep that is not finished yet; start it again to continue.

    Exit status: 0 done, 1 runs have failed, 2 bad usage, sweep or recipe, 130 interrupted.
    """
    from rich.console import Console

    from spr_or.sweeps.sweep import run_sweep
    from spr_or.sweeps.sweep_file import SweepError, load_sweep
    from spr_or.training.recipe import RecipeError

    errors, console = Console(stderr=True), Console()

    def stop(message: object, status: int) -> typer.Exit:
        errors.print(f"error: {message}", style="bold red", markup=False, soft_wrap=True)
        return typer.Exit(status)

    try:
        plan = load_sweep(sweep, set_ or [])
        folder = out or Path("runs") / sweep.stem
        if dry_run:
            _list(console, plan, folder)
            return
        errors.print(f"{plan.name}: {len(plan.runs)} runs in {folder}", highlight=False)
        pool = _pool(engine, jobs, gpus)
        result = run_sweep(
            plan, folder, pool, retry_failed=retry_failed, on_end=_teller(errors, plan)
        )
    except (SweepError, RecipeError) as error:
        raise stop(error, 2) from None
    except ConnectionError as error:
        raise stop(f"no Ray cluster answers at $RAY_ADDRESS: {error}", 2) from None
    except ImportError as error:
        raise stop(f"--engine ray needs Ray: pip install 'spr-or[ray]' ({error})", 2) from None
    except KeyboardInterrupt:
        raise stop("interrupted; the same command continues", 130) from None
    _show(console, plan, folder, result)
    if result.failed:
        raise stop(
            f"{len(result.failed)} of {len(plan.runs)} runs failed, see {folder / 'failed.csv'}; "
            "--retry-failed runs them again",
            1,
        )


def _pool(engine: Engine, jobs: int, gpus: float | None) -> Any:
    from spr_or.sweeps.pools import LocalPool, RayPool

    return RayPool(jobs, gpus=gpus) if engine is Engine.ray else LocalPool(jobs)


def _list(console: Any, plan: Any, folder: Path) -> None:
    from rich.table import Table

    from spr_or.sweeps.jobs import dense_folder_name, dense_recipe
    from spr_or.sweeps.sweep import state_of

    table = Table(title=f"{plan.name} in {folder}", title_justify="left")
    for name in (*plan.keys, "seed", "state", "dense phase"):
        table.add_column(name, justify="left" if name == "dense phase" else "right")
    shared = set()
    for point in plan.runs:
        values = [str(point.changes.get(key, "")) for key in plan.keys]
        dense = "none"
        if point.recipe.dense.epochs:
            dense = dense_folder_name(dense_recipe(point.recipe))
            shared.add(dense)
        table.add_row(*values, str(point.seed), state_of(point, folder.absolute()), dense)
    console.print(table)
    console.print(f"{len(plan.runs)} runs, {len(shared)} dense phases", highlight=False)


def _teller(console: Any, plan: Any) -> Any:
    """A line for each run that ends."""

    def tell(progress: Any) -> None:
        outcome = f"failed: {progress.error}" if progress.error else "done"
        line = f"[{progress.done}/{progress.total}] {progress.job.name}: {outcome}"
        console.print(line, highlight=False, markup=False, soft_wrap=True,
                      style="red" if progress.error else None)  # fmt: skip

    return tell


def _show(console: Any, plan: Any, folder: Path, result: Any) -> None:
    from spr_or.sweeps import show

    if not result.finished:
        return
    notes = {point.recipe.note for point in plan.runs} - {""}
    found = show.means(plan.keys, result.finished)
    console.print(show.rich_table(plan.name, plan.keys, found))
    for note in notes:
        console.print(note, markup=False, highlight=False)
    title = f"{plan.name}: {len(result.finished)} runs"
    show.figure(title, plan.keys, result.finished, folder / "pareto.png")
    console.print(
        f"{folder / 'table.csv'}, {folder / 'pareto.png'}", highlight=False, soft_wrap=True
    )

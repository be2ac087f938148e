"""What `spr-or sweep` and `spr-or compare` share: where runs are computed, and what stops them."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr_or.utils import terminal
from spr_or.utils.counted import counted

if TYPE_CHECKING:
    from rich.console import Console

    from spr_or.sweeps.sweep import Result
    from spr_or.sweeps.sweep_file import SweepPlan


class Engine(StrEnum):
    """Where the runs of a sweep are computed."""

    local = "local"
    ray = "ray"


Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe in all runs."),
]
Jobs = Annotated[int, typer.Option(min=1, metavar="N", help="Runs at once on this machine.")]
EngineName = Annotated[
    Engine, typer.Option(metavar="NAME", help="local (processes here) or ray (a Ray cluster).")
]
Gpus = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="X", help="Ray: share of a GPU for each run. Default: 1 if there is any."
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Take up the runs that failed before, too; they are left alone else."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List the runs and where they stand; start none.")
]


def load(read: Callable[[], SweepPlan]) -> SweepPlan:
    """The plan that ``read`` gives; what is wrong with its file ends the command with status 2."""
    from spr_or.sweeps.sweep_file import SweepError
    from spr_or.training.recipe import RecipeError

    try:
        return read()
    except (SweepError, RecipeError) as error:
        raise terminal.failed(error, 2) from None


def carry_out(
    plan: SweepPlan,
    folder: Path,
    jobs: int,
    engine: Engine,
    gpus: float | None,
    resume: bool,
    on_begin: Callable[[Any], None],
) -> Result:
    """Do the runs with a line for each; what stops all of them ends the command.

    ``on_begin`` looks at the runs to do before the first one starts; on a Ray cluster, whose machines
    have folders of their own, it is not asked.
    """
    from spr_or.sweeps.sweep import run_sweep
    from spr_or.sweeps.sweep_file import SweepError
    from spr_or.training.data.parquet import DataError
    from spr_or.training.recipe import RecipeError
    from spr_or.utils.files import DiskFull

    errors = terminal.console(stderr=True)
    try:
        terminal.say(errors, f"{plan.name}: {counted(len(plan.runs), 'run')} in {folder}")
        return run_sweep(
            plan,
            folder,
            _pool(engine, jobs, gpus),
            retry_failed=resume,
            on_begin=on_begin if engine is Engine.local else lambda todo: None,
            on_end=_teller(errors),
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


def list_runs(screen: Console, plan: SweepPlan, folder: Path) -> None:
    """The runs, where they stand, and which dense phases they share."""
    from spr_or.sweeps.jobs import dense_folder_name, dense_recipe
    from spr_or.sweeps.sweep import state_of
    from spr_or.sweeps.sweep_file import SweepError

    rows, shared = [], set()
    try:
        states = [state_of(point, folder.absolute()) for point in plan.runs]
    except SweepError as error:
        raise terminal.failed(error, 2) from None
    for point, state in zip(plan.runs, states, strict=True):
        values = [str(point.changes.get(key, "")) for key in plan.keys]
        dense = "none"
        if point.recipe.dense.epochs:
            dense = dense_folder_name(dense_recipe(point.recipe))
            shared.add(dense)
        rows.append((*values, str(point.seed), state, dense))
    columns = (*plan.keys, "seed", "state", "dense phase")
    title = f"{plan.name} in {folder}"
    terminal.show(screen, terminal.table(columns, rows, title=title, text=("state", "dense phase")))
    screen.print(f"{counted(len(plan.runs), 'run')}, {counted(len(shared), 'dense phase')}")


def end_with(result: Result, plan: SweepPlan, folder: Path) -> None:
    """End with status 1 where runs have failed."""
    if result.failed:
        raise terminal.failed(
            f"{len(result.failed)} of {counted(len(plan.runs), 'run')} failed, see "
            f"{folder / 'failed.csv'}; --resume runs them again",
            1,
        )


def _pool(engine: Engine, jobs: int, gpus: float | None) -> Any:
    from spr_or.sweeps.pools import LocalPool, RayPool

    return RayPool(jobs, gpus=gpus) if engine is Engine.ray else LocalPool(jobs)


def _teller(errors: Console) -> Any:
    """A line for each run that ends."""

    def tell(progress: Any) -> None:
        outcome = f"failed: {progress.error}" if progress.error else "done"
        line = f"[{progress.done}/{progress.total}] {progress.job.name}: {outcome}"
        terminal.say(errors, line, "red" if progress.error else None)

    return tell

"""The order of work in a sweep: dense phases, the runs that start from them, the tables.

.. code-block:: text

    FOLDER/dense/SEED-HASH/   one run without SPR for all that share its dense phase
    FOLDER/runs/NAME/         one folder for each run, complete in itself
    FOLDER/table.csv …        see `spr_or.sweeps.run_table`

All state is in the folder: a sweep that was killed and is started again finds the finished runs and
continues the ones that had begun.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from spr_or.sweeps.jobs import Job, dense_folder_name, dense_recipe
from spr_or.sweeps.pools import Pool
from spr_or.sweeps.run_table import ERROR, TableRow, last_line, sound_summary, write_tables
from spr_or.sweeps.sweep_file import SweepError, SweepPlan, SweepRun
from spr_or.training.recipe import SpeedRecipe
from spr_or.training.runner import edited_since, run_recipe
from spr_or.training.seed_run import RunError
from spr_or.training.stored_run import RECIPE, SUMMARY, DamagedFile, read_recipe, read_summary
from spr_or.utils.files import write_text
from spr_or.utils.folder_lock import FolderBusy, alone_in


class Result(NamedTuple):
    """The rows of ``table.csv`` and of ``failed.csv``."""

    finished: list[TableRow]
    failed: list[TableRow]


class JobEnded(NamedTuple):
    """A job that has just ended, and how many of all runs have; ``error`` is a line or None.

    A dense phase is a job too, but is not counted among the runs.
    """

    job: Job
    error: str | None
    done: int
    total: int


def run_sweep(
    plan: SweepPlan,
    folder: Path,
    pool: Pool,
    *,
    retry_failed: bool = False,
    on_begin: Callable[[list[SweepRun]], None] = lambda todo: None,
    on_end: Callable[[JobEnded], None] = lambda progress: None,
    warn: Callable[[str], None] = lambda message: None,
) -> Result:
    """Run what is not finished, and write the tables after each run.

    Runs that failed before are left alone unless ``retry_failed``; one whose files are damaged is
    repeated, and ``warn`` told why. ``on_begin`` gets the runs to do before the first one starts, and
    ends the sweep if it raises. Raises `SweepError` when another sweep is at work in the folder,
    or when a finished run there had another recipe.
    """
    folder = folder.absolute()
    with _alone_in(folder), pool:
        settled = ("finished",) if retry_failed else ("finished", "failed")
        todo = [point for point in plan.runs if state_of(point, folder) not in settled]
        for edited in _edited(plan, folder):
            warn(edited)
        on_begin(todo)
        for point in todo:
            (folder / "runs" / point.folder_name / ERROR).unlink(missing_ok=True)
        for run in sorted(folder.glob("runs/*")) + sorted(folder.glob("dense/*")):
            if reason := damage(run):
                warn(f"{reason}. The run is repeated")
                _prepare_repetition(run)
        ready, waiting = _jobs(todo, folder)
        total, done, running = len(todo), 0, 0
        result = Result(*write_tables(plan, folder / "runs", folder))
        while ready or running:
            while ready and pool.room():
                pool.submit(ready.popleft())
                running += 1
            job, error = pool.wait()
            running -= 1
            released = waiting.pop(job.folder, None)
            if released is None:
                ended = [(job, error)]
            elif error is None:
                ready.extendleft(reversed(released))
                on_end(JobEnded(job, None, done, total))
                continue
            else:
                ended = [(other, f"in its dense phase:\n{error}") for other in released]
            for one, fault in ended:
                if fault is not None:
                    one.folder.mkdir(parents=True, exist_ok=True)
                    write_text(one.folder / ERROR, fault)
                done += 1
                on_end(JobEnded(one, last_line(fault) if fault else None, done, total))
            result = Result(*write_tables(plan, folder / "runs", folder))
    return result


def _edited(plan: SweepPlan, folder: Path) -> list[str]:
    """What to tell of finished runs whose network or method has another file today, each once."""
    found: dict[str, list[str]] = {}
    for point in plan.runs:
        summary = sound_summary(folder / "runs" / point.folder_name)
        if summary is not None and (reason := edited_since(point.recipe, summary)):
            found.setdefault(reason, []).append(point.folder_name)
    return [f"{', '.join(runs)}: {reason}" for reason, runs in found.items()]


def state_of(point: SweepRun, folder: Path) -> str:
    """ "finished", "failed", "damaged", "begun" or "new".

    Raises `SweepError` for another recipe's run.
    """
    run = folder / "runs" / point.folder_name
    if damage(run):
        return "damaged"
    if (run / SUMMARY).exists():
        # Reads the finished run and compares its recipe, on whatever device is here.
        speed = SpeedRecipe(device="cpu", amp=point.recipe.speed.amp)
        reading = point.recipe.model_copy(update={"speed": speed})
        try:
            run_recipe(reading, run, resume=True, judge=False)
        except RunError as error:
            raise SweepError(str(error)) from None
        return "finished"
    if (run / ERROR).exists():
        return "failed"
    return "begun" if run.exists() else "new"


def _jobs(runs: list[SweepRun], folder: Path) -> tuple[deque[Job], dict[Path, list[Job]]]:
    """Jobs that can start, and those that wait for the dense run in a folder."""
    ready: deque[Job] = deque()
    waiting: dict[Path, list[Job]] = {}
    for point in runs:
        run = folder / "runs" / point.folder_name
        if not point.recipe.dense.epochs:  # nothing to share
            ready.append(Job(point.name, point.recipe, run))
            continue
        recipe = dense_recipe(point.recipe)
        dense = folder / "dense" / dense_folder_name(recipe)
        job = Job(point.name, point.recipe, run, dense)
        if sound_summary(dense) is not None:
            ready.append(job)
            continue
        if dense not in waiting:
            ready.append(Job(recipe.name, recipe, dense))
        waiting.setdefault(dense, []).append(job)
    return ready, waiting


def damage(run: Path) -> str | None:
    """What is wrong with the files by which a run is known; None if nothing is."""
    try:
        if read_summary(run) is None:  # a whole summary holds the recipe, too
            read_recipe(run)
    except DamagedFile as error:
        return str(error)
    return None


def _prepare_repetition(run: Path) -> None:
    """Remove what is damaged; with the recipe go the checkpoints, as nobody knows what they are of."""
    (run / SUMMARY).unlink(missing_ok=True)
    try:
        read_recipe(run)
    except DamagedFile:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        (run / RECIPE).unlink()


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Refuse a folder in which another sweep is at work."""
    try:
        with alone_in(folder, "sweep"):
            yield
    except FolderBusy as error:
        raise SweepError(str(error)) from None

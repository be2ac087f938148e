"""A whole run: every seed of a recipe from data to report, in one folder."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from spr_or.pruning.budget import Count
from spr_or.pruning.chosen_entities import ChosenEntities
from spr_or.pruning.compaction.remembered import remembering
from spr_or.training import checkpoint, distributed
from spr_or.training.data.load import Data, load_data
from spr_or.training.idle_keys import idle_keys
from spr_or.training.method_phase import check_method
from spr_or.training.metrics import Epoch, Metrics, what_is_lost
from spr_or.training.outcome import failure
from spr_or.training.phases import train
from spr_or.training.recipe import Recipe, RecipeError
from spr_or.training.report.summary import Summary, mean_summary, report_seed, report_seeds
from spr_or.training.run_progress import RunDisplay
from spr_or.training.seed_run import PHASES, RunError, SeedRun
from spr_or.training.setup import (
    check_model,
    fresh_model,
    make_counter,
    pick_device,
    reproducible,
    run_speed,
    with_speed,
)
from spr_or.training.stored_run import RECIPE, DamagedFile, read_recipe, read_summary
from spr_or.utils.files import remove_asides, write_text
from spr_or.utils.folder_lock import FolderBusy, alone_in
from spr_or.utils.import_path import code_digest, source_file
from spr_or.utils.kept_memory import keep_freed_memory

# What may change between a start and its resumption: names, the machine, and how its time is spent.
# Rounding and the order of a stream's batches may then differ, what is computed does not. Of [speed]
# only `amp` is missing: a run that is part bfloat16 and part float32 is neither.
_FREE = {
    "name",
    "note",
    "data.cache",
    "data.workers",
    "data.eval_batch_size",
    "speed.device",
    "speed.auto",
    "speed.threads",
    "speed.channels_last",
    "speed.compile",
    "speed.cuda_graph",
}


class FolderInUse(RunError):
    """The folder holds another run, or this one and it was not asked to be continued, or is at work."""


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    display: RunDisplay | None = None,
    judge: bool = True,
    measuring: bool = True,
) -> Summary:
    """Train, prune, compact and report every seed of a recipe; the summary over all seeds.

    One seed writes into ``folder`` itself, several into ``folder/seed-N`` each. With ``resume`` a
    run that stands in the folder is continued (a finished one is only read); without it such a
    folder is refused, and so is one in which another process trains. A run that removed nothing or
    collapsed is an error too, unless ``judge`` is False, as in a sweep over lambda. ``measuring``
    False: other runs share the machine, so no times are taken to choose the speed. Raises `RecipeError`,
    `DataError`, `RunError` (`FolderInUse` for such folders), `CheckpointError`, `DiskFull`.

    In processes that torchrun started, all of them train together (see `distributed`), on one
    file system; the first one writes, and the summary of the others is empty.
    """
    if recipe.spr.shrink and distributed.launched().size > 1:
        raise RecipeError(
            "spr.shrink = true has not been made to work with several processes: "
            "--set spr.shrink=false"
        )
    device = pick_device(recipe.speed)
    try:
        with distributed.joined(device):
            if not distributed.is_first():
                display = None
            # Several processes must take the same way, so they look behind the lock.
            alone = distributed.world().size == 1
            if resume and alone and (summary := _read_finished(recipe, folder)) is not None:
                summaries = [summary]
                if display is not None and (reason := edited_since(recipe, summary)):
                    display.warn(reason)
            else:
                with _alone_in(folder), remembering():
                    summaries = _run(recipe, folder, resume, device, display, judge, measuring)
            if judge and (fault := failure(summaries)):
                raise RunError(f"{fault}; see {folder / 'report.html'}")
            if len(summaries) < 2:  # none in a process that is not the first
                return summaries[0] if summaries else {}
            return mean_summary(summaries)
    except distributed.ProcessLost as error:
        raise RunError(str(error)) from error


def _read_finished(recipe: Recipe, folder: Path) -> Summary | None:
    """The summary of a run of one seed that is finished: nothing is written, so no lock is needed."""
    if len(recipe.seeds) > 1:
        return None
    with contextlib.suppress(DamagedFile):
        if (summary := read_summary(folder)) is not None:
            _check_folder(recipe, folder, resume=True)
            return summary
    return None


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """The folder's lock, held by the first process for all; `FolderInUse` in each if it is taken."""
    refusal: FolderBusy | None = None
    with contextlib.ExitStack() as held:
        if distributed.is_first():
            try:
                held.enter_context(alone_in(folder, "run"))
            except FolderBusy as error:
                refusal = error
        (refused,) = distributed.total(float(refusal is not None))
        if refused:
            raise FolderInUse(refusal or f"another run is at work in {folder}")
        yield


def _run(
    recipe: Recipe,
    folder: Path,
    resume: bool,
    device: torch.device,
    display: RunDisplay | None,
    judge: bool,
    measuring: bool,
) -> list[Summary]:
    """The summaries of all seeds; of several seeds the report of all is written, too."""
    _check_folder(recipe, folder, resume)
    if device.type == "cpu":
        keep_freed_memory()
    seeds = {seed: folder if len(recipe.seeds) == 1 else folder / f"seed-{seed}"
             for seed in recipe.seeds}  # fmt: skip
    with display or RunDisplay(quiet=True) as shown, reproducible(recipe.speed.threads):
        summaries = {seed: _finished(place, shown) for seed, place in seeds.items()}
        for summary in summaries.values():
            if summary is not None and (reason := edited_since(recipe, summary)):
                shown.warn(reason)
        distributed.barrier()  # all have looked before the first one writes
        data: Data | None = None
        counter: Count | None = None
        for seed, place in seeds.items():
            if summaries[seed] is None:
                if data is None:
                    data = load_data(recipe.data, device, shown.decoding)
                    model = fresh_model(recipe, seed, device)
                    chosen = check_model(recipe, model, data, device)
                    counter = make_counter(recipe, data, device, chosen)
                    check_method(recipe, data, device, chosen, counter)
                    shown.say(f"network: {recipe.model} from {source_file(recipe.model)}")
                    for sentence in idle_keys(recipe):
                        shown.warn(sentence)
                    folder.mkdir(parents=True, exist_ok=True)
                    if distributed.is_first():
                        write_text(folder / RECIPE, recipe.model_dump_json(indent=2) + "\n")
                summaries[seed] = _run_seed(
                    recipe, seed, place, device, data, counter, chosen, shown, judge, measuring
                )
    distributed.barrier()  # the first one has written its report
    if not distributed.is_first():
        return []
    done = [summary for summary in summaries.values() if summary is not None]
    if len(done) > 1:
        report_seeds(folder, done)
    return done


def _run_seed(
    recipe: Recipe,
    seed: int,
    folder: Path,
    device: torch.device,
    data: Data,
    counter: Count | None,
    chosen: ChosenEntities,
    display: RunDisplay,
    judge: bool,
    measuring: bool,
) -> Summary:
    folder.mkdir(parents=True, exist_ok=True)
    if distributed.is_first():
        for place in (folder, folder / "checkpoints", folder / "figures"):
            remove_asides(place)
    state, warning = checkpoint.load_last(folder / "checkpoints")
    if warning:
        display.warn(warning)
    distributed.barrier()  # all have read before the first one writes
    code = code_of(recipe)  # once: the files may be edited while this runs
    if state is not None:
        display.say(f"seed {seed}: continuing phase {state['phase']} after epoch {state['epoch']}")
        # A dense phase may be another run's, which this method had no part in.
        shared = code_digest(recipe.model) if state["phase"] == "dense" else None
        if state.get("code") not in (None, code, shared):
            display.warn(
                f"{_files_of(recipe)} has changed since this run began: what was trained before may belong "
                "to another network or method. Change it back, or begin anew in another folder"
            )
        if lost := what_is_lost(folder / "metrics.jsonl", _epochs_until(recipe, state)):
            display.warn(lost)
    metrics = Metrics(folder, kept=state["records"] if state else 0)
    run = SeedRun(
        recipe, seed, folder, device, data, chosen, display, metrics, counter, state, judge,
        measuring=measuring, speeds=dict(state.get("speeds", {})) if state else {}, fixed={"code": code},
    )  # fmt: skip
    try:
        if "run" not in run.speeds:
            model = fresh_model(recipe, seed, device)
            run.speeds["run"] = run_speed(recipe, model, data, measuring, run.tell_once)
        run.recipe = with_speed(recipe, run.speeds["run"])
        with reproducible(run.recipe.speed.threads):
            trained = train(run)
            if not distributed.is_first():
                return {}
            with distributed.alone():
                return report_seed(run, trained)
    finally:
        metrics.close()


def code_of(recipe: Recipe) -> str | None:
    """A hash of the file of the network, and of that of the method if it is the user's own."""
    digests = [code_digest(name) for name in (recipe.model, *_own_method(recipe))]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(map(str, digests)).encode()).hexdigest()


def edited_since(recipe: Recipe, summary: Summary) -> str | None:
    """What to tell where a finished run's code is not that of today; None where it is, or not known."""
    if summary.get("code") in (None, code_of(recipe)):
        return None
    return (
        f"{_files_of(recipe)} has changed since this run ended: its results are those of the file as it was. "
        "Remove its folder to run it again"
    )


def _own_method(recipe: Recipe) -> tuple[str, ...]:
    return (recipe.method.name,) if ":" in recipe.method.name else ()


def _files_of(recipe: Recipe) -> str:
    return " or ".join(f"the file of {name}" for name in (recipe.model, *_own_method(recipe)))


def _check_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    """Refuse a folder that holds another run, or this one without ``resume``."""
    kept = _kept_recipe(folder)
    if kept is None:
        return
    if not resume:
        raise FolderInUse(
            f"{folder} already holds a run: continue it with --resume, or name another --out"
        )
    changed = [
        f"{key} was {before!r}, now {after!r}"
        for key, before, after in _differences(_as_today(kept), recipe.model_dump(mode="json"))
        if key not in _FREE
    ]
    if changed:
        raise FolderInUse(
            f"{folder} was started with another recipe ({'; '.join(changed)}): "
            "resume with the same one, or name another --out"
        )


def _kept_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe that a folder was started with; where its file is damaged, the summary's."""
    try:
        return read_recipe(folder)
    except DamagedFile as error:
        with contextlib.suppress(DamagedFile):
            if (summary := read_summary(folder)) is not None:
                return summary["recipe"]
        raise FolderInUse(
            f"{error}. So it cannot be told whether this is the same run: remove {folder / RECIPE} to "
            "continue from its checkpoints with the recipe given now, or name another --out"
        ) from None


def _epochs_until(recipe: Recipe, state: checkpoint.State) -> list[Epoch]:
    """The epochs that a checkpoint has behind it."""
    pruning = state.get("pruning_epochs", recipe.spr.epochs)  # none of a method that only scores
    counts = (recipe.dense.epochs, pruning, 0)
    epochs = dict(zip(PHASES, counts, strict=True))
    before = PHASES[: PHASES.index(state["phase"])]
    done = [(phase, epoch) for phase in before for epoch in range(epochs[phase])]
    return done + [(state["phase"], epoch) for epoch in range(state["epoch"])]


def _as_today(kept: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe with the keys of this version: old names replaced, new defaults added."""
    try:
        return Recipe.model_validate(kept).model_dump(mode="json")
    except ValidationError:  # of another program version; what differs is then named
        return kept


def _differences(
    before: dict[str, Any], after: dict[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in before | after:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found


def _finished(folder: Path, display: RunDisplay) -> Summary | None:
    """The summary of a seed that is finished; one whose summary is damaged is not."""
    try:
        return read_summary(folder)
    except DamagedFile as error:
        display.warn(f"{error}. The run counts as not finished; its report is made again")
        return None

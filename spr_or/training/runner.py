"""A whole run: every seed of a recipe from data to report, in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from spr_or.training import checkpoint, distributed
from spr_or.training.data.load import Data, load_data
from spr_or.training.metrics import Metrics
from spr_or.training.phases import train
from spr_or.training.recipe import Recipe
from spr_or.training.report.summary import Summary, report_seed, report_seeds
from spr_or.training.run_progress import RunDisplay
from spr_or.training.seed_run import RunError, SeedRun
from spr_or.training.setup import check_model, fresh_model, pick_device, reproducible
from spr_or.utils.files import write_text

# What may change between a start and its resumption, because it changes no result.
_FREE = ("name", "note", "speed")
_RECIPE = "recipe.json"


class FolderInUse(RunError):
    """The folder holds another run, or this one and it was not asked to be continued."""


def run_recipe(
    recipe: Recipe, folder: Path, *, resume: bool = False, display: RunDisplay | None = None
) -> Summary:
    """Train, prune, compact and report every seed of a recipe; the summary over all seeds.

    One seed writes into ``folder`` itself, several into ``folder/seed-N`` each. With ``resume`` a
    run that stands in the folder is continued (a finished one is only read); without it such a
    folder is refused. Raises `RecipeError`, `DataError`, `RunError` (`FolderInUse` for such
    a folder), `CheckpointError`, `DiskFull`.

    In processes that torchrun started, all of them train together (see `distributed`), on one
    file system; the first one writes, and the summary of the others is empty.
    """
    device = pick_device(recipe.speed)
    try:
        with distributed.joined(device):
            if not distributed.is_first():
                display = None
            return _run(recipe, folder, resume, device, display)
    except distributed.ProcessLost as error:
        raise RunError(str(error)) from error


def _run(
    recipe: Recipe, folder: Path, resume: bool, device: torch.device, display: RunDisplay | None
) -> Summary:
    _check_folder(recipe, folder, resume)
    seeds = {seed: folder if len(recipe.seeds) == 1 else folder / f"seed-{seed}"
             for seed in recipe.seeds}  # fmt: skip
    summaries = {seed: _finished(place) for seed, place in seeds.items()}
    distributed.barrier()  # all have looked before the first one writes
    with display or RunDisplay(quiet=True) as shown, reproducible(recipe.speed.threads):
        data: Data | None = None
        for seed, place in seeds.items():
            if summaries[seed] is None:
                if data is None:
                    data = load_data(recipe.data, device, shown.decoding)
                    check_model(recipe, fresh_model(recipe, seed, device), data, device)
                    folder.mkdir(parents=True, exist_ok=True)
                    if distributed.is_first():
                        write_text(folder / _RECIPE, recipe.model_dump_json(indent=2) + "\n")
                summaries[seed] = _run_seed(recipe, seed, place, device, data, shown)
    distributed.barrier()  # the first one has written its report
    if not distributed.is_first():
        return {}
    done = [summary for summary in summaries.values() if summary is not None]
    return done[0] if len(done) == 1 else report_seeds(folder, done)


def _run_seed(
    recipe: Recipe, seed: int, folder: Path, device: torch.device, data: Data, display: RunDisplay
) -> Summary:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.remove_leftovers(folder / "checkpoints")
    state, warning = checkpoint.load_last(folder / "checkpoints")
    if warning:
        display.warn(warning)
    distributed.barrier()  # all have read before the first one writes
    if state is not None:
        display.say(f"seed {seed}: continuing phase {state['phase']} after epoch {state['epoch']}")
    metrics = Metrics(folder, kept=state["records"] if state else 0)
    run = SeedRun(recipe, seed, folder, device, data, display, metrics, state)
    try:
        trained = train(run)
        if not distributed.is_first():
            return {}
        with distributed.alone():
            return report_seed(run, trained)
    finally:
        metrics.close()


def _check_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    """Refuse a folder that holds another run, or this one without ``resume``."""
    path = folder / _RECIPE
    if not path.exists():
        return
    if not resume:
        raise FolderInUse(
            f"{folder} already holds a run: continue it with --resume, or name another --out"
        )
    kept = _as_today(json.loads(path.read_text(encoding="utf-8")))
    changed = [
        f"{key} was {before!r}, now {after!r}"
        for key, before, after in _differences(kept, recipe.model_dump(mode="json"))
        if key.partition(".")[0] not in _FREE
    ]
    if changed:
        raise FolderInUse(
            f"{folder} was started with another recipe ({'; '.join(changed)}): "
            "resume with the same one, or name another --out"
        )


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


def _finished(folder: Path) -> Summary | None:
    """The summary of a seed that is finished."""
    path = folder / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

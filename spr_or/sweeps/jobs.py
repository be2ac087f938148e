"""What one worker does: one run, which starts from a dense phase that another run has finished.

Runs that differ only in [spr] and [finetune] have the same dense phase. It runs once, as a run
without SPR, and each of the others starts from a copy of its last checkpoint. That is also how a run
continues that was stopped after its dense phase. So the result is the same as without sharing, to
the last bit where resuming is exact (on a CPU).
"""

from __future__ import annotations

import hashlib
import json
import traceback
from dataclasses import dataclass
from pathlib import Path

from spr_or.training import checkpoint
from spr_or.training.recipe import FinetuneRecipe, MethodRecipe, Recipe, SprRecipe
from spr_or.training.runner import run_recipe
from spr_or.utils.files import write_text


@dataclass(frozen=True)
class Job:
    """A recipe with one seed, where it runs, and the dense run it begins from (None: its own)."""

    name: str
    recipe: Recipe
    folder: Path
    dense: Path | None = None
    measuring: bool = True  # no other job runs meanwhile, so times mean something


def run_job(job: Job) -> str | None:
    """Run, or continue, a job; None when it is done, else the traceback of what stopped it."""
    try:
        if job.dense is not None:
            begin_after(job.dense, job.folder)
        run_recipe(job.recipe, job.folder, resume=True, judge=False, measuring=job.measuring)
    except Exception:  # for any error, the other runs go on
        return traceback.format_exc()
    return None


def dense_recipe(recipe: Recipe) -> Recipe:
    """The recipe of only the dense phase, the same for all runs that share it."""
    spr = SprRecipe(lam=0.0, alpha=0.5, epochs=0, entities=recipe.spr.entities)
    rest = FinetuneRecipe(epochs=0)
    name = f"dense phase, seed {recipe.seeds[0]}"
    return recipe.model_copy(
        update={"name": name, "note": "", "spr": spr, "method": MethodRecipe(), "finetune": rest}
    )


def dense_folder_name(dense: Recipe) -> str:
    """Seed and hash of a dense recipe.

    Defaults are left out, so that a key that a later version adds does not repeat the phase.
    """
    text = dense.model_dump_json(exclude={"name", "note", "speed"}, exclude_defaults=True)
    content = json.loads(text)
    if dense.speed.amp != "off":  # the one key of [speed] that changes what is computed
        content["speed"] = {"amp": dense.speed.amp}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"seed-{dense.seeds[0]}-{digest[:8]}"


def begin_after(dense: Path, folder: Path) -> None:
    """Make ``folder`` look like a run stopped after its dense phase; a run that is further stays."""
    checkpoints = folder / "checkpoints"
    if any((checkpoints / name).exists() for name in (checkpoint.LAST, checkpoint.PREVIOUS)):
        return
    state, _ = checkpoint.load_last(dense / "checkpoints")
    if state is None:
        raise FileNotFoundError(f"the dense run {dense} has left no checkpoint: remove its folder")
    folder.mkdir(parents=True, exist_ok=True)
    metrics = (dense / "metrics.jsonl").read_text(encoding="utf-8")
    write_text(folder / "metrics.jsonl", metrics)
    checkpoint.save_last(checkpoints, state)  # last: with it the copy is complete

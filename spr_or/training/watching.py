"""What the SPR phase of a recipe is watched for."""

from __future__ import annotations

from torch import nn

from spr_or.pruning.budget import Masks
from spr_or.pruning.lam_words import AUTO
from spr_or.pruning.module_masks import branches_of
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.steering import leaving
from spr_or.training.going_back import Watch
from spr_or.training.seed_run import SeedRun


def starting_accuracy(run: SeedRun, dense: nn.Module) -> float | None:
    """The accuracy that the phase starts from, in percent; None where it starts from new weights."""
    return run.validate(dense).accuracy if run.recipe.spr.start == "dense" else None


def watch(run: SeedRun, start: float | None, model: nn.Module, spr: SPR) -> Watch | None:
    """When the training of ``model`` with ``spr`` has collapsed; None where that is no error.

    ``start`` is the accuracy of `starting_accuracy`.

    A residual branch may go, and so may any layer with ``min_keep = 0``.
    """
    recipe = run.recipe.spr
    steered = recipe.target_removed_pct is not None or recipe.lam == AUTO
    if not steered and not run.judge:
        return None
    may_go = branches_of(spr.layers)
    free = recipe.target_removed_pct is not None and recipe.min_keep == 0

    def masks() -> Masks:
        if free:
            return {}
        found = leaving(model, spr, recipe)
        return {name: keep for name, keep in found.items() if name not in may_go}

    return Watch(start, masks, steered)

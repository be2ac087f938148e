"""Keys of a recipe that do nothing in it, or less than their number says."""

from __future__ import annotations

from spr_or.training.recipe import Recipe


def idle_keys(recipe: Recipe) -> list[str]:
    """A sentence for each key whose phase is too short for it; short trials of a recipe are allowed.

    >>> from spr_or.training.recipe import load_recipe
    >>> idle_keys(load_recipe("cifar10_resnet20_cpu", ["dense.epochs=1"]))
    ['dense.warmup = 2 is not shorter than dense.epochs = 1: the rate never arrives at dense.lr = 0.1']
    """
    found = []
    for name, phase in (("dense", recipe.dense), ("spr", recipe.spr)):
        if phase.epochs and phase.warmup >= phase.epochs:
            found.append(
                f"{name}.warmup = {phase.warmup} is not shorter than {name}.epochs = {phase.epochs}: "
                f"the rate never arrives at {name}.lr = {phase.lr:g}"
            )
    if recipe.finetune.epochs == 0:
        keys = [key for key in ("lr", "distill", "teachers") if getattr(recipe.finetune, key)]
        if keys:
            found.append(
                f"finetune.{', finetune.'.join(keys)}: with finetune.epochs = 0 they count only in epochs "
                "that the pruning phase leaves over"
            )
    return found

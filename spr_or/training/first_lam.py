"""Lambda of a phase that asks for a share of lambda_max: from its weights, steps and first batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.pruning.lam_words import AUTO, share_of_max
from spr_or.pruning.largest_lam import BATCHES, Pulls
from spr_or.pruning.regularizer import SPR
from spr_or.training.pruning import due_epochs, make_spr
from spr_or.training.replica import replica
from spr_or.training.seed_run import RunError, SeedRun, epoch_seed
from spr_or.training.setup import fresh_model, steps_of_epoch


def first_lam(run: SeedRun, model: nn.Module, spr: SPR, rate: Callable[[int], float]) -> float:
    """The number that ``spr.lam`` of the recipe stands for; ``rate(epoch)`` is the learning rate.

    Raises `RunError` where no lambda removes anything, such as alpha = 1.
    """
    recipe = run.recipe.spr
    share = share_of_max(recipe.lam, recipe.target_removed_pct is not None)
    if share is None:
        assert not isinstance(recipe.lam, str)
        return recipe.lam
    if not recipe.epochs:
        return 0.0
    try:
        pulls, step, total = _pulls(run, model, spr, rate)
        largest = pulls.largest_lam(step, total)
        lam = share * largest
        if recipe.lam == AUTO and recipe.target_removed_pct is not None:
            lam = pulls.starting_lam(step, total, recipe.target_removed_pct)
    except ValueError as error:
        raise RunError(f"spr.lam = {recipe.lam!r} of the recipe: {error}") from None
    run.display.say(
        f"seed {run.seed} spr: lambda {lam:.4g}, {lam / largest:.2g} of the largest of {largest:.4g}"
    )
    return lam


def largest_lam(run: SeedRun, model: nn.Module, spr: SPR, rate: Callable[[int], float]) -> float:
    """lambda_max of the SPR phase from ``model`` on, which is left as it was. See `Pulls`."""
    pulls, step, total = _pulls(run, model, spr, rate)
    return pulls.largest_lam(step, total)


def _pulls(
    run: SeedRun, model: nn.Module, spr: SPR, rate: Callable[[int], float]
) -> tuple[Pulls, float, float]:
    """What holds the entities, the largest step of the `due_epochs`, and the sum of their steps."""
    seed = epoch_seed(run.seed, "spr", 0)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    network = replica(model)
    pulls = Pulls(spr)
    torch.manual_seed(seed)
    model.train()
    for images, labels in islice(run.data.train(seed), BATCHES):
        model.zero_grad()
        F.cross_entropy(
            network(images), labels, label_smoothing=run.recipe.train.label_smoothing
        ).backward()
        pulls.add()
    model.zero_grad()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    scale = 1 / (1 - run.recipe.train.momentum)
    rates = [rate(epoch) * scale for epoch in range(due_epochs(run.recipe.spr))]
    return pulls, max(rates), steps_of_epoch(run.recipe, run.data) * sum(rates)


def nothing_removed(
    run: SeedRun, dense: nn.Module, bounds: dict[str, Tensor], rate: Callable[[int], float]
) -> str:
    """What to tell about a phase in which no entity became zero: values of lambda to try."""
    recipe = run.recipe.spr
    model = copy.deepcopy(dense)
    if recipe.start == "scratch":
        model.load_state_dict(fresh_model(run.recipe, run.seed, run.device).state_dict())
    text = f"spr.lam = {recipe.lam!r} removed nothing: no entity became zero in phase spr. "
    try:
        largest = largest_lam(run, model, make_spr(recipe, model, bounds, run.chosen), rate)
        text += (
            f"The largest lambda of this network is {largest:.3g}: try spr.lam between "
            f'{largest / 10:.2g} and {largest:.2g}, which are "0.1 max" and "1 max", or '
        )
    except ValueError as error:
        text += f"{error}. Or "
    text += "leave it out and say how much is to go: spr.target_removed_pct=50"
    if recipe.method == "gradient":
        text += (
            f'. With method = "gradient", weights below spr.zero_below = {recipe.zero_below:g} count as '
            'zero: a larger one, more epochs or spr.method="prox" remove more'
        )
    return text

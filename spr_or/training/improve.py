"""Better masks between the SPR phase and fine-tuning, judged by training images."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor, nn

from spr_or.pruning.budget import Masks
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.swaps import Batch, improve_by_swaps
from spr_or.training.metrics import Record
from spr_or.training.one_phase import epoch_seed
from spr_or.training.seed_run import SeedRun

_IMAGES = 512  # in the model of the loss, and as many others that judge it
_EPOCH = 99_000  # the order of images is that of an epoch far behind the last one


def swapped(run: SeedRun, model: nn.Module, spr: SPR, masks: Masks) -> tuple[Masks, Record]:
    """The masks of `spr_or.pruning.swaps.improve_by_swaps`, and the loss before and after.

    ``masks`` meet the budget; so do those returned.
    """
    assert run.counter is not None
    least = run.counter(masks)
    counter = run.counter
    modelled, judged = _images(run)
    found = improve_by_swaps(
        model,
        spr.layers,
        masks,
        modelled,
        judged,
        run.example,
        {name: value.indicator for name, value in spr.entity_values().items()},
        lambda masks: counter(masks) >= least - 1e-9,
    )
    run.display.say(
        f"seed {run.seed} masks: {found.swaps} swaps, loss on {len(judged[1])} training images "
        f"{found.loss_before:.4f}, then {found.loss_after:.4f}"
    )
    record = {
        "swaps": found.swaps,
        "loss_before_swaps": found.loss_before,
        "loss_after_swaps": found.loss_after,
    }
    return found.masks, record


def _images(run: SeedRun) -> tuple[Batch, Batch]:
    """Training images for the model of the loss, and others to judge by."""
    batch = min(run.recipe.data.batch_size, run.data.train_rows)
    source = run.data.train(epoch_seed(run.seed, "spr", _EPOCH))
    batches = list(islice(source, max(2, 2 * _IMAGES // batch)))
    half = max(1, len(batches) // 2)
    return _together(batches[:half]), _together(batches[half:] or batches)


def _together(batches: list[Batch]) -> Batch:
    images: list[Tensor] = [batch[0] for batch in batches]
    return torch.cat(images), torch.cat([batch[1] for batch in batches])

"""Better masks between the SPR phase and fine-tuning, judged by training images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from spr_or.pruning.budget import TOLERANCE, Masks
from spr_or.pruning.entity_gates import Batch
from spr_or.pruning.masks import apply_masks_
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.swaps import improve_by_swaps
from spr_or.training.metrics import Record
from spr_or.training.seed_run import SeedRun, epoch_seed
from spr_or.training.setup import LAYER_SETS
from spr_or.utils.import_path import load_object

_IMAGES = 512  # in the model of the loss, and as many others that judge it
_EPOCH = 99_000  # the order of images is that of an epoch far behind the last one


def improved(run: SeedRun, model: nn.Module, spr: SPR, masks: Masks) -> tuple[Masks, Record]:
    """The masks after swaps and, with improve = "layers", after layers' own problems; what they gained.

    ``masks`` meet the budget; so do those returned. In the second case convolutions of ``model`` may
    get new weights. The record has the loss on the images that judged, before and after, and on the
    held-out images (without them, those of the evaluation), which judged nothing.
    """
    held_out = _held_out_loss(run, model, masks)
    seen, judged = _images(run)
    fits = _budget_of(run, masks)
    masks, record = _swapped(run, model, spr, masks, seen, judged, fits)
    if run.recipe.spr.improve == "layers":
        masks, more = _by_layers(run, model, spr, masks, seen, judged, fits)
        record |= more
    assert run.counter is not None
    record |= {"after_cut_pct": run.counter(masks)}
    after = _held_out_loss(run, model, masks)
    run.display.say(
        f"seed {run.seed} masks: loss on images that judged none of this {held_out:.4f}, "
        f"then {after:.4f}"
    )
    return masks, record | {
        "held_out_loss_before_improving": held_out,
        "held_out_loss_after_improving": after,
    }


def _budget_of(run: SeedRun, masks: Masks) -> Callable[[Masks], bool]:
    """Whether masks remove as much as these, and no more than that or a point above the target.

    Filters that share features take along more or less than the ones they are swapped with.
    """
    counter, target = run.counter, run.recipe.spr.target_removed_pct
    assert counter is not None and target is not None
    least = counter(masks)
    most = max(least, target + TOLERANCE)
    return lambda masks: least - 1e-9 <= counter(masks) <= most + 1e-9


def _swapped(
    run: SeedRun,
    model: nn.Module,
    spr: SPR,
    masks: Masks,
    seen: Batch,
    judged: Batch,
    fits: Callable[[Masks], bool],
) -> tuple[Masks, Record]:
    """The masks of `spr_or.pruning.swaps.improve_by_swaps`."""
    found = improve_by_swaps(
        model,
        spr.layers,
        masks,
        seen,
        judged,
        run.example,
        {name: value.indicator for name, value in spr.entity_values().items()},
        fits,
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


def _by_layers(
    run: SeedRun,
    model: nn.Module,
    spr: SPR,
    masks: Masks,
    seen: Batch,
    judged: Batch,
    fits: Callable[[Masks], bool],
) -> tuple[Masks, Record]:
    """The masks of `spr_or.methods.common.layer_sets.improve_by_layers`."""
    improve: Callable[..., Any] = load_object(f"{LAYER_SETS}:improve_by_layers")
    found = improve(model, spr.layers, masks, [seen], judged, run.example, fits=fits)
    run.display.say(
        f"seed {run.seed} masks: layers with another set {found.new_sets} ({found.proven} proven), "
        f"with other weights {found.new_weights}, loss {found.loss_before:.4f}, then "
        f"{found.loss_after:.4f}"
    )
    record = {
        "layers_with_new_sets": found.new_sets,
        "layers_with_new_weights": found.new_weights,
        "layers_proven": found.proven,
        "loss_after_layers": found.loss_after,
    }
    return found.masks, record


def _held_out_loss(run: SeedRun, model: nn.Module, masks: Masks) -> float:
    """The loss of the masked network on images that judged neither masks nor weights."""
    masked = copy.deepcopy(model)
    apply_masks_(masked, module_masks(masked, run.chosen.of(masked), masks), run.example)
    loss = run.validate(masked).loss
    run.scorings.pop(masked, None)
    return loss


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

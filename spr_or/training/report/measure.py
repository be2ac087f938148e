"""Times measured at the end of a run: a forward pass, and what SPR adds to a training step."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from spr_or.training.pruning import make_optimizer, make_sgd, make_spr
from spr_or.training.recipe import Recipe
from spr_or.training.step import make_step

_WARMUP = 3


def latency_ms(
    models: list[nn.Module], images: Tensor, repeats: int = 30, seconds: float = 5.0
) -> list[float]:
    """Median milliseconds of one evaluation-mode forward pass of each model on ``images``.

    The models take turns, so that a slow moment of the machine affects all of them; at most
    ``seconds`` in all, three turns at least.
    """
    with torch.no_grad():
        runs = [partial(model.eval(), images) for model in models]
        return [1e3 * t for t in _medians(runs, images.device, repeats, seconds)]


def spr_step_overhead(
    recipe: Recipe,
    model: nn.Module,
    bounds: dict[str, Tensor],
    batch: tuple[Tensor, Tensor],
    repeats: int = 30,
    seconds: float = 5.0,
) -> float:
    """Time of a training step with SPR over that of the same step without, medians of turns.

    The steps train copies of ``model``; 1.03 means three percent more.
    """
    bf16 = recipe.speed.amp == "bf16"
    steps: list[Callable[[], object]] = []
    for regularised in (False, True):
        network = copy.deepcopy(model).train()
        spr = make_spr(recipe.spr, network, bounds)
        make = partial(make_optimizer, spr=spr) if regularised else make_sgd
        optimizer = make(recipe, network)
        for group in optimizer.param_groups:
            group["lr"] = recipe.spr.lr
        add = spr.add_gradient_ if regularised and recipe.spr.method == "gradient" else None
        step = make_step(network, optimizer, add_gradient=add, bf16=bf16)
        steps.append(partial(step, *batch))
    without, with_spr = _medians(steps, batch[0].device, repeats, seconds)
    return with_spr / without


def _medians(
    runs: Sequence[Callable[[], object]], device: torch.device, repeats: int, seconds: float
) -> list[float]:
    times: list[list[float]] = [[] for _ in runs]
    begun = time.perf_counter()
    for turn in range(_WARMUP + repeats):
        for run, kept in zip(runs, times, strict=True):
            _synchronise(device)
            started = time.perf_counter()
            run()
            _synchronise(device)
            if turn >= _WARMUP:
                kept.append(time.perf_counter() - started)
        if turn >= _WARMUP + 2 and time.perf_counter() - begun > seconds:
            break
    return [statistics.median(kept) for kept in times]


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

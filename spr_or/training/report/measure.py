"""Times measured at the end of a run: a forward pass, and what SPR adds to a training step.

What is compared takes turns, and of each the fastest turn counts. Another process on the machine only
ever adds time, so the fastest turn is the one that it disturbed least; medians would compare what it
left of one with what it left of the other.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from spr_or.training.pruning import make_optimizer, make_sgd, make_spr
from spr_or.training.recipe import Recipe
from spr_or.training.step import make_step

_WARMUP = 3
_LEAST_TURNS = 5
# So small that the copies stay as they are: in a network that collapses, steps take another time.
_RATE = 1e-6


def latency_ms(
    models: list[nn.Module], images: Tensor, repeats: int = 100, seconds: float = 5.0
) -> list[float]:
    """Milliseconds of one evaluation-mode forward pass of each model on ``images``, the fastest turn.

    At most ``seconds`` in all, five turns at least.
    """
    with torch.no_grad():
        runs = [partial(model.eval(), images) for model in models]
        return [1e3 * t for t in _fastest(runs, images.device, repeats, seconds)]


def spr_step_overhead(
    recipe: Recipe,
    model: nn.Module,
    bounds: dict[str, Tensor],
    batch: tuple[Tensor, Tensor],
    repeats: int = 50,
    seconds: float = 3.0,
) -> float:
    """Time of a training step with SPR over that of the same step without, the fastest turn of each.

    The steps take copies of ``model``; 1.03 means three percent more.
    """
    bf16 = recipe.speed.amp == "bf16"
    steps: list[Callable[[], object]] = []
    for regularised in (False, True):
        network = copy.deepcopy(model).train()
        spr = make_spr(recipe.spr, network, bounds)
        make = partial(make_optimizer, spr=spr) if regularised else make_sgd
        optimizer = make(recipe, network)
        for group in optimizer.param_groups:
            group["lr"] = _RATE
        add = spr.add_gradient_ if regularised and recipe.spr.method == "gradient" else None
        step = make_step(network, optimizer, add_gradient=add, bf16=bf16)
        steps.append(partial(step, *batch))
    without, with_spr = _fastest(steps, batch[0].device, repeats, seconds)
    return with_spr / without


def _fastest(
    runs: Sequence[Callable[[], object]], device: torch.device, repeats: int, seconds: float
) -> list[float]:
    """Seconds of each run in its fastest turn; every second turn goes through them backwards."""
    times: list[list[float]] = [[] for _ in runs]
    begun = time.perf_counter()
    for turn in range(_WARMUP + repeats):
        order = range(len(runs))
        for i in order if turn % 2 else reversed(order):
            _synchronise(device)
            started = time.perf_counter()
            runs[i]()
            _synchronise(device)
            if turn >= _WARMUP:
                times[i].append(time.perf_counter() - started)
        if turn + 1 >= _WARMUP + _LEAST_TURNS and time.perf_counter() - begun > seconds:
            break
    return [min(taken) for taken in times]


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

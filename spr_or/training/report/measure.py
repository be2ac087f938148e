"""Times measured at the end of a run: a forward pass, and what SPR adds to a training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from spr_or.pruning.chosen_entities import ChosenEntities
from spr_or.training.pruning import make_optimizer, make_sgd, make_spr
from spr_or.training.recipe import Recipe
from spr_or.training.step import make_step
from spr_or.utils.timing import fastest

# So small that the copies stay as they are: in a network that collapses, steps take another time.
_RATE = 1e-6


def latency_ms(
    models: list[nn.Module], images: Tensor, repeats: int = 100, seconds: float = 5.0
) -> list[float]:
    """Milliseconds of one evaluation-mode forward pass of each model on ``images``, the fastest turn.

    At most ``seconds`` in all, five turns at least. Algorithms need not be deterministic, as they must
    while a run trains, for nobody asks for that of a network in use.
    """
    with torch.no_grad(), _any_algorithm():
        runs = [partial(model.eval(), images) for model in models]
        return [1e3 * t for t in fastest(runs, images.device, repeats, seconds)]


@contextmanager
def _any_algorithm() -> Iterator[None]:
    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


def spr_step_overhead(
    recipe: Recipe,
    model: nn.Module,
    bounds: dict[str, Tensor],
    batch: tuple[Tensor, Tensor],
    chosen: ChosenEntities | None = None,
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
        spr = make_spr(recipe.spr, network, bounds, chosen)
        if regularised:
            optimizer = make_optimizer(recipe, network, spr)
        else:
            optimizer = make_sgd(recipe, network.parameters())
        for group in optimizer.param_groups:
            group["lr"] = _RATE
        add = spr.add_gradient_ if regularised and recipe.spr.method == "gradient" else None
        step = make_step(network, optimizer, add_gradient=add, bf16=bf16)
        steps.append(partial(step, *batch))
    without, with_spr = fastest(steps, batch[0].device, repeats, seconds)
    return with_spr / without

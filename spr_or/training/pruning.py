"""What a recipe's [spr] section makes of a network: regularizer, optimiser, records."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spr_or.formulations.projected import Regime
from spr_or.pruning.budget import Limits, layer_limits
from spr_or.pruning.chosen_entities import ChosenEntities
from spr_or.pruning.counts import count_parameters, masked_filter_weights
from spr_or.pruning.exact_cut_masks import CutTask, cut_task
from spr_or.pruning.left import whole_numbers
from spr_or.pruning.module_masks import branches_of, module_masks
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.steering import Steering, decide_masks
from spr_or.training.metrics import Record
from spr_or.training.recipe import Recipe, SprRecipe

ENTITY_REGIMES = ("zero", *(regime.name.lower() for regime in Regime))


def make_spr(
    recipe: SprRecipe,
    model: nn.Module,
    bounds: dict[str, Tensor] | float,
    chosen: ChosenEntities | None = None,
) -> SPR:
    """The recipe's regularizer on a network; without ``chosen``, of the layers that the recipe names."""
    if chosen is None:
        chosen = ChosenEntities(recipe.entities, recipe.include_norm, recipe.ignored)
    return SPR(
        model,
        0.0 if isinstance(recipe.lam, str) else recipe.lam,
        recipe.alpha,
        bounds,
        variant=recipe.variant,
        u=recipe.u,
        **chosen._asdict(),
    )


def make_limits(recipe: SprRecipe, spr: SPR) -> dict[str, Limits]:
    """What each layer keeps at least, and of what its number is a multiple."""
    sizes = {layer.name: layer.count for layer in spr.layers}
    branches = branches_of(spr.layers)
    return layer_limits(sizes, recipe.min_keep, round_to=recipe.round_to, branches=branches)


def due_epochs(recipe: SprRecipe) -> int:
    """In how many epochs a budget is to be met: where the network shrinks, each that follows is shorter.

    >>> due_epochs(SprRecipe(alpha=0.1, epochs=8, target_removed_pct=50, shrink=True))
    4
    """
    early = recipe.shrink and recipe.target_removed_pct is not None
    return (recipe.epochs + 1) // 2 if early else recipe.epochs


def make_cut(recipe: SprRecipe, model: nn.Module, spr: SPR, example: Tensor) -> CutTask | None:
    """The exact cut, if the recipe asks for it; ``ValueError`` where it cannot be made, see `cut_task`."""
    if recipe.cut == "rank" or recipe.target_removed_pct is None:
        return None
    budgets: dict[str, float] = {recipe.target_of: recipe.target_removed_pct}
    budgets.update((str(name), pct) for name, pct in recipe.also_removed_pct.items())
    return cut_task(model, example, spr.layers, make_limits(recipe, spr), budgets)


def make_optimizer(recipe: Recipe, model: nn.Module, spr: SPR) -> torch.optim.Optimizer:
    """SGD for the gradient method, ProxSGD for the proximal one."""
    if recipe.spr.method == "gradient":
        return make_sgd(recipe, model.parameters())
    shared = recipe.train
    return ProxSGD(
        model,
        spr,
        lr=recipe.spr.lr,
        momentum=shared.momentum,
        weight_decay=shared.weight_decay,
        nesterov=shared.nesterov,
    )


def describe(
    whole: nn.Module, whole_spr: SPR, recipe: SprRecipe, now: Steering | None = None
) -> Record:
    """The value of SPR, how many entities are in which regime or gone, and what that weighs.

    ``fractional`` counts those whose indicator lies strictly between 0 and 1, which the mixed-integer
    program does not allow. ``entity_regimes`` holds a digit for each entity of a layer, its place in
    `ENTITY_REGIMES`.

    ``now`` has the smaller network that is trained in place of the ``whole`` one, if there is one.
    """
    model, spr = (whole, whole_spr) if now is None else (now.model, now.spr)
    masks = decide_masks(model, spr, recipe)
    values = spr.entity_values()
    keep = torch.cat([masks[name] for name in values])
    regime = torch.cat([value.regime for value in values.values()])
    counts = {r.name.lower(): int(((regime == r) & keep).sum()) for r in Regime}
    with torch.no_grad():
        penalty = float(spr())
    everywhere = masks if now is None else now.whole(masks)
    digits = {name: value.regime.cpu() + 1 for name, value in values.items()}
    if now is not None and now.left is not None:
        digits = whole_numbers(digits, now.left, 0)
    indicator = torch.cat([value.indicator for value in values.values()])
    return {
        "spr": penalty,
        "masked_filter_weights_pct": in_zero_filters_pct(
            whole, module_masks(whole, whole_spr.layers, everywhere)
        ),
        "regimes": {"zero": sum(int((~m).sum()) for m in everywhere.values()), **counts},
        "fractional": int(((indicator > 0) & (indicator < 1) & keep).sum()),
        "entity_regimes": {
            name: "".join(map(str, (digits[name] * mask.cpu()).tolist()))
            for name, mask in everywhere.items()
        },
    }


def in_zero_filters_pct(model: nn.Module, masks: dict[str, Tensor]) -> float:
    """Weights in zero filters, the measure of the paper, as a percentage of all parameters."""
    return 100 * masked_filter_weights(model, masks) / count_parameters(model)


def make_sgd(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """SGD with the momentum and weight decay that all phases share."""
    shared = recipe.train
    return torch.optim.SGD(
        parameters,
        lr=0.1,  # set anew each epoch
        momentum=shared.momentum,
        weight_decay=shared.weight_decay,
        nesterov=shared.nesterov,
    )

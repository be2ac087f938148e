"""The cut that meets a budget, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from spr_or.pruning.budget import TOLERANCE
from spr_or.pruning.exact_cut_masks import ExactCut, widths_decide
from spr_or.pruning.measures import MEASURES
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.steering import Steering
from spr_or.training.improve import improved
from spr_or.training.metrics import Record
from spr_or.training.seed_run import SeedRun


def meet_budget(
    run: SeedRun,
    steering: Steering,
    before: float,
    model: nn.Module,
    spr: SPR,
    write_back: Callable[[], None],
) -> tuple[dict[str, Tensor], Record]:
    """The masks that meet the budget, improved if the recipe asks for it, and what that took.

    ``model`` with ``spr`` is the whole network, which ``write_back()`` gives what the cut gave back to the
    one that was trained. The record is that of the cut and of `improved`.
    """
    masks, record = _cut(run, steering, before, model, spr)
    write_back()
    if run.recipe.spr.improve != "none":
        masks, gained = improved(run, model, spr, masks)
        record |= gained
    return masks, record


def _cut(
    run: SeedRun, steering: Steering, before: float, model: nn.Module, spr: SPR
) -> tuple[dict[str, Tensor], Record]:
    """The masks of the cut, and what is told of it.

    The record holds the target, the share removed ``before`` the cut and after it (in percent of
    what ``target_of`` names), how many entities the cut took (or gave back, if negative), the largest
    indicator among the entities that go, and the last lambda; of an exact cut also what `_of_exact` tells.
    """
    choice = steering.cut()
    target = run.recipe.spr.target_removed_pct
    assert target is not None
    run.display.say(
        f"seed {run.seed} budget: {before:.1f} % of the "
        f"{MEASURES[run.recipe.spr.target_of]} in zero entities, {_CUTS[choice.exact is not None]} "
        f"({choice.cut:+d} entities) to {choice.removed_pct:.1f} %"
    )
    if choice.exact is None and abs(choice.removed_pct - target) > TOLERANCE:
        nearer = "another spr.min_keep may come nearer"
        if steering.exact is None and widths_decide(model, run.example, spr.layers):
            nearer = 'spr.cut = "exact" may come nearer, and so may another spr.min_keep'
        run.display.warn(
            f"the budget of {target:g} % is missed: the cut by rank removes {choice.removed_pct:.1f} %; "
            f"{nearer}"
        )
    if choice.exact is not None and (missed := choice.exact.warning()) is not None:
        run.display.warn(missed)
    record = {
        "target_pct": target,
        "before_cut_pct": before,
        "after_cut_pct": choice.removed_pct,
        "cut_entities": choice.cut,
        "threshold": choice.threshold,
        "lam": float(steering.spr.lam),
    }
    if choice.exact is not None:
        record |= _of_exact(choice.exact)
    return choice.masks, record


_CUTS = {False: "cut by rank", True: "cut exactly"}


def _of_exact(cut: ExactCut) -> Record:
    """The sum of prices of what goes, a lower bound on it, that of the cut by rank, and the time."""
    return {
        "price": cut.choice.price,
        "price_bound": cut.choice.bound,
        "price_by_rank": cut.rank_price,
        "removed_pct": cut.removed_pct,
        "cut_seconds": cut.choice.seconds,
    }

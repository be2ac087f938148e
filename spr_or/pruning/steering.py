"""What changes in the course of the SPR phase: lambda and the bounds M.

Recipes and `Pruner` steer by the same `Steering`. Three settings ask for it: ``lam_warmup``,
``target_removed_pct`` and ``bounds_every``. All that an epoch needs of those before it is in
`Steering.state`, which goes into every checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from spr_or.pruning.budget import (
    TOLERANCE,
    Count,
    EntityNumbers,
    Limits,
    MaskChoice,
    Masks,
    choose,
    scheduled_pct,
)
from spr_or.pruning.entity_masks import entity_masks
from spr_or.pruning.exact_cut_masks import CutTask, exact_masks
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.lam_course import LamCourse
from spr_or.pruning.largest_lam import distances, distances_to_go
from spr_or.pruning.left import whole_masks, whole_numbers
from spr_or.pruning.masks import masks_by_threshold
from spr_or.pruning.per_entity import crossed
from spr_or.pruning.regularizer import SPR, largest_weights
from spr_or.pruning.spares import Spares

Record = dict[str, Any]
State = dict[str, Any]

# A subgradient step leaves weights trembling about zero by more than any threshold until the rate
# has fallen. Entities on their way out have indicators below this; few end between it and twice it.
_LEAVING = 0.1


class ZeroRule(Protocol):
    """When an entity counts as zero: after proximal steps (``method="prox"``) exactly zeros, after
    the gradient the paper's threshold, see `masks_by_threshold`."""

    @property
    def method(self) -> str: ...
    @property
    def zero_below(self) -> float: ...
    @property
    def share(self) -> float: ...


class SteeringSettings(ZeroRule, Protocol):
    """What steers: [spr] of a recipe, or a `Pruner`'s settings. ``target_removed_pct`` may be None."""

    @property
    def lam(self) -> float | str: ...
    @property
    def lam_warmup(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def target_removed_pct(self) -> float | None: ...
    @property
    def bounds(self) -> str: ...
    @property
    def bounds_every(self) -> int: ...


class Steering:
    """Sets ``spr.lam`` and ``spr.bound`` before each epoch, and measures in it and after it.

    ``count`` (masks to the percentage removed) and ``limits`` of the layers are needed where the
    settings have a target; ``example`` is that of `Spares`. ``steps`` of an epoch say whether lambda
    moves within epochs too, see `reading_steps`; then `within` must follow each step. In a network
    that has shrunk, ``left`` says which of the original's entities are still there: counts, cut and
    masks are those of the original. With ``exact`` the cut is the exact one. ``due``: lambda is moved as
    in a phase of so many epochs, if that is not how many there are.
    """

    def __init__(
        self,
        settings: SteeringSettings,
        model: nn.Module,
        spr: SPR,
        count: Count | None = None,
        limits: Mapping[str, Limits] | None = None,
        example: Any = None,
        left: Masks | None = None,
        exact: CutTask | None = None,
        steps: int = 0,
        due: int | None = None,
    ) -> None:
        self.settings = settings
        self.exact = exact
        self.model = model
        self.spr = spr
        self.count = count
        self.limits = limits
        self.left = left
        target = settings.target_removed_pct if count is not None else None
        start = 0.0 if isinstance(settings.lam, str) else settings.lam
        self.course = LamCourse(start, due or settings.epochs, target, steps)  # without the warm-up
        wanted = count is not None and settings.method == "prox"
        self.spares = Spares(model, spr, example) if wanted else None

    def ease(self) -> None:
        """Go on with a lambda somewhat below the last epoch's, and never above it again."""
        self.course.ease(below=float(self.spr.lam))

    def finish(self) -> None:
        """Go on without a penalty: what was to go has gone."""
        self.course.stop()
        self.spr.lam = 0.0

    def begin(self, epoch: int) -> None:
        """Before an epoch, counted from 0: lambda of the warm-up, and new bounds when it is time."""
        every = self.settings.bounds_every
        if every and epoch and epoch % every == 0:
            renew_bounds_(self.spr, self.settings.bounds)
        self.spr.lam = warm_lam(self.course.lam, epoch, self.settings.lam_warmup)

    def within(self, epoch: int, step: int) -> None:
        """After ``step`` steps of an epoch: move lambda if it is time."""
        if self.course.is_read_after(step):
            self._read(epoch)
            self.spr.lam = warm_lam(self.course.lam, epoch, self.settings.lam_warmup)

    def end(self, epoch: int) -> Record:
        """After an epoch: lambda of its last step, what could go now, and lambda of the next one."""
        record: Record = {"lam": float(self.spr.lam)}
        target = self.course.target
        if target is None:
            return record
        if self.spares is not None:
            self.spares.keep(epoch)
        self._read(epoch + 1)
        record["removable_pct"] = self.course.shares[-1]
        record["scheduled_pct"] = scheduled_pct(target, epoch, self.course.epochs)
        return record

    def _read(self, done: int) -> None:
        """Read what could go, and set lambda of the steps that follow, ``done`` epochs being over."""
        assert self.count is not None
        share = self.count(self.whole(leaving(self.model, self.spr, self.settings)))
        far = distances_to_go(self.spr, self.course.rest(share))
        self.course.read(share, far, moves=done >= self.settings.lam_warmup)

    def cut(self) -> MaskChoice:
        """The masks that meet the budget, see `choose`; what they give back gets its weights.

        Entities go in the order in which a larger lambda would make them zero, by their `distances`. (By
        the indicator y~ = max|w| / M, one large weight would keep an entity, and layers whose entities
        are all alike would go first whatever they cost.) Those that are zero alike come back in the
        order last out, first in.
        """
        assert self.count is not None and self.settings.target_removed_pct is not None
        values = self.spr.entity_values()
        layers = self.spr.ordered_layers()
        parts = distances(self.spr).cpu().split([layer.count for layer in layers])
        far = {layer.name: part for layer, part in zip(layers, parts, strict=True)}
        indicators = {name: value.indicator.cpu() for name, value in values.items()}
        gone = decide_masks(self.model, self.spr, self.settings)
        ages = {name: value.value.double().cpu() for name, value in values.items()}
        if self.spares is not None:
            ages = {n: torch.where(gone[n].cpu(), ages[n], self.spares.age[n]) for n in ages}
        if self.left is not None:  # what has left goes first
            gone = self.whole(gone)
            far = whole_numbers(far, self.left, 0.0)
            indicators = whole_numbers(indicators, self.left, 0.0)
            ages = whole_numbers(ages, self.left, -math.inf)
        target = self.settings.target_removed_pct
        choice = choose(self.count, gone, far, ages, target, self.limits, give_back=True)
        met = choice.cut <= 0 and choice.removed_pct >= target - TOLERANCE / 10
        if self.exact is not None and (not met or len(self.exact.budgets) > 1):
            choice = self._exact(self.exact, choice, gone, far, ages)
        went = [indicators[name][~keep.cpu()] for name, keep in choice.masks.items()]
        threshold = float(torch.cat(went).max()) if any(len(one) for one in went) else 0.0
        if self.spares is not None:
            self.spares.give_back_(self._of_left(choice.masks))
        return choice._replace(threshold=threshold)

    def _exact(
        self, task: CutTask, rank: MaskChoice, gone: Masks, far: EntityNumbers, ages: EntityNumbers
    ) -> MaskChoice:
        """The cut of the smallest sum of N(w_i), which is u_i times what ranks an entity."""
        u = importances(self.spr, self.left)
        prices = {name: far[name] * u[name] for name in far}
        found = exact_masks(task, prices, gone, ages, rank)
        cut = sum(int((~keep.cpu()).sum()) for keep in found.masks.values())
        zero = sum(int((~keep).sum()) for keep in gone.values())
        assert self.count is not None
        return MaskChoice(found.masks, self.count(found.masks), cut - zero, math.nan, found)

    def whole(self, masks: Masks) -> Masks:
        """Masks of this network's entities as masks of the original's."""
        return masks if self.left is None else whole_masks(masks, self.left)

    def _of_left(self, masks: Masks) -> Masks:
        if self.left is None:
            return masks
        return {
            n: masks[n][keep.to(masks[n].device)] for n, keep in self.left.items() if keep.any()
        }

    def state(self) -> State:
        """What `load` takes: for a checkpoint."""
        state: State = {
            **self.course.state(),
            "last_lam": float(self.spr.lam),  # of the last epoch, warm-up and all
            "bound": self.spr.bound.cpu(),
        }
        if self.spares is not None:
            state["spares"] = self.spares.state()
        return state

    def load(self, state: State) -> None:
        """Continue from `state`."""
        self.course.load(state)
        self.spr.lam = state["last_lam"]
        self.spr.bound.copy_(state["bound"])
        if self.spares is not None:
            self.spares.load(state["spares"])


def importances(spr: SPR, left: Masks | None = None) -> EntityNumbers:
    """u_i by layer, float64 (N,) on the CPU; with ``left`` of the original's entities, 0 for those gone."""
    layers = spr.ordered_layers()
    parts = spr.importance.double().cpu().split([layer.count for layer in layers])
    own = {layer.name: part for layer, part in zip(layers, parts, strict=True)}
    return own if left is None else whole_numbers(own, left, 0.0)


def warm_lam(lam: float, epoch: int, warmup: int) -> float:
    """lambda · (epoch + 1) / (warmup + 1) in the first ``warmup`` epochs, then lambda.

    >>> [warm_lam(8.0, epoch, warmup=3) for epoch in range(5)]
    [2.0, 4.0, 6.0, 8.0, 8.0]
    """
    return lam * min(1.0, (epoch + 1) / (warmup + 1))


def decide_masks(model: nn.Module, spr: SPR, rule: ZeroRule) -> Masks:
    """True = keep, for each regularised layer: the paper's threshold, or exact zeros.

    Of entities that cross layers all weights count, see `entity_masks`.
    """
    zero_below, share = (0.0, 1.0) if rule.method == "prox" else (rule.zero_below, rule.share)
    if any(isinstance(layer, GroupEntities) for layer in spr.layers):
        return entity_masks(spr.layers, zero_below, share)
    return masks_by_threshold(model, [layer.name for layer in spr.layers], zero_below, share)


def leaving(model: nn.Module, spr: SPR, rule: ZeroRule) -> Masks:
    """False for what would go if the phase ended now, for the gradient also what is about to."""
    masks = decide_masks(model, spr, rule)
    if rule.method == "gradient":
        for name, value in spr.entity_values().items():
            masks[name] &= value.indicator > _LEAVING
    return masks


@torch.no_grad()
def renew_bounds_(spr: SPR, per: str) -> None:
    """Make M the max|w| of today, by layer or entity; a layer or entity that is zero keeps its own.

    A bound read off these weights holds for them, not for the minimiser of the problem that the old
    bounds posed: from here on another problem is solved, with a steeper price (1 - alpha) / M where
    weights have shrunk. After a proximal step |w| <= M, so M can then only fall.
    """
    peaks = {name: value.peak for name, value in spr.entity_values().items()}
    layers = spr.ordered_layers()
    old = spr.bound.split([layer.count * crossed(layer) for layer in layers])
    for layer, bound in zip(layers, old, strict=True):
        peak = peaks[layer.name].unsqueeze(1)
        if peak.any():
            rows = bound.view(layer.count, -1)
            now = largest_weights(layer, per).to(bound)
            now = now.unsqueeze(1) if now.dim() == 1 else now
            rows.copy_(torch.where((peak == 0) & (per == "entity"), rows, now))

"""Training that shrinks: what is zero and stays zero leaves the network between two epochs.

A budget is met as soon as it can be, and when three eighths of the phase are over at the latest: the
network is cut to it, and the epochs that are left train the small one without a penalty. Where
fine-tuning begins with the dense network's weights, these epochs are added to it instead.

The whole network, its optimiser, regularizer and steering stay where they are and serve as the store:
after every epoch the smaller ones are written back into them, so checkpoints, masks and reports know
only the original, and what is stored besides is which entities are left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.pruning.budget import Limits, ramp_epochs
from spr_or.pruning.chosen_entities import ChosenEntities
from spr_or.pruning.compaction.api import CompactionError
from spr_or.pruning.left import whole_masks, whole_numbers
from spr_or.pruning.masks import apply_masks_
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.narrowing import (
    CannotShrink,
    Narrowing,
    by_layer,
    narrow,
    narrowed_entities,
    numbers_of_left,
    read_optimizer_,
    write_,
    write_optimizer_,
)
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.removed_share import Counter
from spr_or.pruning.spares import Spares
from spr_or.pruning.stays_zero import stays_zero
from spr_or.pruning.steering import Steering, leaving
from spr_or.training.meet_budget import meet_budget
from spr_or.training.metrics import Record
from spr_or.training.recipe import Recipe
from spr_or.training.seed_run import SeedRun

Masks = dict[str, Tensor]

_BATCHES = 8  # over which the gradient is averaged
_WORTH = 0.05  # of the operations: less is not worth a new network


class Trainee(NamedTuple):
    """A network under training with what is built on it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    spr: SPR | None = None
    steering: Steering | None = None


@dataclass
class Shrinking:
    """The whole ``trainee`` of a phase, and the smaller one that is trained in its place.

    ``make_optimizer(model, spr)`` and ``make_steering(model, spr, left)`` build the smaller one's.
    ``left``: {layer: bool (N,)}, the entities that are still there; None as long as all are.
    ``budget``: what `meet_budget` told when the network was cut to the budget, after so many ``epochs``.
    """

    run: SeedRun
    trainee: Trainee
    make_optimizer: Callable[[nn.Module, SPR | None], torch.optim.Optimizer]
    make_steering: Callable[[nn.Module, SPR, Masks], Steering] | None = None
    limits: Mapping[str, Limits] = field(default_factory=dict)
    left: Masks | None = None
    zero_epochs: dict[str, Tensor] = field(default_factory=dict)  # how long entities have been zero
    macs_pct: float = 100.0  # the multiplications of what is trained now, in percent of all
    refused: bool = False
    budget: Record | None = None
    epochs: int | None = None
    _smaller: Trainee | None = None
    _narrowing: Narrowing | None = None
    _counter: Counter | None = None

    @property
    def hold(self) -> Callable[[], None] | None:
        """What must follow each step of the smaller network, if anything."""
        held = self._narrowing is not None and self._narrowing.held
        return self._narrowing.hold if self._narrowing is not None and held else None

    @property
    def now(self) -> Trainee:
        """What is trained now."""
        return self._smaller or self.trainee

    def narrow_to(self, left: Masks) -> bool:
        """Go on without the entities that ``left`` (True = keep) has not; whether that was possible.

        The whole network is silenced there. Where the smaller one would train differently, the display
        says why, nothing is changed, and what was trained goes on being trained.
        """
        model = self.trainee.model
        layers = self.run.chosen.of(model)
        by_module = module_masks(model, layers, left)
        silenced = copy.deepcopy(model)
        apply_masks_(silenced, by_module, self.run.example)
        try:
            narrowing = narrow(silenced, self.run.chosen.of(silenced), left, self.run.example)
            smaller = self._built(narrowing, left)
        except (CannotShrink, CompactionError) as error:
            self.refused = True
            self.run.display.warn(f"training does not shrink: {error}")
            return False
        apply_masks_(model, by_module, self.run.example)
        self.left, self._narrowing, self._smaller = left, narrowing, smaller
        if self.budget is not None:
            for trainee in (self.trainee, smaller):
                if trainee.steering is not None:
                    trainee.steering.finish()
        self.macs_pct = self._macs_pct(left)
        self.run.scorings.clear()
        return True

    def _built(self, narrowing: Narrowing, left: Masks) -> Trainee:
        """The smaller trainee, with the state of the whole one."""
        whole, model = self.trainee, narrowing.network
        if whole.spr is None:
            optimizer = self.make_optimizer(model, None)
            read_optimizer_(narrowing, optimizer, whole.optimizer, whole.model)
            return Trainee(model, optimizer)
        assert self.make_steering is not None and whole.steering is not None
        spr = narrowed_spr(whole.spr, narrowing, whole.model, self.run.chosen)
        optimizer = self.make_optimizer(model, spr)
        read_optimizer_(narrowing, optimizer, whole.optimizer, whole.model)
        steering = self.make_steering(model, spr, left)
        _read_steering_(narrowing, steering, whole.steering)
        return Trainee(model, optimizer, spr, steering)

    def write_back(self) -> None:
        """Bring the whole trainee up to date."""
        if self._narrowing is None or self._smaller is None:
            return
        whole, small = self.trainee, self._smaller
        write_(self._narrowing, whole.model)
        write_optimizer_(self._narrowing, small.optimizer, whole.optimizer, whole.model)
        if small.steering is not None and whole.steering is not None:
            _write_steering_(self._narrowing, small.steering, whole.steering)

    def after_epoch(self, epoch: int, seed: int) -> bool:
        """Remove what is zero and stays so; True if the network became smaller.

        ``seed`` draws the batches on which the gradient is averaged.
        """
        small, recipe = self.now, self.run.recipe
        if small.spr is None or small.steering is None or self.refused or self.budget is not None:
            return False
        masks = leaving(small.model, small.spr, recipe.spr)
        present = self.left or {name: torch.ones_like(keep) for name, keep in masks.items()}
        present = {name: keep.cpu() for name, keep in present.items()}
        found = {n: keep.cpu() for n, keep in whole_masks(masks, present).items()}
        for name, keep in found.items():
            so_far = self.zero_epochs.get(name, torch.zeros(len(keep), dtype=torch.int64))
            self.zero_epochs[name] = torch.where(keep, 0, so_far + 1)
        if epoch + 1 >= recipe.spr.epochs:
            return False  # the cut by the budget comes next
        if _is_due(small.steering, epoch):
            return self._cut(small.steering, epoch)
        left = self._without_long_zeros(present, None)
        if not self._worth(present, left):
            return False
        optimal = stays_zero(
            small.model, small.spr, self._chosen_now(), masks,
            islice(self.run.data.train(seed), _BATCHES), _loss(recipe),
        )  # fmt: skip
        left = self._without_long_zeros(present, whole_masks(optimal, present))
        if not self._worth(present, left):
            return False
        self.write_back()
        before = self.macs_pct
        if not self.narrow_to(left):
            return False
        self._tell(epoch, before, left)
        return True

    def _cut(self, steering: Steering, epoch: int) -> bool:
        """Cut the network to the budget after this epoch; whether that was possible."""
        whole, could_go = self.trainee, steering.course.shares[-1]
        assert whole.spr is not None
        networks = [whole.model, *([self._smaller.model] if self._smaller is not None else [])]
        weights = [copy.deepcopy(network.state_dict()) for network in networks]
        masks, budget = meet_budget(
            self.run, steering, could_go, whole.model, whole.spr, self.write_back
        )
        before, self.budget, self.epochs = self.macs_pct, budget, epoch + 1
        if not self.narrow_to(masks):
            self.budget = self.epochs = None
            for network, held in zip(networks, weights, strict=True):
                network.load_state_dict(held)  # without what the cut gave back or improved
            return False
        self._tell(epoch, before, masks)
        return True

    def _tell(self, epoch: int, before: float, left: Masks) -> None:
        gone = sum(int((~keep).sum()) for keep in left.values())
        self.run.display.say(
            f"seed {self.run.seed} spr: after epoch {epoch} the network shrinks to "
            f"{self.macs_pct:.0f} % of the multiplications "
            f"(by {100 * (1 - self.macs_pct / before):.0f} %; {gone} entities are gone)"
        )

    @property
    def ends(self) -> bool:
        """Whether the rest of the phase would be lost: fine-tuning has other weights to begin with."""
        return self.budget is not None and self.run.recipe.finetune.start == "dense"

    def _chosen_now(self) -> ChosenEntities:
        if self._narrowing is None:
            return self.run.chosen
        whole = self.trainee
        return narrowed_entities(
            self._narrowing, whole.model, self.run.chosen.of(whole.model), self.run.chosen
        )

    def _without_long_zeros(self, present: Masks, optimal: Masks | None) -> Masks:
        """What is left without entities that have been zero for long enough, as the limits allow.

        No more goes than the budget asks for, and those first that the cut at the end would take first.
        """
        least = self.run.recipe.spr.shrink_after
        gone = {name: keep & (self.zero_epochs[name] >= least) for name, keep in present.items()}
        if optimal is not None:
            gone = {name: rows & optimal[name].cpu() for name, rows in gone.items()}
        age = self._age(present)
        oldest = torch.cat([age[name][rows] for name, rows in gone.items()]).sort().values

        def left_with(count: int) -> Masks:
            last = oldest[count - 1] if count else -math.inf
            return {
                name: _as_allowed(
                    keep,
                    gone[name] & (age[name] <= last),
                    age[name],
                    self.limits.get(name, Limits()),
                )
                for name, keep in present.items()
            }

        target, counter = self.run.recipe.spr.target_removed_pct, self.run.counter
        if target is None or counter is None or counter(left_with(len(oldest))) <= target:
            return left_with(len(oldest))
        low, high = 0, len(oldest)  # the first fits, the second does not
        while high - low > 1:
            middle = (low + high) // 2
            if counter(left_with(middle)) <= target:
                low = middle
            else:
                high = middle
        return left_with(low)

    def _age(self, present: Masks) -> Masks:
        """The smaller, the sooner an entity goes in the cut: when it was last not zero, or else y~."""
        steering = self.now.steering
        assert steering is not None
        if steering.spares is not None:
            age = steering.spares.age
        else:
            values = steering.spr.entity_values()
            age = {name: value.indicator.double().cpu() for name, value in values.items()}
        return whole_numbers(age, present, -math.inf)

    def _worth(self, before: Masks, after: Masks) -> bool:
        if all(torch.equal(before[name], after[name]) for name in before):
            return False
        return self._macs_pct(after) <= (1 - _WORTH) * self._macs_pct(before)

    def _macs_pct(self, masks: Masks) -> float:
        """The multiplications of the network that ``masks`` leave, in percent of all."""
        model = self.trainee.model
        if self._counter is None:
            self._counter = Counter(model, self.run.example, of="macs")
        return 100 - self._counter(module_masks(model, self.run.chosen.of(model), masks))

    def describe(self) -> Record:
        """The present size, for the record of an epoch."""
        return {"macs_pct": round(self.macs_pct, 2)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the whole trainee's state."""
        return {
            "left": self.left,
            "zero_epochs": dict(self.zero_epochs),
            "budget": self.budget,
            "epochs": self.epochs,
            "refused": self.refused,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, when the whole trainee has been loaded."""
        self.zero_epochs = dict(state["zero_epochs"])
        self.budget, self.epochs = state.get("budget"), state.get("epochs")
        if state["left"] is not None:
            self.narrow_to(state["left"])
        self.refused = state.get("refused", False)


def _is_due(steering: Steering, epoch: int) -> bool:
    """Whether the budget is to be met after this epoch: what could go is enough, or it is time."""
    course = steering.course
    if course.target is None:
        return False
    return course.shares[-1] >= course.target or epoch + 1 >= ramp_epochs(course.epochs)


def narrowed_spr(spr: SPR, narrowing: Narrowing, model: nn.Module, chosen: ChosenEntities) -> SPR:
    """``spr`` of ``model`` on the smaller network: the same lambda, and M and u of what is left."""
    left = narrowed_entities(narrowing, model, spr.layers, chosen)
    return SPR(
        narrowing.network,
        float(spr.lam),
        spr.alpha,
        numbers_of_left(spr, spr.bound, narrowing.masks),
        variant=spr.variant,
        u=numbers_of_left(spr, spr.importance, narrowing.masks),
        **left._asdict(),
    )


def _as_allowed(keep: Tensor, gone: Tensor, age: Tensor, limits: Limits) -> Tensor:
    """What stays of the entities in ``keep`` without those in ``gone``, in an allowed number.

    The last one of a layer stays, unless the layer is one branch. Of those that could go, those of the
    smallest ``age`` go first.
    """
    alive = keep & ~gone
    fewest = max(int(alive.sum()), limits.least, 0 if limits.branch else 1)
    stay = min(n for n in limits.allowed(len(keep)) if n >= fewest)
    order = torch.argsort(torch.where(alive, math.inf, torch.where(keep, age, -math.inf)))
    left = torch.zeros_like(keep)
    left[order.flip(0)[:stay]] = True
    return left & keep


def _loss(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    smoothing = recipe.train.label_smoothing
    return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)


def _read_steering_(narrowing: Narrowing, part: Steering, whole: Steering) -> None:
    """Give the smaller network's steering what the whole one knows; its bounds are those of its SPR."""
    part.course.load(whole.course.state())
    part.spr.lam = float(whole.spr.lam)
    if part.spares is None or whole.spares is None:
        return
    for name, copies in part.spares.copies.items():
        part.spares.age[name] = whole.spares.age[name][narrowing.masks[name]]
        originals = dict(zip(_names(whole, name), whole.spares.copies[name], strict=True))
        for key, copied in zip(_names(part, name), copies, strict=True):
            copied.copy_(narrowing.part(key, originals[key]))


def _write_steering_(narrowing: Narrowing, part: Steering, whole: Steering) -> None:
    """The inverse of `_read_steering_`."""
    whole.course.load(part.course.state())
    whole.spr.lam = float(part.spr.lam)
    mine = {layer.name: rows for layer, rows in by_layer(part.spr, part.spr.bound)}
    for layer, rows in by_layer(whole.spr, whole.spr.bound):
        if layer.name in mine:
            rows[narrowing.masks[layer.name].to(rows.device)] = mine[layer.name]
    if part.spares is None or whole.spares is None:
        return
    for name, copies in part.spares.copies.items():
        whole.spares.age[name][narrowing.masks[name]] = part.spares.age[name]
        originals = dict(zip(_names(whole, name), whole.spares.copies[name], strict=True))
        for key, copied in zip(_names(part, name), copies, strict=True):
            narrowing.put_(key, originals[key], copied, rest=None)


def _names(steering: Steering, layer: str) -> list[str]:
    """The names of the tensors of which the spares of a layer are copies."""
    assert isinstance(steering.spares, Spares)
    names = {id(module): name for name, module in steering.model.named_modules()}
    return [f"{names[id(place.module)]}.{place.key}" for place in steering.spares.places[layer]]

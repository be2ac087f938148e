"""Pruning to a target in a training loop of one's own: `Pruner`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from spr_or.pruning.budget import (
    TOLERANCE,
    Amount,
    Count,
    MaskChoice,
    layer_limits,
    reachable_pct,
)
from spr_or.pruning.chosen_entities import chosen_entities
from spr_or.pruning.compaction.api import CompactionWarning, compact
from spr_or.pruning.counts import Example
from spr_or.pruning.exact_cut_masks import ExactCut, cut_task, widths_decide
from spr_or.pruning.ignored import Ignored
from spr_or.pruning.lam_words import AUTO, share_of_max
from spr_or.pruning.largest_lam import BATCHES, Pulls
from spr_or.pruning.layer_entities import EntitySpec
from spr_or.pruning.masks import apply_masks_, collapsed_layers, hold_masks
from spr_or.pruning.measures import MEASURES, counter_of, of_entities
from spr_or.pruning.module_masks import branches_of, module_masks
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.pruning_report import PruningReport, pruning_report
from spr_or.pruning.regularizer import SPR, PerEntity
from spr_or.pruning.steering import Steering, decide_masks
from spr_or.pruning.unwrap import unwrap

_AHEAD = 20.0  # points ahead of the schedule: lambda was far too strong

Record = dict[str, Any]
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class _Settings:
    """What `Steering` asks of a `Pruner`."""

    lam: float | str
    epochs: int
    target_removed_pct: float
    method: str = "prox"
    lam_warmup: int = 0
    bounds: str = "layer"
    bounds_every: int = 0
    zero_below: float = 0.0
    share: float = 1.0


class CollapseWarning(UserWarning):
    """A layer has lost all of its entities while lambda was on its way to the target."""


class Pruner:
    """Prunes a model to a target while you train it.

    It makes an `SPR` with the bounds M of the model as it is given (train it first) and a `ProxSGD`.
    Train with ``pruner.optimizer`` and call `epoch_end` after each epoch, which steers λ as recipes
    do. After ``epochs`` epochs it cuts to the target: masks are chosen and applied. From then on
    the optimiser is plain SGD that holds the masks, so fine-tuning is the same loop. `compact`
    builds the small network at any time.

    Parameters
    ----------
    model : changed in place, as training does; on the device whose time counts, for ``"latency"``.
        Wrappers (torch.compile, DataParallel) are looked through.
    example : an input: a tensor, a tuple of positional or a dict of keyword inputs. Its values do not
        matter, its sizes do for ``"macs"`` and ``"latency"``.
    target : ``{"params": share}``, ``{"macs": share}`` or ``{"latency": share}`` to remove, between 0
        and 1. Operations are those of convolutions and linear layers, and so is the time, which is
        measured once for each machine, see `spr_or.pruning.latency`. With ``cut="exact"`` it may name
        several of them: λ follows the first, and the cut meets all.
    epochs : number of epochs before the cut
    cut : ``"rank"``, by the order in which a larger λ would remove entities, or ``"exact"``, the smallest
        sum of prices as an integer program, see `spr_or.pruning.exact_cut_masks`
    entities, include_norm : what is kept or removed as a whole, as for `SPR`: ``"filters"``,
        ``"channels"``, ``"heads"``, ``"neurons"`` (hidden units), ``"blocks"`` (residual branches), several
        of them in a list, or groups of your own. One weight is in one entity: ``"channels"`` contain
        filters and neurons, so they stand for themselves.
    ignored : layers that keep everything, by name, glob pattern or type. Layers that write the
        network's outputs always do.
    min_keep, max_keep : what a layer keeps at least and at most: an int is a number of entities, a
        float a share; or ``{name or glob pattern: either}``. A layer is never emptied unless
        ``min_keep=0``. A residual branch (``"blocks"``) stays or goes whole.
    round_to : the number that a layer keeps is a multiple of it (or everything), for hardware. Those
        that are farthest from zero stay.
    lam : where λ starts: ``"auto"``, a share of the largest λ of this network such as ``"0.1 max"``
        (see `spr_or.pruning.largest_lam`), or a number. For the first two the first epoch trains
        without SPR, to count its steps and look at gradients. None is ``"auto"``.
    alpha, u : as for `SPR`
    lr, momentum, weight_decay, nesterov : of the optimiser. A scheduler works as on any other.

    Attributes
    ----------
    optimizer : the `ProxSGD`
    spr : the `SPR`; ``spr.lam`` is λ of this epoch
    choice : after the cut, the masks with the share removed, see `MaskChoice`; before it None

    Raises ``ValueError`` for a target, limits or layers that make no sense, and for a target that the
    entities cannot reach, with what they can.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> pruner = Pruner(model, torch.zeros(1, 4), {"params": 0.5}, epochs=2, entities="neurons")
    >>> for epoch in range(2):
    ...     pruner.optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     pruner.step()
    ...     _ = pruner.epoch_end()
    >>> pruner.compact().get_submodule("0").weight.shape
    torch.Size([8, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        target: Mapping[str, float],
        epochs: int = 30,
        *,
        entities: EntitySpec = "filters",
        include_norm: bool = False,
        ignored: Ignored = (),
        min_keep: Amount | Mapping[str, Amount] = 1,
        max_keep: Amount | Mapping[str, Amount] = 1.0,
        round_to: int = 1,
        cut: Literal["rank", "exact"] = "rank",
        lam: float | str | None = "auto",
        alpha: float = 0.1,
        u: str | PerEntity = "share",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
    ) -> None:
        self.measure = _checked_target(target, cut)
        if not _is_a(Integral, epochs) or epochs < 1:
            raise ValueError(f"epochs must be a whole number of at least 1, got {epochs!r}")
        for name, number, holds, range_ in (
            ("lr", lr, 0 < lr < math.inf, "positive and finite"),
            ("momentum", momentum, 0 <= momentum < 1, "at least 0 and below 1"),
            ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "at least 0 and finite"),
            ("alpha", alpha, 0 <= alpha < 1, "at least 0 and below 1: with 1 nothing goes"),
        ):
            if not holds:
                raise ValueError(f"{name} must be {range_}, got {number}")
        lam = "auto" if lam is None else lam
        self._share = share_of_max(lam, budget=True)
        self._auto = lam == AUTO
        number = 0.0 if isinstance(lam, str) else lam
        if self._share is None and not number:
            raise ValueError(f"lam must be positive, for it is moved by factors, got {lam}")
        self.model = unwrap(model)
        self.example = example
        self.epochs = epochs
        self.epoch = 0  # the number of finished ones
        self.choice: MaskChoice | None = None
        self._miss: str | None = None  # that the cut missed the target
        here = _on_device(example, self.model)
        which = chosen_entities(self.model, here, entities, include_norm, ignored)._asdict()
        bounds = SPR.bounds_from(self.model, **which)
        self.spr = SPR(self.model, number, alpha, bounds, u=u, **which)
        self.limits = layer_limits(
            {layer.name: layer.count for layer in self.spr.layers},
            min_keep,
            max_keep,
            round_to,
            branches_of(self.spr.layers),
        )
        self.optimizer = ProxSGD(
            self.model,
            self.spr,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
        self.optimizer.register_step_pre_hook(self._before_step)
        self.optimizer.register_step_post_hook(self._after_step)
        self._settings = _Settings(lam, epochs, 100 * target[self.measure])
        self._count = self._counter(self.measure)
        self._refuse_out_of_reach()
        self._budgets = {name: 100 * share for name, share in target.items()}
        self._exact = None
        if cut == "exact":
            self._exact = cut_task(self.model, here, self.spr.layers, self.limits, self._budgets)
        self._steps = 0  # of the first epoch
        self._step_of_epoch = 0
        self._in_step = False
        self._hold: Callable[[], None] | None = None
        self._pulls = None if self._share is None else Pulls(self.spr)
        self._steering = None if self._share is not None else self._steered(number)

    def step(self) -> None:
        """One step of the optimiser; ``pruner.optimizer.step()`` is the same."""
        self.optimizer.step()

    def epoch_end(self) -> Record:
        """After an epoch: set λ from here on; after the last one: `cut`. After that: nothing.

        In fewer than twenty long epochs λ is moved within them too, from the second on.

        Returns what was measured, as in the records of recipes: λ of the epoch (``lam``), the share
        that could go now (``removable_pct``) and the one that should (``scheduled_pct``).
        """
        if self.choice is not None:
            return {}
        first = self._steering is None
        if self._steering is None:
            if not self._steps:
                raise ValueError("epoch_end() before any step of pruner.optimizer")
            self._steering = self._steered(self._start())
        record = self._steering.end(self.epoch)
        if self.epoch == 0:
            self._steering.course.read_within(self._steps)
        self._step_of_epoch = 0
        if first:  # an epoch without SPR says nothing about where lambda should go
            self._steering.course.lam = self._steering.course.start
        if not first:
            self._warn_of_collapse(record)
        self.epoch += 1
        if self.epoch == self.epochs:
            self.cut()
        else:
            self._steering.begin(self.epoch)
        return record

    def cut(self) -> MaskChoice:
        """Choose the masks that meet the target, apply them, and hold them from now on.

        `epoch_end` calls it when it is time; call it to stop earlier.
        """
        if self.choice is None:
            steering = self._steering or self._steered(0.0)
            choice = steering.cut()
            self._keep_only(choice)
        assert self.choice is not None
        return self.choice

    @property
    def masks(self) -> Masks:
        """True = keep, by module or parameter: those of the cut, before it what is not zero now."""
        return module_masks(self.model, self.spr.layers, self._entity_masks())

    def hold(self) -> None:
        """Silence the masked entities again; needed only after a step of another optimiser."""
        if self._hold is not None:
            self._hold()

    def compact(self) -> fx.GraphModule:
        """The small network, in evaluation mode, see `spr_or.pruning.compaction.api.compact`."""
        small = compact(self.model, self.masks, _on_device(self.example, self.model))
        assert isinstance(small, fx.GraphModule)
        return small

    def report(self) -> PruningReport:
        """What was removed, layer by layer: a dict that prints as a table."""
        masks = self._entity_masks()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CompactionWarning)  # the notes say the same
            small = self.compact()
        here = _on_device(self.example, self.model)
        report = pruning_report(self.model, small, here, masks, self.spr.layers)
        report["target"] = {name: pct / 100 for name, pct in self._budgets.items()}
        if "latency" in self._budgets:
            report["removed"]["latency"] = self._counter("latency")(masks) / 100
        if self.choice is None:
            report["notes"].append(
                f"the cut comes after {self.epochs} epochs, {self.epoch} are finished: this is what "
                "is zero now"
            )
        elif self._miss is not None:
            report["notes"].append(self._miss)
        return report

    def _missed(self) -> str | None:
        """That the cut missed the target, where it did: the one by rank by more than a point."""
        target = self._settings.target_removed_pct
        if self.choice is None:
            return None
        if self._exact is not None:
            exact: ExactCut | None = self.choice.exact  # None after `load_state_dict`, too
            return None if exact is None else exact.warning()
        if abs(self.choice.removed_pct - target) <= TOLERANCE:
            return None
        nearer = "another min_keep may come nearer"
        here = _on_device(self.example, self.model)
        if widths_decide(self.model, here, self.spr.layers):
            nearer = 'cut="exact" may come nearer, and so may another min_keep'
        return (
            f"the target of {target:g} % of the {MEASURES[self.measure]} is missed: the cut by rank "
            f"removes {self.choice.removed_pct:.1f} %; {nearer}"
        )

    def state_dict(self) -> Record:
        """What `load_state_dict` takes, beside the state dicts of model and optimiser."""
        return {
            "epoch": self.epoch,
            "steps": self._steps,
            "step_of_epoch": self._step_of_epoch,
            "lam": float(self.spr.lam),
            "bound": self.spr.bound.cpu(),
            "start": None if self._steering is None else self._steering.course.start,
            "steering": None if self._steering is None else self._steering.state(),
            "choice": None if self.choice is None else self.choice._replace(exact=None)._asdict(),
            "pulls": None if self._pulls is None else self._pulls.state(),
        }

    def load_state_dict(self, state: Record) -> None:
        """Continue from `state_dict`; load those of model and optimiser first."""
        self.epoch, self._steps = state["epoch"], state["steps"]
        self._step_of_epoch = state.get("step_of_epoch", 0)
        self.spr.lam = state["lam"]
        if "bound" in state:  # M is that of the network which the phase began with
            self.spr.bound.copy_(state["bound"])
        if self._pulls is not None and state.get("pulls") is not None:
            self._pulls.load(state["pulls"])
        if state["steering"] is not None:
            self._steering = self._steered(state["start"])
            self._steering.load(state["steering"])
            self.spr.lam = state["lam"]
        if state["choice"] is not None:
            self._keep_only(MaskChoice(**state["choice"]))

    def _entity_masks(self) -> Masks:
        if self.choice is not None:
            return self.choice.masks
        return decide_masks(self.model, self.spr, self._settings)

    def _start(self) -> float:
        """Where lambda starts after a first epoch without SPR."""
        assert self._pulls is not None and self._share is not None
        group = self.optimizer.param_groups[0]
        step = float(group["lr"]) / (1 - group["momentum"])
        total = step * self._steps * self.epochs
        if self._auto:
            return self._pulls.starting_lam(step, total, self._settings.target_removed_pct)
        return self._share * self._pulls.largest_lam(step, total)

    def _before_step(self, *_: Any) -> None:
        # Once any SGD exists, torch calls the hooks of a subclass twice: for its step and SGD's in it.
        if self._in_step:
            return
        self._in_step = True
        looking = self._steering is None and self.choice is None
        if looking and self._pulls is not None and self._pulls.batches < BATCHES:
            self._pulls.add()

    def _after_step(self, *_: Any) -> None:
        if self._in_step and self.choice is None:
            self._step_of_epoch += 1
            if self.epoch == 0:
                self._steps = self._step_of_epoch
            elif self._steering is not None:
                self._steering.within(self.epoch, self._step_of_epoch)
        self._in_step = False
        self.hold()

    def _warn_of_collapse(self, record: Record) -> None:
        """Name the layers that have nothing left, though the limits want something to stay; and tell of a
        share that is far ahead of the schedule."""
        lam = record["lam"]
        could, should = record["removable_pct"], record["scheduled_pct"]
        if could > should + _AHEAD:
            warnings.warn(
                f"{could:.0f} % of the {MEASURES[self.measure]} could go after epoch {self.epoch} with "
                f"lambda {lam:.4g}, where {should:.0f} % should: the network may have collapsed, look at "
                f"its accuracy in training. Start with a smaller one, Pruner(lam={lam / 10:.2g}), or take "
                "more epochs",
                CollapseWarning,
                stacklevel=3,
            )
        may_go = branches_of(self.spr.layers)
        masks = {
            name: keep
            for name, keep in self._entity_masks().items()
            if name not in may_go and self.limits[name].least > 0
        }
        if dead := collapsed_layers(masks):
            warnings.warn(
                f"nothing is left of {', '.join(dead)} after epoch {self.epoch} with lambda {lam:.4g}: "
                "the network may have collapsed. What is zero hardly returns, though the cut gives "
                f"each of these layers an entity back. Start with a smaller one, Pruner(lam={lam / 10:.2g}"
                "), or ask for less",
                CollapseWarning,
                stacklevel=3,
            )

    def _keep_only(self, choice: MaskChoice) -> None:
        self.choice = choice
        self._miss = self._missed()
        if self._miss is not None:
            warnings.warn(self._miss, stacklevel=4)
        self.optimizer.proximal = False
        apply_masks_(self.model, self.masks, self.example)
        self._hold = hold_masks(self.model, self.masks, self.example)

    def _steered(self, lam: float) -> Steering:
        steering = Steering(
            self._settings, self.model, self.spr, self._count, self.limits, self.example,
            exact=self._exact,
        )  # fmt: skip
        steering.course.start_at(lam)
        return steering

    def _counter(self, measure: str) -> Count:
        count = counter_of(measure, self.model, _on_device(self.example, self.model))
        return of_entities(count, self.model, self.spr.layers)

    def _refuse_out_of_reach(self) -> None:
        sizes = {layer.name: layer.count for layer in self.spr.layers}
        reachable = reachable_pct(self._count, sizes, self.limits)
        target = self._settings.target_removed_pct
        if target <= (unused := self._count({})):
            raise ValueError(
                f"target={{{self.measure!r}: {target / 100:g}}}: {unused:.1f} % of the "
                f"{MEASURES[self.measure]} are not used in evaluation and leave in any case. Ask for more"
            )
        if target > reachable + TOLERANCE:
            raise ValueError(
                f"target={{{self.measure!r}: {target / 100:g}}} cannot be reached: with as little "
                f"left in each of {len(sizes)} layers as the limits allow, {reachable:.1f} % of "
                f"the {MEASURES[self.measure]} are removed. Ask for no more than that, ignore fewer "
                "layers, regularise more (entities), or change min_keep or round_to"
            )


def _is_a(kind: type, value: object) -> bool:
    """Whether a value is a number of a kind, of Python's or NumPy's; true is none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _checked_target(target: Mapping[str, float], cut: str) -> str:
    """The measure that lambda follows; ``ValueError`` for a target that makes no sense."""
    if cut not in ("rank", "exact"):
        raise ValueError(f'cut must be "rank" or "exact", got {cut!r}')
    if not isinstance(target, Mapping) or not target or not set(target) <= set(MEASURES):
        raise ValueError(
            f'target must name one of {", ".join(MEASURES)}, as in {{"params": 0.6}}, got {target!r}'
        )
    if len(target) > 1 and cut == "rank":
        raise ValueError(
            f"target must name one of {', '.join(MEASURES)}, for the cut by rank follows one; with "
            f'cut="exact" it may name several. Got {target!r}'
        )
    for measure, share in target.items():
        if not _is_a(Real, share) or not 0 < share < 1:
            raise ValueError(
                f"target: the share of {measure} must lie between 0 and 1, got {share!r}"
            )
    return next(iter(target))


def _on_device(example: Example, model: nn.Module) -> Any:
    device = next(model.parameters()).device
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)

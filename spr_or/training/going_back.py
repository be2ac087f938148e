"""An epoch of the SPR phase in which the network collapsed: undone, and repeated with a smaller lambda.

Only weights, optimiser and steering from before the epoch are needed for that, so they are kept in
memory. The epoch has its own seed and what is recorded of it is only its last attempt, with those
before under ``went_back``. So a run that is killed meanwhile repeats all attempts exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from spr_or.pruning.budget import Masks
from spr_or.pruning.lam_words import AUTO
from spr_or.pruning.masks import collapsed_layers
from spr_or.pruning.steering import Steering
from spr_or.training.metrics import Record
from spr_or.training.outcome import lost
from spr_or.training.seed_run import RunError, SeedRun

_OTHER_CAUSE = 3  # so many lambdas smaller than our own choice failed: then it is not lambda

if TYPE_CHECKING:
    from spr_or.training.one_phase import Phase

ATTEMPTS = 6  # of an epoch: lambda falls to a thousandth


# Of its training accuracy above guessing, a network may lose this share to lambda. See docs/lab/lambda.md.
STRAIN = 0.15


class Diverged(RunError):
    """The loss of an epoch was not finite."""


class Fault(NamedTuple):
    """What is wrong after an epoch; one that is not ``fatal`` is repaired by the cut to a budget."""

    text: str
    fatal: bool


@dataclass(frozen=True)
class Watch:
    """When an epoch counts as a collapse, and whether lambda may be lowered then.

    ``start`` is the accuracy that the phase starts from, in percent (None: new weights); ``masks()``
    gives what stays of each layer that must keep something; ``steered`` says that lambda is not the
    user's, so that a smaller one may be tried.
    """

    start: float | None
    masks: Callable[[], Masks]
    steered: bool

    def fault(self, record: Record, best: float | None, classes: int) -> Fault | None:
        """What is wrong after an epoch, None if nothing is; ``best`` accuracy of those before.

        A layer that is empty while the network works is no fault where the budget has not got its
        share yet: then it may belong to what is to go.
        """
        had = self._had(best)
        dead = collapsed_layers(self.masks())
        # In training mode a network may work whose running statistics lag behind, and the accuracy of
        # training counts the steps before a layer died.
        fallen = lost(record["eval_accuracy"], had, classes) and bool(
            dead or lost(record["accuracy"], had, classes)
        )
        gone = f"nothing is left of {', '.join(dead)}"
        if fallen:
            text = f"the accuracy fell to {record['eval_accuracy']:.2f} %, that of guessing"
            return Fault(f"{text}, and {gone}" if dead else text, fatal=True)
        ahead = record.get("removable_pct", 0.0) > record.get("scheduled_pct", 100.0)
        return Fault(gone, fatal=False) if dead and ahead else None

    def strained(
        self, record: Record, best: float | None, classes: int, trained: float | None = None
    ) -> bool:
        """Whether training has lost too much of what the network could do: lambda must not rise on.

        That is half of what the network could do before, or a share of what it could in the best epoch of
        this phase so far, of training accuracy ``trained``: with the learning rate of the phase, but
        with a smaller lambda.

        What is still to go is then left to the cut, and fine-tuning starts from a network that has not
        forgotten everything.
        """
        now = record["accuracy"]
        return lost(now, self._had(best), classes, share=0.5) or (
            trained is not None and lost(now, trained, classes, share=1 - STRAIN)
        )

    def _had(self, best: float | None) -> float:
        return max((x for x in (self.start, best) if x is not None), default=0.0)


def good_epoch(
    run: SeedRun, phase: Phase, epoch: int, attempt: Callable[[], Record], best: float | None
) -> Record:
    """The record of an epoch that did not collapse; raises `RunError` where no lambda tried gives one.

    ``best`` is the best accuracy of the epochs before.
    """
    watch, steering = phase.watch, phase.steering
    if watch is None or steering is None:
        return attempt()

    def eased(record: Record) -> Record:
        trained = _best_training(run.metrics.records, phase.name)
        if watch.steered and watch.strained(record, best, run.data.classes, trained):
            steering.ease()
        return record

    if not isinstance(steering, Steering):
        return eased(attempt())
    before = _kept(phase) if watch.steered else None
    failed: list[Record] = []
    while True:
        record, fault = _tried(attempt, watch, best, run.data.classes)
        if fault is None:
            return eased(record) | ({"went_back": failed} if failed else {})
        lam = float(steering.spr.lam)
        if before is None or len(failed) + 1 == ATTEMPTS:
            if fault.fatal:
                raise RunError(_advice(run, epoch, fault.text, lam, failed))
            run.display.warn(f"epoch {epoch} of phase {phase.name}: {fault.text}")
            return record | {"went_back": failed}
        failed.append({"lam": lam, "why": fault.text})
        _restore(phase, before)
        steering.course.lower(len(failed), lam)
        run.display.warn(
            f"epoch {epoch} of phase {phase.name} with lambda {lam:.4g}: {fault.text}; it is "
            f"repeated with lambda {steering.course.lam:.4g}"
        )
        run.display.phase(f"seed {run.seed} {phase.name}", phase.epochs, run.data.train_rows, epoch)


def _best_training(records: Sequence[Record], phase: str) -> float | None:
    """The best training accuracy of the epochs of a phase so far."""
    return max((r["accuracy"] for r in records if r["phase"] == phase), default=None)


def _tried(
    attempt: Callable[[], Record], watch: Watch, best: float | None, classes: int
) -> tuple[Record, Fault | None]:
    try:
        record = attempt()
    except Diverged as error:
        if not watch.steered:
            raise
        return {}, Fault(str(error), fatal=True)
    return record, watch.fault(record, best, classes)


def _advice(run: SeedRun, epoch: int, fault: str, lam: float, failed: list[Record]) -> str:
    given = run.recipe.spr.lam
    tried = ", ".join(f"{f['lam']:.4g}" for f in failed)
    after = f" (after lambda {tried} in the same epoch)" if failed else ""
    collapsed = f"the network collapsed in epoch {epoch} of phase spr with lambda {lam:.4g}{after}: {fault}. "
    if given == AUTO and len(failed) >= _OTHER_CAUSE:
        return collapsed + (
            f"A smaller lambda did not help, so it is something else: lower spr.lr (it is "
            f"{run.recipe.spr.lr:g}), then look at train.weight_decay ({run.recipe.train.weight_decay:g}) "
            "and at what [data] does to the images"
        )
    wish = run.recipe.spr.target_removed_pct
    budget = (
        "or leave it out and say how much is to go, spr.target_removed_pct=50"
        if wish is None
        else f"or ask for less than spr.target_removed_pct={wish:g}"
    )
    return collapsed + (
        f"spr.lam = {given!r} is too large here: try spr.lam={lam / 10:.2g}, {budget}. If that fails too, "
        f"lower spr.lr (it is {run.recipe.spr.lr:g})"
    )


def _kept(phase: Phase) -> Record:
    """Copies of all that an epoch changes."""
    assert phase.steering is not None
    return copy.deepcopy(
        {
            "model": phase.model.state_dict(),
            "momentum": _momentum(phase.optimizer),
            "steering": phase.steering.state(),
        }
    )


@torch.no_grad()
def _restore(phase: Phase, kept: Record) -> None:
    """Write `_kept` back, in place: a captured step knows tensors by their address."""
    assert phase.steering is not None
    phase.model.load_state_dict(kept["model"])
    phase.steering.load(copy.deepcopy(kept["steering"]))
    for now, before in zip(_momentum(phase.optimizer), kept["momentum"], strict=True):
        if now is not None:
            now.zero_() if before is None else now.copy_(before)


def _momentum(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The momentum of each parameter; None before its first step, which is as good as zero."""
    return [
        optimizer.state[p].get("momentum_buffer") if p in optimizer.state else None
        for group in optimizer.param_groups
        for p in group["params"]
    ]

"""The epochs of one phase, with metrics and checkpoints.

Every epoch starts from its own seed, a function of the run's seed, the phase and the epoch. So a
checkpoint at the end of an epoch holds all that the next one depends on, and a run that was killed
repeats the broken epoch exactly.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from spr_or.training import checkpoint
from spr_or.training.going_back import Diverged, Watch, good_epoch
from spr_or.training.loop import NonFiniteLoss, train_epoch
from spr_or.training.method import SPR_ITSELF
from spr_or.training.metrics import Record
from spr_or.training.seed_run import SeedRun, epoch_seed
from spr_or.training.setup import batch_shape, steps_of_epoch
from spr_or.training.shrink import Shrinking, Trainee
from spr_or.training.speed import choose_speed
from spr_or.training.speed_table import network_key
from spr_or.training.speed_trials import compiled_if_it_works
from spr_or.training.step import Objective, Step, captured, make_step
from spr_or.utils.counted import counted

_KEYS = {
    "dense": "dense.lr",
    "spr": "spr.lr and spr.lam",
    "finetune": "finetune.lr (spr.lr without it)",
}


class BetweenSteps(Protocol):
    """What acts between the steps and epochs of a phase, and is kept in its checkpoints: `Steering` is one.

    ``within(epoch, step)`` follows each step, with the number of steps that the epoch has had;
    ``ease()`` follows an epoch in which training has lost too much of what the network could do.
    """

    def begin(self, epoch: int) -> None: ...
    def within(self, epoch: int, step: int) -> None: ...
    def end(self, epoch: int) -> Record: ...
    def ease(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What is trained, for how many epochs, and what goes with each step and epoch.

    ``title`` is what people read in place of the name. ``rate(epoch)`` is the learning rate;
    ``add_gradient``, ``after`` and ``objective`` are those of `make_step`; ``describe()`` adds to the
    record of an epoch; ``steering`` acts between steps and epochs, and ``watch`` tells an epoch in which the
    network collapsed; ``eager`` forbids compiled and captured steps. With
    ``shrinking`` the phase is the whole network's, and ``smaller(trainee)`` is that of the smaller one
    that is trained in its place.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: int
    rate: Callable[[int], float]
    add_gradient: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    describe: Callable[[], Record] = dict
    objective: Objective | None = None
    steering: BetweenSteps | None = None
    watch: Watch | None = None
    shrinking: Shrinking | None = None
    smaller: Callable[[Trainee], Phase] | None = None
    title: str = ""
    eager: bool = False

    def now(self) -> Phase:
        """The phase of what is trained now."""
        if self.shrinking is None or self.smaller is None or self.shrinking.left is None:
            return self
        return self.smaller(self.shrinking.now)


def train_phase(run: SeedRun, phase: Phase) -> float | None:
    """Train from the run's checkpoint on; the best accuracy of an epoch, None without epochs."""
    done, best = _continue(run, phase)
    whole = phase
    phase = phase.now()
    step = _make_step(run, phase, phase.epochs - done)
    run.display.phase(
        f"seed {run.seed} {phase.title or phase.name}", phase.epochs, run.data.train_rows, done
    )
    for epoch in range(done, phase.epochs):
        if whole.shrinking is not None and whole.shrinking.ends:
            break
        record = good_epoch(run, phase, epoch, partial(_epoch, run, phase, step, epoch), best)
        run.metrics.add(record)
        run.display.epoch(record)
        accuracy: float = record["eval_accuracy"]
        better = best is None or accuracy > best
        best = accuracy if best is None else max(best, accuracy)
        if whole.shrinking is not None:
            smaller = whole.shrinking.after_epoch(epoch, epoch_seed(run.seed, phase.name, epoch))
            if smaller and not whole.shrinking.ends:
                phase = whole.now()
                step = _make_step(run, phase, phase.epochs - epoch - 1)
            whole.shrinking.write_back()
        state = _state(run, whole, epoch + 1, best)
        checkpoint.save_last(run.checkpoints, state)
        if better:
            checkpoint.save_best(run.checkpoints, state)
    if phase.epochs > done:
        last = run.metrics.records[-1]
        trained = last["epoch"] + 1
        run.display.say(
            f"seed {run.seed} {phase.title or phase.name}: {counted(trained, 'epoch')}, "
            f"accuracy {last['eval_accuracy']:.2f} %"
        )
    return best


def _continue(run: SeedRun, phase: Phase) -> tuple[int, float | None]:
    """Fill the phase from its checkpoint, if any: the epochs done, and the best accuracy so far."""
    state = run.resumed(phase.name)
    if state is None:
        return 0, None
    phase.model.load_state_dict(state["model"])
    phase.optimizer.load_state_dict(state["optimizer"])
    if phase.steering is not None:
        phase.steering.load(state["steering"])
    if phase.shrinking is not None:
        phase.shrinking.load(state["shrinking"])
    return state["epoch"], state["best_accuracy"]


def _make_step(run: SeedRun, phase: Phase, epochs: int) -> Step:
    """The phase's training step for so many epochs, compiled where that pays, captured if wanted."""
    speed = run.recipe.speed
    step = make_step(
        _compiled_where_it_pays(run, phase, epochs),
        phase.optimizer,
        add_gradient=phase.add_gradient,
        after=phase.after,
        label_smoothing=run.recipe.train.label_smoothing,
        bf16=speed.amp == "bf16",
        objective=phase.objective,
    )
    return captured(step, phase.optimizer) if speed.cuda_graph and not phase.eager else step


def _compiled_where_it_pays(run: SeedRun, phase: Phase, epochs: int) -> nn.Module:
    """What the steps of so many epochs call; a phase that continues goes on as it began."""
    if phase.eager:
        return phase.model
    recipe, shape = run.recipe, batch_shape(run.recipe, run.data)
    key = f"{phase.name} {network_key(phase.model, shape)}"
    if recipe.speed.compile is not None or key not in run.speeds:
        steps = epochs * steps_of_epoch(recipe, run.data)
        lines: list[str] = []
        speed = choose_speed(
            recipe, phase.model, shape, steps, measuring=run.measuring, tell=lines.append
        )
        run.speeds[key] = {"compile": speed.compile}
        if speed.compile != run.speeds["run"]["compile"]:  # else it was told when the run began
            for line in lines:
                run.tell_once(line)
    if epochs and run.speeds[key]["compile"]:
        bf16 = recipe.speed.amp == "bf16"
        return compiled_if_it_works(phase.model, shape, bf16, run.tell_once)
    return phase.model


def _epoch(run: SeedRun, phase: Phase, step: Step, epoch: int) -> Record:
    """Train and evaluate one epoch; raises `RunError` when its loss or its weights are not finite."""
    started = time.perf_counter()
    lr, steering = phase.rate(epoch), phase.steering
    for group in phase.optimizer.param_groups:
        group["lr"] = lr
    if steering is not None:
        steering.begin(epoch)
    seed = epoch_seed(run.seed, phase.name, epoch)
    torch.manual_seed(seed)
    phase.model.train()
    try:
        scores = train_epoch(step, run.data.train(seed), _after_batch(run, steering, epoch))
    except NonFiniteLoss as error:
        what = f"the loss became {error.value} at step {error.step} of epoch {epoch}"
        raise Diverged(_not_finite(run, phase.name, what, lr)) from error
    if not _is_finite(phase.model):  # no loss has seen the weights of the last step
        what = f"weights became NaN or infinite in the last step of epoch {epoch}"
        raise Diverged(_not_finite(run, phase.name, what, lr))
    test = run.validate(phase.model)
    return {
        "phase": phase.name,
        "epoch": epoch,
        "lr": lr,
        "loss": scores.loss,
        "accuracy": scores.accuracy,
        "eval_loss": test.loss,
        "eval_accuracy": test.accuracy,
        **phase.describe(),
        **(steering.end(epoch) if steering is not None else {}),
        "seconds": round(time.perf_counter() - started, 3),
        "data_wait_share": round(scores.data_wait_share, 4),
    }


def _after_batch(run: SeedRun, steering: BetweenSteps | None, epoch: int) -> Callable[[int], None]:
    """Shows the rows that a step has taken in, and tells the steering of it."""
    if steering is None:
        return run.display.rows
    steps = itertools.count(1)

    def after(rows: int) -> None:
        run.display.rows(rows)
        steering.within(epoch, next(steps))

    return after


def _state(run: SeedRun, phase: Phase, epoch: int, best: float) -> checkpoint.State:
    """The checkpoint after ``epoch`` epochs of the phase."""
    state = {
        "phase": phase.name,
        "epoch": epoch,
        "seed": run.seed,
        "model": phase.model.state_dict(),
        "optimizer": phase.optimizer.state_dict(),
        "best_accuracy": best,
        "records": len(run.metrics.records),
        "speeds": run.speeds,
        **run.fixed,
    }
    if phase.steering is not None:
        state["steering"] = phase.steering.state()
    if phase.shrinking is not None:
        state["shrinking"] = phase.shrinking.state()
    return state


def _is_finite(model: nn.Module) -> bool:
    found = [t.isfinite().all() for t in model.state_dict().values() if t.is_floating_point()]
    return not found or bool(torch.stack(found).all())


def _not_finite(run: SeedRun, phase: str, what: str, lr: float) -> str:
    last = run.checkpoints / checkpoint.LAST
    keys = _KEYS[phase]
    if phase == "spr" and run.recipe.method.name != SPR_ITSELF:
        keys = "spr.lr and [method]"
    kept = f"last good checkpoint: {last}" if last.exists() else "no epoch was finished before"
    return (
        f"{what} of phase {phase}, with a learning rate of {lr:g}. "
        f"Look at {keys} in the recipe; {kept}"
    )

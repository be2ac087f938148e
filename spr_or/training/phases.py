"""The phases of a run for one seed: dense, SPR, fine-tuning with masks held.

Every epoch starts from its own seed, a function of the run's seed, the phase and the epoch. So a
checkpoint at the end of an epoch holds all that the next one depends on, and a run that was killed
repeats the broken epoch exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spr_or.pruning.masks import apply_masks_, collapsed_layers, hold_masks
from spr_or.pruning.regularizer import SPR
from spr_or.training import checkpoint, distributed
from spr_or.training.data.load import Data
from spr_or.training.distill import distilling
from spr_or.training.loop import NonFiniteLoss, Scores, evaluate, train_epoch
from spr_or.training.metrics import Metrics, Record
from spr_or.training.parameter_budget import TOLERANCE, Counter, reachable_pct
from spr_or.training.pruning import (
    decide_masks,
    describe,
    make_optimizer,
    make_sgd,
    make_spr,
    masked_pct,
)
from spr_or.training.recipe import Recipe, RecipeError
from spr_or.training.run_progress import RunDisplay
from spr_or.training.schedule import learning_rate
from spr_or.training.setup import fresh_model, load_weights
from spr_or.training.steering import Steering
from spr_or.training.step import Objective, Step, captured, make_scoring, make_step
from spr_or.utils.files import write_durably

PHASES = ("dense", "spr", "finetune")
_KEYS = {"dense": "dense.lr", "spr": "spr.lr and spr.lam", "finetune": "spr.lr"}


class RunError(RuntimeError):
    """A run that cannot go on; the message says why, what to change, and what is kept."""


@dataclass
class SeedRun:
    """One seed of a recipe on its way; ``state`` is the checkpoint it continues from."""

    recipe: Recipe
    seed: int
    folder: Path
    device: torch.device
    data: Data
    display: RunDisplay
    metrics: Metrics
    state: checkpoint.State | None = None
    fixed: dict[str, Any] = field(default_factory=dict)  # in every checkpoint from here on
    scorings: dict[nn.Module, Step] = field(default_factory=dict)  # a graph is captured once

    @property
    def checkpoints(self) -> Path:
        """The folder of ``last.pt``, ``previous.pt`` and ``best.pt``."""
        return self.folder / "checkpoints"

    def resumed(self, phase: str) -> checkpoint.State | None:
        """The checkpoint, if it lies in this phase."""
        return self.state if self.state is not None and self.state["phase"] == phase else None

    def is_past(self, phase: str) -> bool:
        """Whether the checkpoint lies in a later phase."""
        return self.state is not None and PHASES.index(self.state["phase"]) > PHASES.index(phase)

    def evaluate(self, model: nn.Module) -> Scores:
        """Scores on the evaluation split."""
        speed = self.recipe.speed
        if model not in self.scorings:
            score = make_scoring(model, speed.amp == "bf16")
            self.scorings[model] = captured(score) if speed.cuda_graph else score
        return evaluate(model, self.data.evaluate(0), score=self.scorings[model])


@dataclass(frozen=True)
class Trained:
    """What the phases leave for compaction and report."""

    dense: nn.Module
    pruned: nn.Module
    masks: dict[str, Tensor]
    bounds: dict[str, Tensor]
    dense_accuracy: float
    accuracy_before_finetune: float
    accuracy: float
    best_accuracy: float
    budget: Record | None  # how a budget was met: see `meet_budget`


def train(run: SeedRun) -> Trained:
    """All phases of one seed, from its checkpoint if there is one.

    Raises `RunError`, and `RecipeError` for a budget that the network's entities cannot give.
    """
    counter = make_counter(run)
    dense = dense_phase(run)
    dense_accuracy = run.evaluate(dense).accuracy
    recipe = run.recipe.spr
    bounds = SPR.bounds_from(
        dense, entities=recipe.entities, per=recipe.bounds, include_norm=recipe.include_norm
    )
    run.fixed = {"bounds": {name: bound.cpu() for name, bound in bounds.items()}}
    if state := run.resumed("finetune"):
        model = fresh_model(run.recipe, run.seed, run.device)
        masks = {name: keep.to(run.device) for name, keep in state["masks"].items()}
        before, budget = state["before"], state["budget"]
    else:
        model, masks, budget = spr_phase(run, dense, bounds, counter)
        before = silence(run, model, masks)
    run.fixed |= {
        "masks": {name: keep.cpu() for name, keep in masks.items()},
        "before": before,
        "budget": budget,
    }
    accuracy, best = finetune_phase(run, dense, model, masks, before)
    return Trained(dense, model, masks, bounds, dense_accuracy, before, accuracy, best, budget)


def make_counter(run: SeedRun) -> Counter | None:
    """What counts for a budget, None without one; raises `RecipeError` for one out of reach."""
    recipe = run.recipe.spr
    if recipe.target_removed_pct is None:
        return None
    model = fresh_model(run.recipe, run.seed, run.device)
    counter = Counter(model, torch.zeros(2, *run.data.shape, device=run.device))
    sizes = {layer.name: layer.count for layer in make_spr(recipe, model, 1.0).layers}
    reachable = reachable_pct(counter, sizes)
    if recipe.target_removed_pct > reachable + TOLERANCE:
        raise RecipeError(
            f"spr.target_removed_pct = {recipe.target_removed_pct:g} cannot be reached: with one "
            f"entity left in each regularised layer, {reachable:.1f} % of the parameters of "
            f"{run.recipe.model} are removed. Ask for no more than that, or regularise more layers "
            f"(spr.entities is {recipe.entities!r})"
        )
    return counter


def dense_phase(run: SeedRun) -> nn.Module:
    """The network trained without SPR; kept as ``dense.safetensors``."""
    recipe = run.recipe.dense
    path = run.folder / "dense.safetensors"
    model = fresh_model(run.recipe, run.seed, run.device)
    if run.is_past("dense"):
        load_weights(model, path)
        return model
    if recipe.weights is not None:
        load_weights(model, recipe.weights)
    _train_phase(
        run,
        "dense",
        model,
        make_sgd(run.recipe, model),
        epochs=recipe.epochs,
        rate=lambda epoch: learning_rate(recipe, epoch, recipe.epochs),
    )
    if distributed.is_first():
        state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        write_durably(path, lambda aside: save_file(state, aside))
    return model


def spr_phase(
    run: SeedRun, dense: nn.Module, bounds: dict[str, Tensor], counter: Counter | None
) -> tuple[nn.Module, dict[str, Tensor], Record | None]:
    """The network trained with SPR, by its gradient or its proximal operator; what is to go.

    Returns the network, the masks, and what `meet_budget` tells of them if there is a budget.
    """
    recipe = run.recipe.spr
    model = fresh_model(run.recipe, run.seed, run.device)
    if recipe.start == "dense":
        model.load_state_dict(dense.state_dict())
    spr = make_spr(recipe, model, bounds)
    if run.recipe.speed.compile:
        spr.compile()
    steering = Steering(recipe, model, spr, counter)
    _train_phase(
        run,
        "spr",
        model,
        make_optimizer(run.recipe, model, spr),
        epochs=recipe.epochs,
        rate=_pruning_rate(run.recipe, 0),
        add_gradient=spr.add_gradient_ if recipe.method == "gradient" else None,
        describe=lambda: describe(model, spr, recipe),
        steering=steering,
    )
    masks = decide_masks(model, spr, recipe)
    if counter is None:
        return model, masks, None
    return model, *meet_budget(run, steering, counter(masks))


def meet_budget(
    run: SeedRun, steering: Steering, before: float
) -> tuple[dict[str, Tensor], Record]:
    """The masks that meet the budget, and the cut by rank that this took.

    The record holds the target, the share removed ``before`` the cut and after it (in percent of all
    parameters), how many entities the cut took (or gave back, if negative), the largest indicator
    among the entities that go, and the last lambda.
    """
    choice = steering.cut()
    target = run.recipe.spr.target_removed_pct
    assert target is not None
    run.display.say(
        f"seed {run.seed} budget: {before:.1f} % of the parameters in zero entities, cut by rank "
        f"({choice.cut:+d} entities) to {choice.removed_pct:.1f} %"
    )
    if abs(choice.removed_pct - target) > TOLERANCE:
        run.display.warn(
            f"the budget of {target:g} % is missed: the nearest that whole entities give is "
            f"{choice.removed_pct:.1f} %"
        )
    record = {
        "target_pct": target,
        "before_cut_pct": before,
        "after_cut_pct": choice.removed_pct,
        "cut_entities": choice.cut,
        "threshold": choice.threshold,
        "lam": float(steering.spr.lam),
    }
    return choice.masks, record


def silence(run: SeedRun, model: nn.Module, masks: dict[str, Tensor]) -> float:
    """Silence what goes; the accuracy that is left."""
    for name in collapsed_layers(masks):
        run.display.warn(f"layer {name} collapsed: none of its {len(masks[name])} entities is left")
    apply_masks_(model, masks)
    return run.evaluate(model).accuracy


def finetune_phase(
    run: SeedRun, dense: nn.Module, model: nn.Module, masks: dict[str, Tensor], before: float
) -> tuple[float, float]:
    """Train on with the masks held; accuracy of the last and of the best epoch."""
    recipe = run.recipe.finetune
    objective = None
    if recipe.distill > 0:
        objective = distilling(
            dense,
            recipe.distill,
            recipe.temperature,
            run.recipe.train.label_smoothing,
            run.recipe.speed.amp == "bf16",
        )
    best = _train_phase(
        run,
        "finetune",
        model,
        make_sgd(run.recipe, model),
        epochs=recipe.epochs,
        rate=_pruning_rate(run.recipe, run.recipe.spr.epochs),
        after=hold_masks(model, masks),
        describe=lambda: {"masked_filter_weights_pct": masked_pct(model, masks)},
        objective=objective,
    )
    return run.evaluate(model).accuracy, before if best is None else best


def _train_phase(
    run: SeedRun,
    phase: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    rate: Callable[[int], float],
    add_gradient: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
    describe: Callable[[], Record] = dict,
    objective: Objective | None = None,
    steering: Steering | None = None,
) -> float | None:
    """Epochs with metrics and checkpoints; the best accuracy of an epoch, None without epochs."""
    done, best = 0, None
    if state := run.resumed(phase):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done, best = state["epoch"], state["best_accuracy"]
        if steering is not None:
            steering.load(state["steering"])
    speed = run.recipe.speed
    bf16 = speed.amp == "bf16"
    network = torch.compile(model) if speed.compile else model
    step: Step = make_step(
        network,  # type: ignore[arg-type]  # what torch.compile returns is called like a module
        optimizer,
        add_gradient=add_gradient,
        after=after,
        label_smoothing=run.recipe.train.label_smoothing,
        bf16=bf16,
        objective=objective,
    )
    if speed.cuda_graph:
        step = captured(step, optimizer)
    run.display.phase(f"seed {run.seed} {phase}", epochs, run.data.train_rows, done)
    for epoch in range(done, epochs):
        started = time.perf_counter()
        lr = rate(epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if steering is not None:
            steering.begin(epoch)
        seed = epoch_seed(run.seed, phase, epoch)
        torch.manual_seed(seed)
        model.train()
        try:
            scores = train_epoch(step, run.data.train(seed), run.display.rows)
        except NonFiniteLoss as error:
            raise RunError(_not_finite(run, phase, epoch, lr, error)) from error
        test = run.evaluate(model)
        record = {
            "phase": phase,
            "epoch": epoch,
            "lr": lr,
            "loss": scores.loss,
            "accuracy": scores.accuracy,
            "eval_loss": test.loss,
            "eval_accuracy": test.accuracy,
            **describe(),
            **(steering.end(epoch) if steering is not None else {}),
            "seconds": round(time.perf_counter() - started, 3),
            "data_wait_share": round(scores.data_wait_share, 4),
        }
        run.metrics.add(record)
        run.display.epoch(record)
        better = best is None or test.accuracy > best
        best = test.accuracy if best is None else max(best, test.accuracy)
        state = {
            "phase": phase,
            "epoch": epoch + 1,
            "seed": run.seed,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best_accuracy": best,
            "records": len(run.metrics.records),
            **run.fixed,
        }
        if steering is not None:
            state["steering"] = steering.state()
        checkpoint.save_last(run.checkpoints, state)
        if better:
            checkpoint.save_best(run.checkpoints, state)
    if epochs > done:
        last = run.metrics.records[-1]
        run.display.say(
            f"seed {run.seed} {phase}: {epochs} epochs, accuracy {last['eval_accuracy']:.2f} %"
        )
    return best


def epoch_seed(seed: int, phase: str, epoch: int) -> int:
    """The seed of an epoch: its order, its augmentation, its dropout.

    >>> epoch_seed(0, "dense", 1), epoch_seed(1, "spr", 0)
    (1, 500000)
    """
    return (seed * 4 + PHASES.index(phase)) * 100_000 + epoch


def _pruning_rate(recipe: Recipe, offset: int) -> Callable[[int], float]:
    """One schedule over SPR and fine-tuning; ``offset`` epochs of it lie behind."""
    epochs = recipe.spr.epochs + recipe.finetune.epochs
    return lambda epoch: learning_rate(recipe.spr, offset + epoch, epochs)


def _not_finite(run: SeedRun, phase: str, epoch: int, lr: float, error: NonFiniteLoss) -> str:
    last = run.checkpoints / checkpoint.LAST
    kept = f"last good checkpoint: {last}" if last.exists() else "no epoch was finished before"
    return (
        f"the loss became {error.value} at step {error.step} of epoch {epoch} of phase {phase}, "
        f"with a learning rate of {lr:g}. Look at {_KEYS[phase]} in the recipe; {kept}"
    )

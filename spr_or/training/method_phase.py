"""The pruning phase of a method other than SPR: its plan carried out, its scores cut to the budget."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.pruning.budget import TOLERANCE, Masks
from spr_or.pruning.measures import MEASURES
from spr_or.training.method import PruningPlan, PruningTask, find_method
from spr_or.training.metrics import Record
from spr_or.training.one_phase import Phase, epoch_seed, train_phase
from spr_or.training.pruning import make_limits, make_sgd, make_spr
from spr_or.training.schedule import learning_rate
from spr_or.training.seed_run import RunError, SeedRun
from spr_or.training.setup import fresh_model, steps_of_epoch
from spr_or.training.step import Objective

_SCORING_EPOCH = 90_000  # its seed: of no epoch that is trained


@dataclass(frozen=True)
class Course:
    """How the pruning phase went, as far as fine-tuning must know."""

    epochs: int  # that were trained
    restart: bool = False  # from new weights


def method_phase(
    run: SeedRun, dense: nn.Module, bounds: dict[str, Tensor]
) -> tuple[nn.Module, Masks, Record, Course]:
    """The network after the method's phase, masks that meet the budget, and how that went.

    Raises `RunError` for a network that the method does not understand, and for scores that are not
    finite.
    """
    recipe = run.recipe
    method = find_method(recipe.method.name)
    model = fresh_model(recipe, run.seed, run.device)
    if recipe.spr.start == "dense":
        model.load_state_dict(dense.state_dict())
    task = pruning_task(run, model, dense, bounds)
    watch = time.perf_counter
    try:
        started = watch()
        plan = method.plan(task, method.keys.model_validate(recipe.method.model_extra or {}))
        planned = watch() - started
        epochs = recipe.spr.epochs if plan.trains else 0
        train_phase(run, phase_of(run, task, plan, epochs, method.title))
        started = watch()
        scores = plan.scores()
        scored = watch() - started
        choice = task.cut(scores, plan.across)
    except (ValueError, ArithmeticError) as error:
        raise RunError(f"method {recipe.method.name} on {recipe.model}: {error}") from error
    plan.finish(choice.masks)
    run.display.say(
        f"seed {run.seed} {method.title}: cut by score to {choice.removed_pct:.1f} % of the "
        f"{MEASURES[recipe.spr.target_of]}"
    )
    if abs(choice.removed_pct - task.target_pct) > TOLERANCE:
        run.display.warn(
            f"the budget of {task.target_pct:g} % is missed: the nearest that whole entities give is "
            f"{choice.removed_pct:.1f} %"
        )
    if plan.restart:
        model = fresh_model(recipe, run.seed, run.device)
    record = {
        "target_pct": task.target_pct,
        "before_cut_pct": None,
        "after_cut_pct": choice.removed_pct,
        "cut_entities": choice.cut,
        "threshold": choice.threshold,
        "scoring_seconds": round(planned + scored, 3),  # the epochs have a clock of their own
    }
    return model, choice.masks, record, Course(epochs, plan.restart)


def pruning_task(
    run: SeedRun, model: nn.Module, dense: nn.Module, bounds: dict[str, Tensor]
) -> PruningTask:
    """What a run gives to a method."""
    recipe = run.recipe
    target = recipe.spr.target_removed_pct
    assert run.counter is not None and target is not None
    total = recipe.spr.epochs + recipe.finetune.epochs
    return PruningTask(
        model=model,
        dense=dense,
        layers=run.chosen.of(model),
        example=run.example,
        classes=run.data.classes,
        batches=lambda seed: run.data.train(epoch_seed(run.seed, "spr", _SCORING_EPOCH + seed)),
        accuracy=lambda network: run.validate(network).accuracy,
        epochs=recipe.spr.epochs,
        steps=steps_of_epoch(recipe, run.data),
        target_pct=target,
        removed_pct=run.counter,
        limits=make_limits(recipe.spr, make_spr(recipe.spr, model, bounds, run.chosen)),
        seed=run.seed,
        rate=lambda epoch: learning_rate(recipe.spr, epoch, total),
        make_optimizer=lambda parameters: make_sgd(recipe, parameters),
    )


def phase_of(run: SeedRun, task: PruningTask, plan: PruningPlan, epochs: int, title: str) -> Phase:
    """The plan's training, with the network in the mode of training and the plan's parts in place."""
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in task.model.modules())
    parameters = [*task.model.parameters(), *plan.parameters]
    return Phase(
        name="spr",
        model=task.model,
        optimizer=plan.optimizer or task.make_optimizer(parameters),
        epochs=epochs,
        rate=task.rate,
        add_gradient=plan.after_backward,
        after=plan.after_step,
        objective=_with_term(run, plan) if plan.term is not None else None,
        steering=_Between(plan),
        title=title,
        eager=bool(hooked or plan.parameters),
    )


@dataclass(frozen=True)
class _Between:
    """A plan's part between epochs, as `train_phase` calls it."""

    plan: PruningPlan

    def begin(self, epoch: int) -> None:
        self.plan.before_epoch(epoch)

    def end(self, epoch: int) -> Record:
        return self.plan.after_epoch(epoch)

    def state(self) -> dict[str, Any]:
        return self.plan.state()

    def load(self, state: dict[str, Any]) -> None:
        self.plan.load(state)


def _with_term(run: SeedRun, plan: PruningPlan) -> Objective:
    smoothing = run.recipe.train.label_smoothing

    def objective(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        assert plan.term is not None
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return loss + plan.term(images, logits, labels)

    return objective

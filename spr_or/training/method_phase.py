"""The pruning phase of a method other than SPR: its plan carried out, its scores cut to the budget."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.pruning.budget import TOLERANCE, Count, Masks
from spr_or.pruning.chosen_entities import ChosenEntities
from spr_or.pruning.measures import MEASURES
from spr_or.training.checkpoint import CheckpointError
from spr_or.training.data.load import Data
from spr_or.training.going_back import Watch
from spr_or.training.loop import evaluate
from spr_or.training.method import SPR_ITSELF, PruningPlan, PruningTask, find_method
from spr_or.training.metrics import Record
from spr_or.training.one_phase import Phase, train_phase
from spr_or.training.pruning import make_limits, make_sgd, make_spr
from spr_or.training.recipe import Recipe, RecipeError
from spr_or.training.schedule import learning_rate
from spr_or.training.seed_run import RunError, SeedRun, epoch_seed
from spr_or.training.setup import fresh_model, steps_of_epoch
from spr_or.training.step import Objective
from spr_or.training.watching import starting_accuracy

_OURS = (RunError, RecipeError, CheckpointError, OSError)  # what says enough by itself
_SCORING_EPOCH = 90_000  # its seed: of no epoch that is trained


@dataclass(frozen=True)
class Course:
    """How the pruning phase went, as far as fine-tuning must know."""

    epochs: int  # that were trained
    restart: bool = False  # from new weights


def method_phase(run: SeedRun, dense: nn.Module) -> tuple[nn.Module, Masks, Record, Course]:
    """The network after the method's phase, masks that meet the budget, and how that went.

    Raises `RunError` for a network that the method does not understand, and for scores that are not
    finite.
    """
    recipe = run.recipe
    method = find_method(recipe.method.name)
    model = fresh_model(recipe, run.seed, run.device)
    if recipe.spr.start == "dense":
        model.load_state_dict(dense.state_dict())
    task = pruning_task(recipe, run.seed, run.data, run.chosen, run.counter, model, dense)
    watch = time.perf_counter
    try:
        started = watch()
        plan = _plan(recipe, task)
        planned = watch() - started
        epochs = recipe.spr.epochs if plan.trains else 0
        train_phase(run, phase_of(run, task, plan, epochs, method.title))
        started = watch()
        scores = plan.scores()
        scored = watch() - started
        choice = task.cut(scores, plan.across)
        plan.finish(choice.masks)
    except _OURS:
        raise
    except Exception as error:  # whatever the code of a method raises
        raise RunError(_fault(recipe, error)) from error
    run.display.say(
        f"seed {run.seed} {method.title}: cut by score to {choice.removed_pct:.1f} % of the "
        f"{MEASURES[recipe.spr.target_of]}"
    )
    if abs(choice.removed_pct - task.target_pct) > TOLERANCE:
        run.display.warn(
            f"the budget of {task.target_pct:g} % is missed: whole entities, in the order of their scores, "
            f"give {choice.removed_pct:.1f} %"
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


def check_method(
    recipe: Recipe,
    data: Data,
    device: torch.device,
    chosen: ChosenEntities,
    counter: Count | None,
) -> None:
    """Raise `RecipeError` where the recipe's method does not take its network."""
    if recipe.method.name == SPR_ITSELF:
        return
    model, dense = (fresh_model(recipe, recipe.seeds[0], device) for _ in range(2))
    try:
        _plan(recipe, pruning_task(recipe, recipe.seeds[0], data, chosen, counter, model, dense))
    except Exception as error:  # whatever the code of a method raises
        raise RecipeError(_fault(recipe, error)) from error


def _fault(recipe: Recipe, error: Exception) -> str:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"method {recipe.method.name} on {recipe.model}: {kind}{error}"


def _plan(recipe: Recipe, task: PruningTask) -> PruningPlan:
    """The method's plan; raises ``ValueError`` where the recipe leaves it nothing to work with."""
    method = find_method(recipe.method.name)
    plan = method.plan(task, method.keys.model_validate(recipe.method.model_extra or {}))
    if not isinstance(plan, PruningPlan):
        raise ValueError(f"its plan returned a {type(plan).__name__}, not a PruningPlan")
    if plan.trains and not task.epochs:
        raise ValueError("it trains in the pruning phase, which has no epoch: raise spr.epochs")
    if not plan.trains and recipe.spr.start == "scratch":
        raise ValueError(
            'it scores a trained network and would score new weights: set spr.start = "dense"'
        )
    return plan


def pruning_task(
    recipe: Recipe,
    seed: int,
    data: Data,
    chosen: ChosenEntities,
    counter: Count | None,
    model: nn.Module,
    dense: nn.Module,
) -> PruningTask:
    """What a run gives to a method."""
    target = recipe.spr.target_removed_pct
    assert counter is not None and target is not None
    total = recipe.spr.epochs + recipe.finetune.epochs
    regularizer = make_spr(recipe.spr, model, 1.0, chosen)
    parameter = next(model.parameters())
    judges = data.held_out or data.evaluate
    return PruningTask(
        model=model,
        dense=dense,
        layers=chosen.of(model),
        example=torch.zeros(2, *data.shape, device=parameter.device),
        classes=data.classes,
        batches=lambda number: data.train(epoch_seed(seed, "spr", _SCORING_EPOCH + number)),
        accuracy=lambda network: evaluate(network, judges(0)).accuracy,
        epochs=recipe.spr.epochs,
        steps=steps_of_epoch(recipe, data),
        target_pct=target,
        removed_pct=counter,
        limits=make_limits(recipe.spr, regularizer),
        seed=seed,
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
        watch=_watch(run, task) if plan.ease is not None else None,
        title=title,
        # What a plan does between backward pass and step may read values back.
        eager=bool(hooked or plan.parameters or run.recipe.speed.cuda_graph),
    )


def _watch(run: SeedRun, task: PruningTask) -> Watch:
    """Tells when the plan is to ease off."""
    return Watch(starting_accuracy(run, task.dense), masks=dict, steered=True)


@dataclass(frozen=True)
class _Between:
    """A plan's part between steps and epochs, as `train_phase` calls it."""

    plan: PruningPlan

    def begin(self, epoch: int) -> None:
        self.plan.before_epoch(epoch)

    def within(self, epoch: int, step: int) -> None:
        self.plan.within(epoch, step)

    def end(self, epoch: int) -> Record:
        return self.plan.after_epoch(epoch)

    def ease(self) -> None:
        if self.plan.ease is not None:
            self.plan.ease()

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

"""The phases of a run for one seed: dense, SPR, fine-tuning with masks held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spr_or.pruning.compaction.storage import apart
from spr_or.pruning.masks import apply_masks_, collapsed_layers, hold_masks
from spr_or.pruning.module_masks import branches_of, module_masks
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.steering import Steering, decide_masks
from spr_or.training import distributed
from spr_or.training.distill import distilling
from spr_or.training.first_lam import first_lam, nothing_removed
from spr_or.training.meet_budget import meet_budget
from spr_or.training.method import SPR_ITSELF
from spr_or.training.method_phase import Course, method_phase
from spr_or.training.metrics import Record
from spr_or.training.one_phase import Phase, train_phase
from spr_or.training.outcome import has_learnt
from spr_or.training.pruning import (
    describe,
    due_epochs,
    in_zero_filters_pct,
    make_cut,
    make_limits,
    make_optimizer,
    make_sgd,
    make_spr,
)
from spr_or.training.recipe import Recipe, RecipeError, Schedule
from spr_or.training.schedule import learning_rate
from spr_or.training.seed_run import RunError, SeedRun
from spr_or.training.setup import cut_example, fresh_model, load_weights, steps_of_epoch
from spr_or.training.shrink import Shrinking, Trainee
from spr_or.training.watching import starting_accuracy, watch
from spr_or.utils.files import file_hash, write_durably
from spr_or.utils.stored_weights import find_weights


@dataclass(frozen=True)
class Trained:
    """What the phases leave for compaction and report."""

    dense: nn.Module
    pruned: nn.Module
    entity_masks: dict[str, Tensor]  # of the regularised layers
    masks: dict[str, Tensor]  # the same by module and parameter
    bounds: dict[str, Tensor]
    dense_accuracy: float
    accuracy_before_finetune: float
    accuracy: float
    best_accuracy: float
    budget: Record | None  # how a budget was met: see `meet_budget`


def train(run: SeedRun) -> Trained:
    """All phases of one seed, from its checkpoint if there is one; raises `RunError`."""
    others = other_teachers(run)  # first, so that a file that does not fit costs no training
    if not run.is_past("dense"):
        tell_of_teachers(run, others)
    dense = dense_phase(run)
    dense_accuracy = run.evaluate(dense).accuracy
    if not run.is_past("dense"):
        warn_of_guessing(run, dense_accuracy)
    recipe = run.recipe.spr
    bounds = SPR.bounds_from(dense, per=recipe.bounds, **run.chosen._asdict())
    run.fixed |= {"bounds": {name: bound.cpu() for name, bound in bounds.items()}}
    if state := run.resumed("finetune"):
        model = fresh_model(run.recipe, run.seed, run.device)
        kept = {name: keep.to(run.device) for name, keep in state["masks"].items()}
        masks = module_masks(model, run.chosen.of(model), kept)
        before, budget = state["before"], state["budget"]
        course = Course(
            state.get("pruning_epochs", run.recipe.spr.epochs), state.get("restart", False)
        )
    else:
        if run.recipe.method.name == SPR_ITSELF:
            model, kept, budget, course = spr_phase(run, dense, bounds)
        else:
            model, kept, budget, course = method_phase(run, dense)
        layers = run.chosen.of(model)
        masks = module_masks(model, layers, kept)
        warn_of_collapse(run, {n: kept[n] for n in kept if n not in branches_of(layers)})
        if run.recipe.finetune.start == "dense" and not course.restart:
            model.load_state_dict(dense.state_dict())
        before = silence(run, model, masks)
    run.fixed |= {
        "masks": {name: keep.cpu() for name, keep in kept.items()},
        "before": before,
        "budget": budget,
        "pruning_epochs": course.epochs,
        "restart": course.restart,
    }
    teachers = [dense, *others]
    accuracy, best = finetune_phase(run, teachers, model, kept, masks, before, course)
    return Trained(
        dense, model, kept, masks, bounds, dense_accuracy, before, accuracy, best, budget
    )


def warn_of_guessing(run: SeedRun, accuracy: float) -> None:
    """Say that a dense network which was trained, or given, has hardly learnt anything."""
    recipe = run.recipe.dense
    if (recipe.epochs or recipe.weights) and not has_learnt(accuracy, run.data.classes):
        run.display.warn(
            f"the dense network has hardly learnt anything: its accuracy is {accuracy:.1f} %, that of "
            f"guessing among {run.data.classes} classes {100 / run.data.classes:.1f} %. What follows says "
            f"nothing about pruning. Raise dense.epochs (it is {recipe.epochs}), or look at dense.lr and "
            f"dense.warmup ({recipe.lr:g} and {recipe.warmup})"
        )


def other_teachers(run: SeedRun) -> list[nn.Module]:
    """The networks that teach beside the dense one, the same as before where a run is continued.

    Raises `RecipeError` for weights that do not fit, that are not finite, or that are others now.
    """
    teachers, hashes = [], []
    for path in run.recipe.finetune.teachers:
        teachers.append(fresh_model(run.recipe, run.seed, run.device))
        load_weights(teachers[-1], path, "finetune.teachers: weights")
        hashes.append(file_hash(find_weights(path)))
    began = hashes if run.state is None else run.state.get("teachers", hashes)
    for path, now, then in zip(run.recipe.finetune.teachers, hashes, began, strict=True):
        if now != then:
            raise RecipeError(
                f"finetune.teachers: {path} is another file than the one this run began with (SHA-256 "
                f"{then[:12]}…, now {now[:12]}…): put the old one back, or begin in another folder"
            )
    run.fixed |= {"teachers": hashes}
    return teachers


def tell_of_teachers(run: SeedRun, teachers: Sequence[nn.Module]) -> None:
    """How accurate each teacher is, and a warning for one that has hardly learnt anything."""
    for path, teacher in zip(run.recipe.finetune.teachers, teachers, strict=True):
        accuracy = run.validate(teacher).accuracy
        where = "held-out" if run.data.held_out else "evaluation"
        run.display.say(f"seed {run.seed} teacher {path}: {accuracy:.2f} % of the {where} images")
        if not has_learnt(accuracy, run.data.classes):
            run.display.warn(
                f"finetune.teachers: {path} has hardly learnt anything, and will teach that: its accuracy is "
                f"{accuracy:.1f} %, that of guessing among {run.data.classes} classes "
                f"{100 / run.data.classes:.1f} %. Its images may have been normalised or numbered otherwise"
            )


def dense_phase(run: SeedRun) -> nn.Module:
    """The network trained without SPR; kept as ``dense.safetensors``."""
    recipe = run.recipe.dense
    path = run.folder / "dense.safetensors"
    model = fresh_model(run.recipe, run.seed, run.device)
    if run.is_past("dense"):
        load_weights(model, path)
        return model
    if recipe.weights is not None:
        load_weights(model, recipe.weights, "dense.weights: weights")
    phase = Phase(
        name="dense",
        model=model,
        optimizer=make_sgd(run.recipe, model.parameters()),
        epochs=recipe.epochs,
        rate=lambda epoch: learning_rate(recipe, epoch, recipe.epochs),
    )
    train_phase(run, phase)
    if distributed.is_first():
        state = apart({n: tensor.cpu().contiguous() for n, tensor in model.state_dict().items()})
        write_durably(path, lambda aside: save_file(state, aside))
    return model


def spr_phase(
    run: SeedRun, dense: nn.Module, bounds: dict[str, Tensor]
) -> tuple[nn.Module, dict[str, Tensor], Record | None, Course]:
    """The network trained with SPR, by its gradient or its proximal operator; what is to go.

    Returns the network, the masks, what `meet_budget` tells of them if there is a budget, and the
    epochs that it took.
    """
    recipe = run.recipe.spr
    model = fresh_model(run.recipe, run.seed, run.device)
    if recipe.start == "dense":
        model.load_state_dict(dense.state_dict())
    spr = make_spr(recipe, model, bounds, run.chosen)
    if run.recipe.speed.compile and run.device.type != "cpu":
        spr.compile()
    limits = make_limits(recipe, spr)
    exact = make_cut(recipe, model, spr, cut_example(run.recipe, run.data, run.device))
    steps = steps_of_epoch(run.recipe, run.data)
    due = due_epochs(recipe)
    steering = Steering(
        recipe, model, spr, run.counter, limits, run.example, exact=exact, steps=steps, due=due
    )
    whole = Trainee(model, make_optimizer(run.recipe, model, spr), spr, steering)

    def was_cut() -> bool:
        return shrinking is not None and shrinking.budget is not None

    def smaller_optimizer(network: nn.Module, regularizer: SPR | None) -> torch.optim.Optimizer:
        assert regularizer is not None
        if was_cut():  # no penalty is left
            return make_sgd(run.recipe, network.parameters())
        if run.recipe.speed.compile and run.device.type != "cpu":
            regularizer.compile()
        return make_optimizer(run.recipe, network, regularizer)

    def smaller_steering(network: nn.Module, regularizer: SPR, left: dict[str, Tensor]) -> Steering:
        return Steering(
            recipe, network, regularizer, run.counter, limits, run.example, left, exact, steps, due
        )

    shrinking = None
    if recipe.shrink:
        shrinking = Shrinking(run, whole, smaller_optimizer, smaller_steering, limits)

    start = starting_accuracy(run, dense)
    rate = _pruning_rate(run.recipe, 0)

    def phase_of(trainee: Trainee) -> Phase:
        assert trainee.spr is not None
        small = trainee.steering if trainee is not whole else None
        size = shrinking.describe if shrinking is not None else dict
        penalised = recipe.method == "gradient" and not was_cut()
        return Phase(
            name="spr",
            model=trainee.model,
            optimizer=trainee.optimizer,
            epochs=recipe.epochs,
            rate=rate,
            add_gradient=trainee.spr.add_gradient_ if penalised else None,
            describe=lambda: describe(model, spr, recipe, small) | size(),
            after=shrinking.hold if shrinking is not None else None,
            steering=trainee.steering,
            watch=watch(run, start, trainee.model, trainee.spr) if not was_cut() else None,
            shrinking=shrinking,
            smaller=phase_of,
        )

    if run.resumed("spr") is None:
        steering.course.start_at(first_lam(run, model, spr, rate))
    train_phase(run, phase_of(whole))
    kept, budget, course = _decided(run, dense, bounds, whole, shrinking)
    return model, kept, budget, course


def _decided(
    run: SeedRun,
    dense: nn.Module,
    bounds: dict[str, Tensor],
    whole: Trainee,
    shrinking: Shrinking | None,
) -> tuple[dict[str, Tensor], Record | None, Course]:
    """What goes, after training: masks, how a budget was met, and the epochs that the phase took.

    ``whole``: the network of before the phase, in which what has shrunk is written back. Raises
    `RunError` where there is no budget and nothing goes.
    """
    recipe = run.recipe.spr
    if shrinking is not None and shrinking.left is not None and shrinking.budget is not None:
        masks = {name: keep.to(run.device) for name, keep in shrinking.left.items()}
        epochs = shrinking.epochs if shrinking.ends else None
        return masks, shrinking.budget, Course(recipe.epochs if epochs is None else epochs)
    now = shrinking.now.steering if shrinking is not None else None
    steering = now or whole.steering
    assert steering is not None and whole.spr is not None
    masks = steering.whole(decide_masks(steering.model, steering.spr, recipe))
    if run.counter is not None:
        write_back = shrinking.write_back if shrinking is not None else lambda: None
        before = run.counter(masks)
        masks, budget = meet_budget(run, steering, before, whole.model, whole.spr, write_back)
        return masks, budget, Course(recipe.epochs)
    stays = all(keep.all() for keep in masks.values())
    if run.judge and recipe.epochs and steering.course.lam and stays:
        raise RunError(nothing_removed(run, dense, bounds, _pruning_rate(run.recipe, 0)))
    return masks, None, Course(recipe.epochs)


def warn_of_collapse(run: SeedRun, masks: dict[str, Tensor]) -> None:
    """Name the layers that keep nothing."""
    for name in collapsed_layers(masks):
        run.display.warn(f"layer {name} collapsed: none of its {len(masks[name])} entities is left")


def silence(run: SeedRun, model: nn.Module, masks: dict[str, Tensor]) -> float:
    """Silence what goes; the accuracy that is left."""
    apply_masks_(model, masks, run.example)
    return run.evaluate(model).accuracy


def finetune_phase(
    run: SeedRun,
    teachers: list[nn.Module],
    model: nn.Module,
    kept: dict[str, Tensor],
    masks: dict[str, Tensor],
    before: float,
    course: Course,
) -> tuple[float, float]:
    """Train on without what is masked; accuracy of the last and of the best epoch.

    ``teachers`` begin with the dense network, ``kept`` are the masks of the entities, ``masks`` the
    same by module.
    """
    recipe = run.recipe.finetune
    epochs, rate = finetune_schedule(run.recipe, course)
    objective = None
    if recipe.distill > 0:
        objective = distilling(
            teachers,
            recipe.distill,
            recipe.temperature,
            run.recipe.train.label_smoothing,
            run.recipe.speed.amp == "bf16",
        )
    whole = Trainee(model, make_sgd(run.recipe, model.parameters()))
    shrinking = None
    if run.recipe.spr.shrink:
        shrinking = Shrinking(
            run, whole, lambda network, _: make_sgd(run.recipe, network.parameters())
        )
        if run.resumed("finetune") is None:
            shrinking.narrow_to(kept)

    def phase_of(trainee: Trainee) -> Phase:
        size = shrinking.describe if shrinking is not None else dict
        return Phase(
            name="finetune",
            model=trainee.model,
            optimizer=trainee.optimizer,
            epochs=epochs,
            rate=rate,
            after=shrinking.hold
            if shrinking is not None and trainee is not whole
            else hold_masks(model, masks, run.example),
            describe=lambda: (
                {"masked_filter_weights_pct": in_zero_filters_pct(model, masks)} | size()
            ),
            objective=objective,
            shrinking=shrinking,
            smaller=phase_of,
        )

    best = train_phase(run, phase_of(whole))
    accuracy = run.evaluate(model).accuracy
    if run.data.held_out is not None:  # epochs are judged by other images than the result
        best = accuracy
    return accuracy, before if best is None else best


def finetune_schedule(recipe: Recipe, course: Course) -> tuple[int, Callable[[int], float]]:
    """Epochs of fine-tuning, and the learning rate of each.

    What the pruning phase has not trained is added, so all methods see the images equally often. The
    rate is that of ``finetune.lr``, or goes on with the pruning phase's schedule. A network that starts
    again from new weights is trained as long as the dense one was, and then fine-tuned, with the dense
    network's schedule; where the dense one came from a file, with SPR's.
    """
    left = recipe.spr.epochs - course.epochs + recipe.finetune.epochs
    own = recipe.finetune.lr
    if own is not None and not course.restart:
        falling = Schedule(lr=own, schedule="cosine")
        return left, lambda epoch: learning_rate(falling, epoch, left)
    if course.restart and recipe.dense.epochs:
        epochs = recipe.dense.epochs + left
        return epochs, lambda epoch: learning_rate(recipe.dense, epoch, epochs)
    if course.restart:
        return left, lambda epoch: learning_rate(recipe.spr, epoch, left)
    return left, _pruning_rate(recipe, course.epochs)


def _pruning_rate(recipe: Recipe, offset: int) -> Callable[[int], float]:
    """One schedule over SPR and fine-tuning; ``offset`` epochs of it lie behind."""
    epochs = recipe.spr.epochs + recipe.finetune.epochs
    return lambda epoch: learning_rate(recipe.spr, offset + epoch, epochs)

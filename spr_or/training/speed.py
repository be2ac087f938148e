"""How the training steps of a run are computed on a CPU: the fastest of what gives the same numbers.

A run that is long enough takes a few steps in each of several ways (`spr_or.training.speed_trials`)
and keeps the times for this machine and network (`spr_or.training.speed_table`). What follows from
the times and from the number of steps is a plain rule: `choose_speed`. A key that the recipe gives is
neither measured nor changed.

Which runs are long enough follows from their multiply-accumulates and not from a clock. So a short
run takes the plain way on every machine and under every load, and gives the same numbers.

Two things are left out on purpose. bfloat16 changes what is computed, and was 13 times slower on the
CPUs at hand. Cutting batches into smaller ones changes the statistics of a BatchNorm, and at batches
of 128 there is nothing to gain from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from spr_or.pruning.counts import count_macs
from spr_or.training import distributed
from spr_or.training.recipe import Recipe
from spr_or.training.speed_table import load_trials, network_key, save_trials
from spr_or.training.speed_trials import (
    Shape,
    Speed,
    Tell,
    Trial,
    Trials,
    others_at_work,
    try_speeds,
)

# Two cores at hand get through 8e10 operations a second (ResNet-20: 323 images of 2.4e8), and took
# about a minute to compile it, which then saved a fifth of the time. Below five minutes that is lost.
OPERATIONS_PER_SECOND = 8e10
COMPILE_SECONDS = 60.0
COMPILE_SAVES = 0.2
LONG = OPERATIONS_PER_SECOND * COMPILE_SECONDS / COMPILE_SAVES
_OPERATIONS = 6  # of a training step for each multiply-accumulate of the forward pass
_CLEARLY = 0.95  # of the plain way's time: what is not clearly faster is not taken


def choose_speed(
    recipe: Recipe,
    model: nn.Module,
    shape: Shape,
    steps: int,
    *,
    measuring: bool = True,
    tell: Tell = lambda line: None,
) -> Speed:
    """The way in which ``steps`` training steps of ``model`` on images of ``shape`` end first.

    shape: (B, C, H, W). What ``recipe.speed`` gives is kept, and what it leaves out is plain, unless
    the model is on a CPU, ``speed.auto`` is on, and the steps are `is_long`: then the trials of this
    network on this machine decide. Those that are missing are made, if ``measuring`` and no other
    program is at work, which would disturb them. ``compile = true`` means compiled where the steps are long,
    and on an accelerator always.

    ``tell`` gets the choice in one line, and one for each way that was tried and refused.

    >>> from spr_or.training.recipe import build_model, parse_recipe
    >>> recipe = parse_recipe({"model": "models.toy:convnet", "spr": {"lam": 1, "alpha": 0.1},
    ...                        "speed": {"threads": 1, "compile": True}})
    >>> choose_speed(recipe, build_model(recipe), (32, 1, 8, 8), steps=100)
    Speed(threads=1, channels_last=False, compile=False)
    """
    wanted = recipe.speed
    given = Speed(
        wanted.threads or torch.get_num_threads(), bool(wanted.channels_last), bool(wanted.compile)
    )
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not on_cpu or not (wanted.auto or wanted.compile):
        return given
    if not is_long(model, shape, steps):
        return given._replace(compile=False)
    if not wanted.auto or wanted.amp != "off" or distributed.world().size > 1:
        return given

    key = network_key(model, shape)
    trials = load_trials(key, tell)

    def to_try(speeds: Sequence[Speed]) -> bool:
        """Whether some of them were not tried, and their times would mean something now."""
        if not measuring or all(speed in trials for speed in speeds):
            return False
        if others_at_work():
            tell("speed: not measured, other programs are at work on this machine")
            return False
        return True

    def tried(speeds: Sequence[Speed]) -> list[Trial]:
        made = try_speeds(model, speeds, shape)
        for speed, trial in zip(speeds, made, strict=True):
            if trial.refused:
                tell(f"speed: {describe(speed)} is not used: {trial.refused}")
        return made

    eager = _eager_speeds(recipe, model, measuring)
    if to_try(eager):
        trials.update(zip(eager, tried(eager), strict=True))
        save_trials(key, trials, tell)
    best = _fastest(eager, trials)
    compiled = best._replace(compile=True)
    chosen = compiled if wanted.compile else best
    if wanted.compile is None and could_pay(steps, trials.get(best)):
        if to_try([compiled]):
            trials[compiled] = _in_time_of(trials[best], *tried([best, compiled]))
            save_trials(key, trials, tell)
        if pays(steps, trials[best], trials.get(compiled)):
            chosen = compiled
    tell(_line(chosen, eager[0], trials, shape[0]))
    return chosen


def is_long(model: nn.Module, shape: Shape, steps: int) -> bool:
    """Whether so many training steps take 2.4e13 operations: five minutes of two cores.

    >>> model = nn.Conv2d(3, 64, 3, padding=1)
    >>> [is_long(model, (128, 3, 32, 32), steps) for steps in (10_000, 20_000)]
    [False, True]
    """
    macs = count_macs(model, (1, *shape[1:]))
    return _OPERATIONS * macs * shape[0] * steps >= LONG


def could_pay(steps: int, eager: Trial | None) -> bool:
    """Whether compiling is worth a try: what it usually saves is more than what it usually costs.

    >>> could_pay(1000, Trial(seconds=0.2, first=0.4)), could_pay(1000, Trial(0.4, 0.8))
    (False, True)
    """
    if eager is None or eager.seconds is None:
        return False
    return steps * eager.seconds * COMPILE_SAVES > COMPILE_SECONDS


def pays(steps: int, eager: Trial, compiled: Trial | None) -> bool:
    """Whether so many steps win back the time that compiling took in the trial.

    >>> eager, compiled = Trial(seconds=0.4, first=0.5), Trial(seconds=0.3, first=50.3)
    >>> pays(400, eager, compiled), pays(600, eager, compiled)
    (False, True)
    """
    if compiled is None or compiled.seconds is None or eager.seconds is None:
        return False
    return steps * (eager.seconds - compiled.seconds) > compiled.first - compiled.seconds


def describe(speed: Speed) -> str:
    """In words.

    >>> describe(Speed(threads=2, channels_last=True, compile=True))
    'compile, channels_last, 2 threads'
    """
    words = [name for name in ("compile", "channels_last") if getattr(speed, name)]
    threads = "1 thread" if speed.threads == 1 else f"{speed.threads} threads"
    return ", ".join([*(words or ["plain"]), threads])


def _eager_speeds(recipe: Recipe, model: nn.Module, measuring: bool) -> list[Speed]:
    """What may be taken without compiling, first that of the recipe's keys and their defaults.

    Beside other processes, the number of threads is not for this one to choose.
    """
    wanted = recipe.speed
    most = wanted.threads or torch.get_num_threads()
    fixed = wanted.threads is not None or not measuring
    threads = [most] if fixed else list(dict.fromkeys((most, max(1, most // 2), 1)))
    layouts = [bool(wanted.channels_last)]
    if wanted.channels_last is None and any(p.dim() == 4 for p in model.parameters()):
        layouts.append(True)
    return [Speed(count, layout, False) for count in threads for layout in layouts]


def _fastest(eager: Sequence[Speed], trials: Trials) -> Speed:
    """The fastest of those that were tried, if it is clearly faster than the first."""
    seconds = {speed: trials[speed].seconds for speed in eager if speed in trials}
    plain = seconds.get(eager[0])
    faster = [
        (taken, speed)
        for speed, taken in seconds.items()
        if plain is not None and taken is not None and taken < _CLEARLY * plain
    ]
    return min(faster)[1] if faster else eager[0]


def _in_time_of(then: Trial, now: Trial, compiled: Trial) -> Trial:
    """``compiled``, tried beside ``now``, as if it had been tried beside ``then``, under another load."""
    if then.seconds is None or now.seconds is None or compiled.seconds is None:
        return compiled
    scale = then.seconds / now.seconds
    return Trial(scale * compiled.seconds, scale * compiled.first)


def _line(chosen: Speed, plain: Speed, trials: Trials, images: int) -> str:
    rates = [
        images / trial.seconds if (trial := trials.get(speed)) and trial.seconds else None
        for speed in (chosen, plain)
    ]
    line = f"speed: {describe(chosen)}"
    if rates[0] is not None:
        line += f": {rates[0]:.0f} images/s"
    if chosen != plain and rates[0] is not None and rates[1] is not None:
        line += f", {'channels_last' if plain.channels_last else 'plain'} {rates[1]:.0f}"
    return line

"""The learning rate of an epoch: the paper's steps, or a cosine."""

from __future__ import annotations

import math

from spr_or.training.recipe import Schedule


def learning_rate(schedule: Schedule, epoch: int, epochs: int) -> float:
    r"""The rate of ``epoch`` (counted from 0) in a run of ``epochs``; constant within an epoch.

    With e the epoch and T the epochs, ``steps`` is lr · gamma^(number of milestones ≤ e) and
    ``cosine`` is lr · (1 + cos(π e / T)) / 2 (Loshchilov, Hutter, *SGDR*, ICLR 2017, without
    restarts). During ``warmup`` = W epochs the rate is multiplied by (e + 1) / (W + 1).

    Raises ``ValueError`` for an epoch outside the run.

    >>> paper = Schedule(lr=0.1, milestones=(120, 200, 230, 250, 350, 400, 450))
    >>> [f"{learning_rate(paper, e, 500):.0e}" for e in (0, 119, 120, 499)]
    ['1e-01', '1e-01', '1e-02', '1e-08']
    """
    if not 0 <= epoch < epochs:
        raise ValueError(f"epoch {epoch} lies outside a run of {epochs} epochs")
    if schedule.schedule == "steps":
        passed = sum(milestone <= epoch for milestone in schedule.milestones)
        factor = schedule.gamma**passed
    else:
        factor = (1 + math.cos(math.pi * epoch / epochs)) / 2
    if epoch < schedule.warmup:
        factor *= (epoch + 1) / (schedule.warmup + 1)
    return schedule.lr * factor

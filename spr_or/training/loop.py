"""One epoch of training, one evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spr_or.training import distributed
from spr_or.training.step import Step, make_scoring
from spr_or.utils.evaluating import evaluating

Batch = tuple[Tensor, Tensor]


class Scores(NamedTuple):
    """Mean loss, accuracy in percent, and the share of the time that went into waiting for data.

    The wait is that of the program. An accelerator may still be working off what it was given, so
    its own idle time is at most that share.
    """

    loss: float
    accuracy: float
    data_wait_share: float = 0.0


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; ``step`` counts from 0 within the epoch."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(f"the loss became {value} at step {step}")
        self.step = step
        self.value = value


def train_epoch(
    step: Step,
    batches: Iterable[Batch],
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Scores:
    """Take one step a batch; ``on_batch(rows)`` follows each.

    Nothing is read back from the device before the epoch's end, so a loss that is not finite is
    found there, with the step where it first was. Several processes that each take a share of the
    batches get the scores of all of them. Raises `NonFiniteLoss`, and ``ValueError`` for
    an epoch without batches.
    """
    done = _run_through(step, batches, on_batch)
    if not done.losses:
        raise ValueError("the epoch has no batch: data.batch_size is larger than the data")
    size = distributed.world().size
    *history, right_sum, row_sum = distributed.total(
        *torch.stack(done.losses).tolist(), int(torch.stack(done.correct).sum()), done.rows
    )
    for number, value in enumerate(history):
        if not math.isfinite(value):
            raise NonFiniteLoss(number, value)
    mean = sum(history) / len(history) / size
    return Scores(mean, 100 * right_sum / row_sum, done.wait_share())


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    bf16: bool = False,
    score: Step | None = None,
) -> Scores:
    """Loss and accuracy over all batches in evaluation mode; the model's mode is kept.

    ``score`` replaces ``make_scoring(model, bf16)``, by the same captured as a graph for instance.
    """
    with evaluating(model):
        done = _run_through(score or make_scoring(model, bf16), batches)
    sums = [float(torch.stack(p).sum()) if p else 0.0 for p in (done.losses, done.correct)]
    loss_sum, right_sum, row_sum = distributed.total(*sums, done.rows)
    return Scores(loss_sum / row_sum, 100 * right_sum / row_sum, done.wait_share())


class _Pass(NamedTuple):
    """What a step returned for each batch, the rows of all, when it began, and the wait for data."""

    losses: list[Tensor]
    correct: list[Tensor]
    rows: int
    started: float
    waited: float

    def wait_share(self) -> float:
        """The wait for data as a share of the time up to now."""
        return self.waited / (time.perf_counter() - self.started)


def _run_through(
    step: Step, batches: Iterable[Batch], on_batch: Callable[[int], None] = lambda rows: None
) -> _Pass:
    """Call ``step`` for every batch, without waiting for the device."""
    losses: list[Tensor] = []
    correct: list[Tensor] = []
    rows = 0
    started, waited = time.perf_counter(), [0.0]
    for images, labels in _timed(batches, waited):
        loss, right = step(images, labels)
        losses.append(loss)
        correct.append(right)
        rows += len(labels)
        on_batch(len(labels))
    return _Pass(losses, correct, rows, started, waited[0])


def _timed(batches: Iterable[Batch], waited: list[float]) -> Iterator[Batch]:
    """The batches; the seconds spent on getting them are added to ``waited[0]``."""
    source = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(source, None)
        waited[0] += time.perf_counter() - asked
        if batch is None:
            return
        yield batch

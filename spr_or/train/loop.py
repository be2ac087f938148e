"""One epoch of training, one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.train.step import Step, forward


class Scores(NamedTuple):
    """Mean loss, and accuracy in percent."""

    loss: float
    accuracy: float


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; ``step`` counts from 0 within the epoch."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(f"the loss became {value} at step {step}")
        self.step = step
        self.value = value


def train_epoch(
    step: Step,
    batches: Iterable[tuple[Tensor, Tensor]],
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Scores:
    """Take one step a batch; ``on_batch(rows)`` follows each.

    Nothing is read back from the device before the epoch's end, so a loss that is not finite is
    found there, with the step where it first was. Raises `NonFiniteLoss`, and ``ValueError`` for
    an epoch without batches.
    """
    losses: list[Tensor] = []
    correct: list[Tensor] = []
    rows = 0
    for images, labels in batches:
        loss, right = step(images, labels)
        losses.append(loss)
        correct.append(right)
        rows += len(labels)
        on_batch(len(labels))
    if not losses:
        raise ValueError("the epoch has no batch: data.batch_size is larger than the data")
    history = torch.stack(losses).float().cpu()
    wrong = (~history.isfinite()).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise NonFiniteLoss(first, float(history[first]))
    return Scores(float(history.mean()), 100 * int(torch.stack(correct).sum()) / rows)


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], bf16: bool = False
) -> Scores:
    """Loss and accuracy over all batches in evaluation mode; the model's mode is kept."""
    training = model.training
    model.eval()
    losses: list[Tensor] = []
    correct: list[Tensor] = []
    rows = 0
    for images, labels in batches:
        logits = forward(model, images, bf16)
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        correct.append((logits.argmax(1) == labels).sum())
        rows += len(labels)
    model.train(training)
    return Scores(
        float(torch.stack(losses).sum()) / rows, 100 * int(torch.stack(correct).sum()) / rows
    )

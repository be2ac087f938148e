r"""Fine-tuning with the dense network, and others, as teachers.

.. math::  (1 - d)\, \mathrm{CE}(s, y) + d\, T^2\, \mathrm{KL}\bigl(\sigma(t / T) \,\|\, \sigma(s / T)\bigr)

with student logits s, teacher logits t, labels y, softmax σ; means over the batch. T² keeps the size
of the second gradient independent of T (Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural
Network*, arXiv 1503.02531).

Of several teachers each sees its share of a batch. The second gradient is linear in σ(t / T), and images
come in any order, so on the mean it is that of the teachers' mean probabilities, at the cost of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.training.step import Objective, forward


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    weight: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss above for logits (B, classes) and labels (B,); ``weight`` is d in [0, 1].

    >>> s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    >>> round(distillation_loss(s, t, torch.tensor([0]), 1.0, 2.0).item(), 4)
    0.4438
    """
    hard = F.cross_entropy(student, labels, label_smoothing=label_smoothing)
    soft = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * hard + weight * temperature**2 * soft


def distilling(
    teachers: Sequence[nn.Module],
    weight: float,
    temperature: float,
    label_smoothing: float,
    bf16: bool,
) -> Objective:
    """An objective for `make_step`: teachers, in evaluation mode, see the student's images."""
    for teacher in teachers:
        teacher.eval()

    def objective(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        shares = zip(teachers, images.tensor_split(len(teachers)), strict=True)
        with torch.no_grad():  # where there are fewer images than teachers, the last ones see none
            taught = torch.cat([forward(who, part, bf16) for who, part in shares if len(part)])
        return distillation_loss(logits, taught, labels, weight, temperature, label_smoothing)

    return objective

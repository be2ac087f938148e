"""Gradients of entities before anything is trained, from a few batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from spr_or.methods.common.entity_writes import gradient_rows
from spr_or.pruning.largest_lam import BATCHES
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.training.method import PruningTask


def first_gradients(task: PruningTask, layers: Sequence[LayerEntities]) -> Iterator[list[Tensor]]:
    """For each of the first batches the gradients of each layer's entities, rows (N, k).

    The network is in the mode of training meanwhile, and as it was afterwards.
    """
    model, training = task.model, task.model.training
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(task.seed)
        for images, labels in islice(task.batches(0), BATCHES):
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            yield [gradient_rows(layer) for layer in layers]
    model.zero_grad()
    model.train(training)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

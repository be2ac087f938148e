"""A small network with BatchNorm, seeded images, and the loop in which a pruning phase drives a plan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.pruning.budget import MaskChoice, layer_limits
from spr_or.pruning.layer_entities import EntitySpec, layer_entities
from spr_or.pruning.measures import counter_of
from spr_or.pruning.module_masks import branches_of, module_masks
from spr_or.training.method import PruningPlan, PruningTask

CLASSES, SIDE, BATCH, STEPS = 3, 8, 16, 4


class SmallNet(nn.Module):
    """Two convolutions with BatchNorm and a residual addition, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(x + self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


def small_net(seed: int = 0) -> SmallNet:
    """The network with seeded weights, scales and shifts (as after training: none are equal)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = SmallNet()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.3, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return net


def small_data(seed: int, batches: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Batches of images (16, 1, 8, 8) and labels (16,): noise around one pattern for each class."""
    pattern = torch.Generator().manual_seed(7)
    patterns = torch.randn(CLASSES, 1, SIDE, SIDE, generator=pattern)
    noise = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        labels = torch.randint(CLASSES, (BATCH,), generator=noise)
        images = patterns[labels] + 0.5 * torch.randn(BATCH, 1, SIDE, SIDE, generator=noise)
        found.append((images, labels))
    return found


@torch.no_grad()
def small_accuracy(model: nn.Module) -> float:
    """Percent right on images that no batch of a small seed holds."""
    training = model.training
    model.eval()
    pairs = [(model(images).argmax(1) == labels) for images, labels in small_data(9999)]
    model.train(training)
    return 100 * float(torch.cat(pairs).float().mean())


def small_task(
    model: nn.Module | None = None,
    entities: EntitySpec = "filters",
    epochs: int = 2,
    target_pct: float = 40.0,
    seed: int = 0,
    lr: float = 0.05,
    of: str = "params",
    include_norm: bool = False,
    batches: Callable[[int], Any] = small_data,
) -> PruningTask:
    """A task for ``model`` (or `small_net`) with the shared SGD, as the phase makes it.

    ``batches`` are by default those of `small_data`; a model that takes other images needs others.
    """
    network = small_net(seed) if model is None else model
    images = next(iter(batches(seed)))[0]
    example = torch.zeros_like(images[:2])
    layers = layer_entities(network, entities, include_norm=include_norm, example=example)
    count = counter_of(of, network, example)
    sizes = {layer.name: layer.count for layer in layers}
    return PruningTask(
        model=network,
        dense=copy.deepcopy(network),
        layers=layers,
        example=example,
        classes=CLASSES,
        batches=batches,
        accuracy=small_accuracy,
        epochs=epochs,
        steps=len(list(batches(seed))),
        target_pct=target_pct,
        removed_pct=lambda masks: count(module_masks(network, layers, masks)),
        limits=layer_limits(sizes, branches=branches_of(layers)),
        seed=seed,
        rate=lambda epoch: lr,
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    )


def train(task: PruningTask, plan: PruningPlan, epochs: int | None = None) -> list[float]:
    """Drive ``plan`` as the pruning phase does, and return the loss of each step.

    Runs ``epochs`` (by default those of the task), whether or not the plan trains.
    """
    optimizer = plan.optimizer or task.make_optimizer([*task.model.parameters(), *plan.parameters])
    losses = []
    for epoch in range(task.epochs if epochs is None else epochs):
        for group in optimizer.param_groups:
            group["lr"] = task.rate(epoch)
        plan.before_epoch(epoch)
        task.model.train()
        for images, labels in task.batches(task.seed + epoch):
            optimizer.zero_grad()
            logits = task.model(images)
            loss = F.cross_entropy(logits, labels)
            if plan.term is not None:
                loss = loss + plan.term(images, logits, labels)
            loss.backward()
            if plan.after_backward is not None:
                plan.after_backward()
            optimizer.step()
            if plan.after_step is not None:
                plan.after_step()
            losses.append(float(loss.detach()))
        plan.after_epoch(epoch)
    return losses


def cut_and_finish(task: PruningTask, plan: PruningPlan) -> MaskChoice:
    """The end of the phase: scores, the cut to the budget, ``finish``."""
    choice = task.cut(plan.scores(), plan.across)
    plan.finish(choice.masks)
    return choice

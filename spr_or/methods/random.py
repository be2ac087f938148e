"""Random scores: what any criterion must beat.

Every entity draws its score from the uniform distribution, and all layers lose the same share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask


def uniform_scores(counts: dict[str, int], seed: int) -> dict[str, Tensor]:
    """A random number in [0, 1) for each entity, {layer name: (N,)}.

    >>> uniform_scores({"a": 2, "b": 3}, seed=0)["b"].shape
    torch.Size([3])
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(count, generator=generator) for name, count in counts.items()}


def plan(task: PruningTask, keys: MethodKeys) -> PruningPlan:
    """Score by `uniform_scores`, by the run's seed; nothing is trained."""
    counts = {layer.name: layer.count for layer in task.layers}
    return PruningPlan(scores=lambda: uniform_scores(counts, task.seed), across="layers")


METHOD = Method(
    title="random",
    kind="score",
    paper="a baseline; Mittal, Bhardwaj, Khapra, Ravindran 2018, arXiv:1801.10447",
    plan=plan,
)

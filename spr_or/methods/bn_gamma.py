r"""Network slimming: channels whose norm scales them least go (Liu, Li, Shen, Huang, Yan, Zhang, ICCV 2017).

Training adds an L1 penalty on the scales γ of the norms behind the entities,

.. math:: L + \lambda \sum_{\gamma \in \Gamma} |\gamma|,
          \qquad g_\gamma \leftarrow g_\gamma + \lambda \operatorname{sign} \gamma,

by its subgradient, and the score of entity i is |γ_i|, compared over the whole network. Of a group of
channels it is the mean over its norms.

In the paper the dense network is trained with the penalty from the beginning, 160 epochs. Here that
is the pruning phase, which starts from a dense network trained without it. Entities without a norm have
no γ and stay as long as others can go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from spr_or.methods.common.writers import Channels, mean_score, scaling_norms
from spr_or.pruning.following_norms import following_norms
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask


class Keys(MethodKeys):
    """Keys of ``[method]``."""

    l1: float = Field(1e-4, ge=0)  # λ, the weight of Σ|γ|


@torch.no_grad()
def add_subgradient(scales: Sequence[nn.Parameter], l1: float) -> None:
    """Add l1 · sign γ to the gradient of each scale that has one.

    >>> gamma = nn.Parameter(torch.tensor([2.0, -3.0, 0.0]))
    >>> gamma.grad = torch.zeros(3)
    >>> add_subgradient([gamma], 0.5)
    >>> gamma.grad.tolist()
    [0.5, -0.5, 0.0]
    """
    for gamma in scales:
        if gamma.grad is not None:
            gamma.grad.add_(gamma.sign(), alpha=l1)


@torch.no_grad()
def scale_scores(
    model: nn.Module, norms: dict[str, list[Channels]], counts: dict[str, int]
) -> dict[str, Tensor]:
    """|γ| of each entity, {layer name: (N,)}; a layer without a norm is above all others.

    norms: the norms of each layer's entities; counts: N of each layer.
    """
    sizes = {
        c.module: model.get_parameter(f"{c.module}.weight").abs()
        for channels in norms.values()
        for c in channels
    }
    found = {name: mean_score(channels, sizes) for name, channels in norms.items() if channels}
    above = 1 + max(float(score.max()) for score in found.values())
    return {name: found.get(name, torch.full((n,), above)) for name, n in counts.items()}


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Train with the penalty, then score by `scale_scores`."""
    following = following_norms(task.model, task.example)
    norms = {layer.name: scaling_norms(task.model, layer, following) for layer in task.layers}
    if not any(norms.values()):
        raise ValueError(
            "network slimming goes by the scales of the norms behind filters, and no norm follows any "
            f"of {', '.join(norms)}: take another method, group_norm for instance"
        )
    names = sorted({c.module for channels in norms.values() for c in channels})
    scales = [task.model.get_parameter(f"{name}.weight") for name in names]
    counts = {layer.name: layer.count for layer in task.layers}
    return PruningPlan(
        scores=lambda: scale_scores(task.model, norms, counts),
        trains=True,
        after_backward=lambda: add_subgradient(scales, keys.l1),
    )


METHOD = Method(
    title="BN-γ (network slimming)",
    kind="regulariser",
    paper="Liu, Li, Shen, Huang, Yan, Zhang, ICCV 2017, arXiv:1708.06519",
    plan=plan,
    keys=Keys,
    differs="the penalty acts in the pruning phase only, not in the training of the dense network",
)

r"""PFC, Pruning from Scratch: the structure is sought on random weights (Wang et al. 2019).

Wang, Zhang, Xie, Zhou, Su, Zhang, Hu, AAAI 2020, arXiv:1909.12579. The weights are random and stay as
they are. Each entity has a gate :math:`g_i \in [0, 1]`, one in the beginning, on its channels
(`spr_or.methods.common.gates`); only the gates are trained, by Adam, on

.. math:: \mathrm{CE} + \beta \Bigl(\frac1n \sum_i g_i - r\Bigr)^2

and clipped to [0, 1] after each step. Entities of small gates go; what stays is trained from new weights.

What differs: the ratio r is the share of entities with which the budget is met if all layers lose the
same share. The paper sets r by hand and then finds the threshold of the gates that meets its budget, by
bisection, which is the cut that all methods share here. In its residual networks only the inner layers
of a block have gates, here all entities of the recipe. The search takes the epochs of the pruning phase
(the authors' code: ten on CIFAR-10), and the network that it finds is trained as long as the dense one and
then fine-tuned.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from spr_or.methods.common.gates import add_gates, kept_share
from spr_or.pruning.budget import Masks
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask

_SPREAD = 0.02  # of parameters whose module does not say how it starts: embeddings, tokens


class Keys(MethodKeys):
    """The keys of PFC."""

    beta: float = Field(0.5, ge=0)  # weight of the penalty on the mean gate
    lr: float = Field(0.01, gt=0)  # of Adam for the gates
    ratio: float | None = Field(None, ge=0, le=1)  # r; by default what the budget asks for


def ratio_penalty(gates: Tensor, ratio: float) -> Tensor:
    """The square of what the mean gate is away from ``ratio``.

    >>> float(ratio_penalty(torch.tensor([1.0, 0.0]), 0.25))
    0.0625
    """
    return (gates.mean() - ratio).square()


@torch.no_grad()
def new_weights_(model: nn.Module, seed: int) -> None:
    """Start every parameter anew, in place, as its module does when it is made.

    Parameters of modules that do not say how are normal with deviation 0.02.

    >>> net = nn.Linear(2, 2)
    >>> new_weights_(net, 3)
    >>> first = net.weight.clone()
    >>> new_weights_(net, 3)
    >>> torch.equal(net.weight, first)
    True
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            else:
                for parameter in module.parameters(recurse=False):
                    parameter.normal_(std=_SPREAD)


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Freeze the weights, train the gates, score by them, and start again."""
    found = add_gates(task.model, task.layers, task.example)
    ratio = kept_share(task) if keys.ratio is None else keys.ratio
    gates = found.values
    adam = torch.optim.Adam([gates], lr=keys.lr, capturable=gates.is_cuda)
    trained = [p for p in task.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)

    def begin(epoch: int) -> None:
        if epoch == 0:
            new_weights_(task.model, task.seed)

    def step() -> None:
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            gates.clamp_(0, 1)

    def state() -> dict[str, Any]:
        return {"gates": gates.detach().clone(), "adam": adam.state_dict()}

    @torch.no_grad()
    def load(state: dict[str, Any]) -> None:
        gates.copy_(state["gates"])
        adam.load_state_dict(state["adam"])

    def finish(masks: Masks) -> None:
        found.detach()  # nothing is folded: what stays gets new weights
        for parameter in trained:
            parameter.requires_grad_(True)

    return PruningPlan(
        scores=lambda: found.of_entities(gates, task.layers),
        trains=True,
        term=lambda images, logits, labels: keys.beta * ratio_penalty(gates, ratio),
        after_backward=step,
        before_epoch=begin,
        after_epoch=lambda epoch: {"mean_gate": float(gates.detach().mean())},
        state=state,
        load=load,
        finish=finish,
        restart=True,
    )


METHOD = Method(
    title="PFC (Pruning from Scratch)",
    kind="structure search",
    paper="Wang, Zhang, Xie, Zhou, Su, Zhang, Hu 2019, AAAI 2020, arXiv:1909.12579",
    plan=plan,
    keys=Keys,
    differs=(
        "gates on all entities, not on the inner layers of residual blocks only; the ratio of the penalty "
        "follows from the budget"
    ),
)

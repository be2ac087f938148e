r"""EPFS: sparse masks, with features held near the centres of their classes (Xu et al. 2021).

Xu, Chen, Gong, Liu, Lü and others, Efficient structured pruning based on deep feature stabilization,
Neural Computing and Applications 33 (2021) 7409–7420, doi:10.1007/s00521-021-05828-8 (Sheng et al. in the
SPR paper, by the first author's given name). Each entity has a mask :math:`m_i \ge 0`, one in the
beginning, that scales its channels (`spr_or.methods.common.gates`), and

.. math:: \min_{w, m}\ \mathrm{CE} + \frac{\kappa}{2B} \sum_b \|f_b - c_{y_b}\|^2
          + \gamma \sum_i \Bigl(|m_i| + \frac{\rho}{2} m_i^2\Bigr)

where f is what the last layer reads and :math:`c_y` the centre of class y. Masks of residual branches have
the L1 norm only (ρ = 0), those of filters both, as in the abstract. Weights take the shared SGD, masks
FISTA: with S the soft threshold and η the learning rate,

.. math::

    m_{k+1} &= \max\bigl(0,\ S_{\eta\gamma}(y_k - \eta \nabla(y_k))\bigr), \qquad
    t_{k+1} = \tfrac12 \bigl(1 + \sqrt{1 + 4 t_k^2}\bigr), \\
    y_{k+1} &= m_{k+1} + \min\Bigl(\mu, \frac{t_k - 1}{t_{k+1}}\Bigr) (m_{k+1} - m_k)

The centres follow the features as in Wen, Zhang, Li, Qiao, A discriminative feature learning approach for
deep face recognition, ECCV 2016: :math:`c_j` moves by half of the sum of what its features are away from
it over one more than their number. As there, the loss measures against the centres before a batch moves
them; only a class that no batch had before is measured against the mean of its first features.

The entities are those of the recipe: filters give the paper's filter pruning, blocks its block pruning;
``combined`` adds masks of residual branches to those of filters, whose scores they multiply.

Our reading: only the abstract was at hand. It names the mask, both norms, the center loss and FISTA; the
weights of the terms, the form of the squared norm, FISTA's momentum held below 0.9 (gradients are noisy)
and how block and filter masks are combined are ours. Both norms rest while as many masks are zero as
the budget asks for. Where a step would make more zero, those with the smallest value before the threshold
go, and the others stay where they were.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from spr_or.methods.common.gates import Gates, add_gates, price_to_zero
from spr_or.methods.common.soft_threshold import soft_threshold
from spr_or.methods.common.zero_gates import ZeroGates, zero_gates
from spr_or.pruning.budget import EntityNumbers, Masks
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.layer_entities import LayerEntities, layer_entities
from spr_or.pruning.output_layers import output_layers
from spr_or.pruning.unwrap import unwrap
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask

MOMENTUM = 0.9  # at most
_FOLLOW = 0.5  # how far a centre goes towards the features of a batch


class Keys(MethodKeys):
    """The keys of EPFS."""

    gamma: float | None = Field(
        None, gt=0
    )  # weight of the norms of the masks; by default from `reach`
    # Share of the phase in which the L1 norm by itself would take a mask from one to zero.
    reach: float = Field(0.5, gt=0, le=10)
    ridge: float = Field(0.1, ge=0)  # rho: the squared norm beside the L1 norm, for filters
    center: float = Field(0.003, ge=0)  # kappa, weight of the center loss
    combined: bool = False  # masks on residual branches too; for entities that are filters


def fista_step(
    point: Tensor,
    gradient: Tensor,
    before: Tensor,
    t: Tensor,
    rate: Tensor | float,
    price: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """New y, m and t from y, the gradient there, m and t; masks are (n,), the soft threshold rate · price.

    >>> one = torch.ones(1)
    >>> y, m, t = fista_step(one, 0 * one, one, torch.tensor(1.0), 0.1, 1.0)
    >>> [round(float(x), 4) for x in (y, m, t)]  # no momentum yet
    [0.9, 0.9, 1.618]
    """
    masks = soft_threshold(point - rate * gradient, rate * price).clamp(min=0)
    later = (1 + (1 + 4 * t.square()).sqrt()) / 2
    momentum = ((t - 1) / later).clamp(max=MOMENTUM)
    return (masks + momentum * (masks - before)).clamp(min=0), masks, later


def center_loss(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Half the mean of the squared distances of features (B, D) to the centres (K, D) of their classes.

    >>> float(center_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([1]), torch.zeros(2, 2)))
    4.5
    """
    return (features - centers[labels]).square().sum(1).mean() / 2


def moved_centers(centers: Tensor, seen: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """The centres (K, D) after a batch; a class that was not ``seen`` (K,) before goes to its mean.

    >>> centers = torch.zeros(2, 1)
    >>> moved_centers(centers, torch.tensor([True, False]), torch.ones(2, 1), torch.tensor([0, 1]))
    tensor([[0.2500],
            [1.0000]])
    """
    number = torch.zeros(len(centers), device=centers.device).index_add(
        0, labels, torch.ones(len(labels), device=centers.device)
    )
    away = torch.zeros_like(centers).index_add(0, labels, features - centers[labels])
    step = torch.where(seen, _FOLLOW / (1 + number), 1 / number.clamp(min=1))
    return centers + step.unsqueeze(1) * away


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Train with masks and center loss; score by what is left of the masks."""
    head = _head(task)
    branches = _branches(task) if keys.combined else ()
    gates = add_gates(task.model, (*task.layers, *branches), task.example)
    point = gates.values
    price = keys.gamma or price_to_zero(task, MOMENTUM, keys.reach)
    zeros = zero_gates(task, point)
    of_filters = torch.cat(
        [
            torch.full((layer.count,), float(not _is_branch(layer)))
            for layer in (*task.layers, *branches)
        ]
    ).to(point.device)
    memory = {
        "masks": point.detach().clone(),
        "t": torch.ones((), device=point.device),
        "centers": torch.zeros(task.classes, head.in_features, device=point.device),
        "seen": torch.zeros(task.classes, dtype=torch.bool, device=point.device),
    }
    masks = memory["masks"]
    rate = torch.zeros((), device=point.device)  # a tensor, as a CUDA graph demands
    read: list[Tensor] = []

    def remember(module: nn.Module, inputs: Any) -> None:
        read[:] = [inputs[0]]

    hook = head.register_forward_pre_hook(remember)

    def term(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        features = read.pop().float()
        with torch.no_grad():
            seen = memory["seen"]
            moved = moved_centers(memory["centers"], seen, features, labels)
            centers = torch.where(seen.unsqueeze(1), memory["centers"], moved)
            memory["centers"].copy_(moved)
            seen.index_fill_(0, labels, True)
        return keys.center * center_loss(features, labels, centers)

    def begin(epoch: int) -> None:
        rate.fill_(task.rate(epoch))

    @torch.no_grad()
    def step() -> None:
        assert point.grad is not None
        now = price * (zeros.lacking(masks) > 0)
        gradient = point.grad + now * keys.ridge * of_filters * point
        unshrunk = point - rate * gradient
        new, new_masks, t = fista_step(point, gradient, masks, memory["t"], rate, now)
        held = zeros.held(masks, new_masks == 0, unshrunk)
        masks.copy_(torch.where(held, masks, new_masks))
        # A mask that is not zero is not extrapolated to zero either: its momentum ends.
        point.copy_(torch.where(held | (new == 0), masks, new))
        memory["t"].copy_(t)
        zeros.count(masks, unshrunk)
        point.grad = None

    @torch.no_grad()
    def load(state: dict[str, Any]) -> None:
        point.copy_(state["point"])
        for name, tensor in memory.items():
            tensor.copy_(state[name])
        zeros.load(state)

    @torch.no_grad()
    def finish(kept: Masks) -> None:
        hook.remove()
        point.copy_(masks)
        branch_stays = [torch.ones(1, dtype=torch.bool)] * len(branches)  # some of its filters do
        gates.fold([*(kept[layer.name] for layer in task.layers), *branch_stays])

    return PruningPlan(
        scores=lambda: _scores(task, gates, branches, masks, zeros),
        trains=True,
        term=term,
        after_backward=step,
        before_epoch=begin,
        after_epoch=lambda epoch: {"zero_masks_pct": 100 * float((masks == 0).float().mean())},
        state=lambda: {
            "point": point.detach().clone(),
            **{n: x.clone() for n, x in memory.items()},
            **zeros.state(),
        },
        load=load,
        finish=finish,
    )


def _scores(
    task: PruningTask,
    gates: Gates,
    branches: tuple[LayerEntities, ...],
    masks: Tensor,
    zeros: ZeroGates,
) -> EntityNumbers:
    """Those of the entities; in a branch times its mask, and where that is zero before all others."""
    scores = gates.of_entities(zeros.scores(masks), task.layers)
    of_branches = masks.split(gates.sizes)[len(task.layers) :]
    lowest = min(float(score.min()) for score in scores.values()) - 1
    highest = max(float(score.max()) for score in scores.values())
    for branch, mask in zip(branches, of_branches, strict=True):
        held = {id(parameter) for parameter in branch.parameters}
        for layer in task.layers:
            if id(layer.parameters[0]) in held:
                score = scores[layer.name]
                inside = torch.where(score > 0, score * mask, score)
                scores[layer.name] = torch.where(mask > 0, inside, lowest - highest + score)
    return scores


def _head(task: PruningTask) -> nn.Linear:
    inner = unwrap(task.model)
    names = output_layers(inner, task.example)
    heads = [inner.get_submodule(name) for name in names]
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        raise ValueError(
            "EPFS holds the features in front of the last layer near the centres of their classes, so it "
            f"needs a network with one linear layer at its end, not {', '.join(sorted(names)) or 'none'}"
        )
    return heads[0]


def _branches(task: PruningTask) -> tuple[LayerEntities, ...]:
    if any(isinstance(layer, GroupEntities) for layer in task.layers):
        raise ValueError(
            "EPFS with combined = true puts masks on residual branches beside those of filters: set "
            'spr.entities = "filters"'
        )
    return layer_entities(unwrap(task.model), "blocks", example=task.example)


def _is_branch(layer: LayerEntities) -> bool:
    return isinstance(layer, GroupEntities) and layer.kind == "blocks"


METHOD = Method(
    title="EPFS",
    kind="regulariser",
    paper=(
        "Xu, Chen, Gong, Liu, Lü et al. 2021, Neural Computing and Applications 33, "
        "doi:10.1007/s00521-021-05828-8"
    ),
    plan=plan,
    keys=Keys,
    differs=(
        "our reading of the abstract; the weight of the norms follows from the length of the phase, and "
        "they rest while as many masks are zero as the budget asks for"
    ),
)

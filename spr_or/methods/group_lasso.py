r"""Group lasso: a price on the length of each entity, paid by a proximal step.

.. math::  \min_w L(w) + \lambda \sum_i \sqrt{k_i}\, \lVert w_i \rVert_2, \qquad
           w_i \leftarrow \Bigl(1 - \frac{\eta \lambda \sqrt{k_i}}{\lVert w_i \rVert_2}\Bigr)_+ w_i

The optimiser's step on the loss is followed by the operator on the right, so entities become exactly
zero and may return; eta is the learning rate over 1 - momentum. The penalty is that of Yuan and Lin
2006 (Model selection and estimation in regression with grouped variables, JRSS B 68). On filters of
networks it was used by Wen, Wu, Wang, Chen, Li 2016 (Learning structured sparsity in deep neural networks,
arXiv:1608.03665), who add its gradient to that of the loss.

The end of the phase cuts by ||w_i|| / sqrt(k_i). Without ``lam`` it starts at a share of what would
empty a layer, and the budget moves it as it does for SPR (`spr_or.pruning.budget.next_lam`).
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from spr_or.methods.common.emptying_lams import StepLength, emptying_lams
from spr_or.methods.common.entity_writes import entity_norms, not_zero, scale_
from spr_or.methods.common.soft_threshold import soft_threshold
from spr_or.pruning.lam_course import LamCourse
from spr_or.pruning.lam_words import START
from spr_or.pruning.largest_lam import to_go
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask

# Lambda also starts at most at this share of the smallest one that empties a layer.
_FIRST_LAYER = 0.05


class Keys(MethodKeys):
    """Keys of the group lasso."""

    lam: float | None = Field(default=None, ge=0)  # lambda; None: the budget moves it


def shrinkage(norm: Tensor, step: Tensor) -> Tensor:
    """The factor (1 - step / norm)_+ by which the group soft threshold shortens, (N,); 0 for a norm of 0.

    >>> shrinkage(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.5, 3.0, 0.0]))
    tensor([0.7500, 0.0000, 0.0000])
    """
    return torch.where(norm > 0, soft_threshold(torch.ones_like(norm), step / norm), 0.0)


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Train with the penalty; score by the norms that are left."""
    optimizer = task.make_optimizer(task.model.parameters())
    length = StepLength(optimizer)
    prices = [layer.sizes.sqrt().to(layer.parameters[0]) for layer in task.layers]
    counts = [layer.count for layer in task.layers]
    sizes = torch.cat([layer.sizes for layer in task.layers])
    start = keys.lam
    if start is None:
        of_layers = emptying_lams(task, prices, length.scale)
        start = min(START * max(of_layers), _FIRST_LAYER * min(x for x in of_layers if x > 0))
    target = task.target_pct if keys.lam is None else None  # a number that the user gave stays
    course = LamCourse(start, task.epochs, target, task.steps)
    price = torch.cat(prices)
    charge = torch.empty_like(price)  # lambda p, in one place: a captured step reads it there

    def read() -> None:
        share = task.removed_pct(not_zero(task.layers))
        far = torch.cat([entity_norms(layer) for layer in task.layers]) / price
        stays = [True] * len(counts)
        course.read(share, to_go(far.split(counts), sizes, course.rest(share), stays))

    def before_epoch(epoch: int) -> None:
        torch.mul(price, course.lam, out=charge)

    def within(epoch: int, step: int) -> None:
        if course.is_read_after(step):
            read()
            torch.mul(price, course.lam, out=charge)

    @torch.no_grad()
    def shrink() -> None:
        norms = torch.cat([entity_norms(layer) for layer in task.layers])
        factors = shrinkage(norms, charge * length.now).split(counts)
        for layer, factor in zip(task.layers, factors, strict=True):
            scale_(layer, factor)

    def after_epoch(epoch: int) -> dict[str, Any]:
        read()
        return {"lam": course.last, "zero_pct": course.shares[-1]}

    def scores() -> dict[str, Tensor]:
        pairs = zip(task.layers, prices, strict=True)
        return {layer.name: entity_norms(layer) / root for layer, root in pairs}

    return PruningPlan(
        scores=scores,
        trains=True,
        optimizer=optimizer,
        before_epoch=before_epoch,
        within=within,
        after_step=shrink,
        after_epoch=after_epoch,
        ease=course.ease,
        state=course.state,
        load=course.load,
    )


METHOD = Method(
    title="Group lasso",
    kind="regulariser",
    paper="Yuan, Lin 2006, JRSS B 68; on filters Wen, Wu, Wang, Chen, Li 2016, arXiv:1608.03665",
    plan=plan,
    keys=Keys,
    differs="a proximal step instead of the penalty's gradient; the budget moves lambda",
)

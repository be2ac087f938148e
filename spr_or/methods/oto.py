r"""OTO: zero-invariant groups and a half-space projected step (Chen et al. 2021, arXiv:2107.07467).

A zero-invariant group is what makes a channel zero when it is zero: a filter, its bias, and the scale and
shift of the norm behind it. Over these groups

.. math::  \min_x L(x) + \lambda \sum_g \lVert x_g \rVert_2

is trained in two stages. In the first the subgradient lambda x_g / ||x_g|| is added to the gradient of the
loss. From the switch on, the same step gives only a trial point, and a group goes to zero when that leaves
the half-space around the present point,

.. math::  \langle \tilde x_g, x_g \rangle < \varepsilon \lVert x_g \rVert_2^2.

Zero groups stay zero. The paper trains from new weights, with a lambda found by trials, and takes the
sparsity that comes. Here the network is trained already; lambda is the one that, without a loss, would
just make all groups zero by the end of the phase; no group is projected once the budget is met, and what
the budget lacks at the end is cut by the norms of the groups. The projected step is written from the
abstract and from what the authors' code does: our reading.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from spr_or.methods.common.emptying_lams import StepLength, emptying_lams
from spr_or.methods.common.entity_rows import entity_rows
from spr_or.methods.common.entity_writes import add_to_gradients_, entity_norms, not_zero, scale_
from spr_or.methods.common.with_norms import with_norms
from spr_or.pruning.budget import EntityNumbers, Masks
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask


class Keys(MethodKeys):
    """Keys of OTO."""

    # Lambda; None: the one that, without a loss, would make all groups zero by the end of the phase.
    lam: float | None = Field(default=None, ge=0)
    # How near the half-space is to the present point: 0 projects late, 1 at any step towards zero.
    epsilon: float = Field(default=0.9, ge=0, lt=1)
    switch: float = Field(default=0.5, ge=0, le=1)  # share of the epochs before the projected steps


def subgradient(rows: Tensor, lam: float) -> Tensor:
    """lambda x_g / ||x_g|| of rows (N, k); zero for a group that is zero.

    >>> subgradient(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 10.0).tolist()
    [[6.0, 8.0], [0.0, 0.0]]
    """
    norm = rows.norm(dim=1, keepdim=True)
    return torch.where(norm > 0, lam * rows / norm, 0.0)


def advance(trial: Tensor, present: Tensor) -> Tensor:
    """<trial, present> / ||present||^2 of rows (N, k): 1 where nothing moves; 0 for zero groups.

    >>> present = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    >>> advance(torch.tensor([[0.5, 0.0], [1.0, 1.0]]), present).tolist()
    [0.25, 0.0]
    """
    square = present.square().sum(1)
    return torch.where(square > 0, (trial * present).sum(1) / square, 0.0)


def within_budget(
    task: PruningTask, alive: Masks, goes: Masks, ratio: EntityNumbers
) -> tuple[Masks, bool]:
    """What of ``alive`` stays when those of ``goes`` go as far as budget and limits allow.

    The smallest ``ratio`` goes first. All arguments are {layer: (N,)} on the CPU. The second result says
    whether the budget spared a group; one that the limit of its layer spares does not count.
    """
    order: list[tuple[float, str, int]] = []
    for name, going in goes.items():
        first = [i for i in ratio[name].argsort().tolist() if going[i]]
        spare = int(alive[name].sum()) - max(1, task.limits[name].least)
        order += [(float(ratio[name][i]), name, i) for i in first[: max(0, spare)]]
    order.sort()
    if not order:
        return alive, False

    def left(number: int) -> Masks:
        masks = {name: keep.clone() for name, keep in alive.items()}
        for _, name, i in order[:number]:
            masks[name][i] = False
        return masks

    def removed(number: int) -> float:
        return task.removed_pct(left(number))

    if removed(len(order)) <= task.target_pct:
        return left(len(order)), False
    fits = bisect_right(range(len(order)), task.target_pct, key=removed) - 1
    return left(max(0, fits)), True


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Train by the two stages; score by the norms of the groups."""
    groups = with_norms(task.model, task.layers, example=task.example)
    optimizer = task.make_optimizer(task.model.parameters())
    names, counts = [group.name for group in groups], [group.count for group in groups]
    lam = _lam(task, groups, StepLength(optimizer).scale) if keys.lam is None else keys.lam
    switch = round(keys.switch * task.epochs)
    projecting = full = False  # full: as much is zero as the budget allows
    present: list[Tensor] = []

    def before_epoch(epoch: int) -> None:
        nonlocal projecting
        projecting = epoch >= switch

    def add_subgradient() -> None:
        nonlocal present
        present = [rows.clone() for rows in entity_rows(groups).values()]
        for group, rows in zip(groups, present, strict=True):
            add_to_gradients_(group, subgradient(rows, lam))

    def masks_of(keep: Tensor) -> Masks:
        return dict(zip(names, keep.cpu().split(counts), strict=True))

    @torch.no_grad()
    def project() -> None:
        nonlocal full
        if not projecting:
            return
        keep = torch.cat([rows.any(1) for rows in present])
        if not full:
            trials = entity_rows(groups).values()
            ratio = torch.cat([advance(*pair) for pair in zip(trials, present, strict=True)])
            goes = keep & (ratio < keys.epsilon)
            if bool(goes.any()):
                left, full = within_budget(task, masks_of(keep), masks_of(goes), masks_of(ratio))
                keep = torch.cat(list(left.values())).to(keep.device)
        for group, factor in zip(groups, keep.split(counts), strict=True):
            scale_(group, factor.to(present[0].dtype))

    def after_epoch(epoch: int) -> dict[str, Any]:
        return {"lam": lam, "zero_pct": task.removed_pct(not_zero(groups))}

    def load(state: dict[str, Any]) -> None:
        nonlocal lam, full
        lam, full = float(state["lam"]), bool(state["full"])

    return PruningPlan(
        scores=lambda: {group.name: entity_norms(group) for group in groups},
        trains=True,
        optimizer=optimizer,
        before_epoch=before_epoch,
        after_backward=add_subgradient,
        after_step=project,
        after_epoch=after_epoch,
        state=lambda: {"lam": lam, "full": full},
        load=load,
    )


def _lam(task: PruningTask, groups: tuple[LayerEntities, ...], scale: float) -> float:
    """The smallest lambda at which, without a loss, all groups would be zero at the end of the phase."""
    prices = [torch.ones(group.count).to(group.parameters[0]) for group in groups]
    return max(emptying_lams(replace(task, layers=groups), prices, scale))


METHOD = Method(
    title="OTO",
    kind="optimiser",
    paper="Chen, Ji, Ding, Fang, Wang, Zhu, Liang, Shi, Yi, Tu 2021, arXiv:2107.07467",
    plan=plan,
    keys=Keys,
    differs="starts from the dense network; the budget ends the projections, and what it lacks is cut",
)

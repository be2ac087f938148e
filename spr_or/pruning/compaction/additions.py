"""Additions: where streams meet. A constant that one side adds becomes a shift."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from spr_or.pruning.compaction.facts import Facts, Keep, operands, same, uniform
from spr_or.pruning.compaction.layers import indexed_addition
from spr_or.pruning.compaction.rules import (
    POINTWISE,
    Decision,
    Rule,
    agreed,
    covers,
    every_dimension,
    register,
)

if TYPE_CHECKING:
    from spr_or.pruning.compaction.plan import Plan

aten = torch.ops.aten


def _is_stream(node: fx.Node, facts: Facts) -> bool:
    """Two tensors of one shape that depend on the inputs, added as they are."""
    nodes = operands(node, facts)
    return (
        len(nodes) == 2
        and not node.kwargs
        and all(facts[x].is_tensor and not facts[x].fixed for x in nodes)
        and facts[nodes[0]].shape == facts[nodes[1]].shape
        and facts[nodes[0]].value.dtype == facts[nodes[1]].value.dtype
        and len(facts[nodes[0]].shape) > 1
    )


def _axis(node: fx.Node, facts: Facts) -> int:
    """The dimension along which most of the two sides is constant; else the usual one for features."""
    shape = facts[operands(node, facts)[0]].shape
    best, most = 1 if len(shape) != 3 else len(shape) - 1, 0
    for dim, n in enumerate(shape):
        if any(dim in facts[x].variable or n == 1 for x in operands(node, facts)):
            continue
        count = sum(int(uniform(facts[x], dim)[0].sum()) for x in operands(node, facts))
        if count > most:
            best, most = dim, count
    return best


def _needed(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
    if not _is_stream(node, facts):
        return POINTWISE.needed(node, facts, wanted)
    axis, nodes = _axis(node, facts), operands(node, facts)
    asked = [wanted & ~_constant(facts, x, axis) for x in nodes]
    if not any(bool(mask.any()) for mask in asked):
        asked[0] = wanted  # for the batch and the positions
    return [*asked]


def _constant(facts: Facts, x: fx.Node, axis: int) -> Tensor:
    """Elements of one known value all along their slice, as bool of x's shape."""
    held, _ = uniform(facts[x], axis)
    rank = len(facts[x].shape)
    return held.view([-1 if d == axis else 1 for d in range(rank)]).expand(facts[x].shape)


def _narrow(plan: "Plan", node: fx.Node) -> Decision:
    facts = plan.facts
    nodes = operands(node, facts)
    plain = agreed(plan, node, every_dimension(node, facts))
    if not _is_stream(node, facts):
        return plain
    narrowed = {d for x in nodes for d, k in enumerate(plan.kept[x]) if k is not None}
    axis = _axis(node, facts)
    if not all(plan.alive(x) for x in nodes) or narrowed <= {axis}:
        pass
    elif len(narrowed) == 1:
        (axis,) = narrowed
    else:
        return plain
    held = [plan.kept[x][axis] for x in nodes]
    least = plan.least(node)[axis]
    if all(plan.alive(x) for x in nodes) and same(held[0], held[1]) and covers(held[0], least):
        kept = held[0]
    else:
        kept = least
    shift = _shift(plan, nodes, axis, kept)
    keeps: Keep = tuple(kept if d == axis else k for d, k in enumerate(plain.keeps))
    reads = tuple(
        tuple(plan.kept[x][axis] if d == axis else k for d, k in enumerate(keeps)) for x in nodes
    )
    quiet = all(plan.alive(x) for x in nodes) and all(same(h, kept) for h in held)
    if quiet and shift is None:
        return Decision(reads, keeps, keeps)
    return Decision(reads, keeps, keeps, emit=indexed_addition(axis, kept, shift))


def _shift(plan: "Plan", nodes: list[fx.Node], axis: int, kept: Tensor | None) -> Tensor | None:
    """The sum of the constants that the sides no longer hold, (kept,); None where it is zero."""
    total: Tensor | None = None
    for x in nodes:
        held, value = uniform(plan.facts[x], axis)
        own = plan.kept[x][axis]
        gone = held if not plan.alive(x) else held & ~_all_true(own, held)
        part = torch.where(gone, value, 0).double()
        total = part if total is None else total + part
    assert total is not None
    total = total if kept is None else total[kept.to(total.device)]
    return total if bool((total != 0).any()) else None


def _all_true(kept: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like) if kept is None else kept.to(like.device)


register(aten.add.Tensor, Rule(POINTWISE.known, _needed, _narrow, every_dimension))

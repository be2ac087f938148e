"""Operators that only move numbers: views, permutations, concatenations, slices, padding.

Where each element of the result comes from is found by running the operator itself on the
numbers 0, 1, 2, …, so one rule serves all of them, and a new size or start that was worked out
for what is left is checked the same way.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from spr_or.pruning.compaction.facts import (
    Facts,
    Keep,
    any_over,
    argument,
    call,
    full,
    operands,
    outer,
    projected,
    select,
)
from spr_or.pruning.compaction.layers import concatenation
from spr_or.pruning.compaction.rules import Decision, Rule, covers, everything, register, where

if TYPE_CHECKING:
    from spr_or.pruning.compaction.plan import Plan

aten = torch.ops.aten

NOWHERE = -1.0  # in a map of sources: the element is a constant that the operator puts there


def sources(node: fx.Node, facts: Facts) -> tuple[Tensor, list[int]]:
    """For each element of the result its number in the operands laid end to end, and their offsets.

    int64 of the result's shape; -1 where the operator puts a constant.
    """
    numbered, offsets, start = [], [], 0
    for x in moved_by(node, facts):
        count = math.prod(facts[x].shape)
        offsets.append(start)
        index = torch.arange(start, start + count, dtype=torch.float64)
        numbered.append(index.view(facts[x].shape))
        start += count
    return _run(node, facts, numbered).long(), offsets


def moved_by(node: fx.Node, facts: Facts) -> list[fx.Node]:
    """The operands whose numbers move; the others say where to."""
    nodes = operands(node, facts)
    return [x for x, index in zip(nodes, _is_index(node, facts), strict=True) if not index]


def _run(node: fx.Node, facts: Facts, moved: Sequence[Tensor], args: Any = None) -> Tensor:
    """The operator on other tensors; indices stay as they are, constants become `NOWHERE`."""
    queue = iter(moved)
    new = [
        facts[x].value.cpu() if index else next(queue)
        for x, index in zip(operands(node, facts), _is_index(node, facts), strict=True)
    ]
    given = node.args if args is None else args
    if node.target == aten.constant_pad_nd.default:
        given = (*given[:2], NOWHERE)
    result = call(node, facts, new, given)
    assert isinstance(result, Tensor)
    return result


def _known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
    source, _ = facts.once(sources, node)
    known = [facts[x].known for x in moved_by(node, facts)]
    flat = torch.cat([k.flatten().cpu() for k in known if k is not None])
    return (flat[source.clamp(min=0)] | (source < 0)).to(value.device)


def _needed(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
    source, offsets = facts.once(sources, node)
    asked = source[wanted.cpu()]
    moved = moved_by(node, facts)
    total = offsets[-1] + math.prod(facts[moved[-1]].shape)
    flat = torch.zeros(total, dtype=torch.bool)
    flat[asked[asked >= 0]] = True
    parts = iter(flat.split([math.prod(facts[x].shape) for x in moved]))
    return [
        torch.ones(facts[x].shape, dtype=torch.bool) if index else next(parts).view(facts[x].shape)
        for x, index in zip(operands(node, facts), _is_index(node, facts), strict=True)
    ]


def _narrow(plan: "Plan", node: fx.Node) -> Decision:
    """Run on what the operands hold, or on the least that the result needs, or on everything."""
    facts = plan.facts
    moved = moved_by(node, facts)
    held = [_held(plan, node, x) for x in moved]
    least = plan.least(node)
    if all(k is None for keep in held for k in keep) and all(k is None for k in least):
        return everything(plan, node)
    source, offsets = facts.once(sources, node)
    found = _attempt(plan, node, source, held)
    if found is None:
        found = _attempt(plan, node, source, _closed(plan, node, source, offsets))
    if found is None:
        whole = everything(plan, node)
        return (
            whole._replace(reason="what is left of it is no rectangle") if whole.reason else whole
        )
    return found


def _held(plan: "Plan", node: fx.Node, x: fx.Node) -> Keep:
    """What there is of an operand; of a concatenation's operand that is gone, no position."""
    if plan.alive(x) or node.target != aten.cat.default or plan.facts[x].fixed:
        return plan.kept[x]
    dim = int(argument(node, 1, "dim", 0)) % len(plan.kept[x])
    empty = torch.zeros(plan.facts[x].shape[dim], dtype=torch.bool)
    return tuple(empty if d == dim else None for d in range(len(plan.kept[x])))


def _attempt(plan: "Plan", node: fx.Node, source: Tensor, held: list[Keep]) -> Decision | None:
    """The node on given positions of its operands, if what comes out is a product of positions."""
    facts = plan.facts
    moved = moved_by(node, facts)
    there = [
        outer(k, facts[x].shape, torch.device("cpu")) for k, x in zip(held, moved, strict=True)
    ]
    flat = torch.cat([mask.flatten() for mask in there])
    put = source < 0
    present = flat[source.clamp(min=0)] & ~put
    keeps = _without_put_slices(projected(present | put, facts[node].variable), put, held)
    within = outer(keeps, source.shape, source.device)
    if bool((within & ~(present | put)).any()) or bool((present & ~within).any()):
        return None
    if not all(covers(k, n) for k, n in zip(keeps, plan.least(node), strict=True)):
        return None
    resize = _RESIZE.get(node.target)
    args = resize(plan, node, held, keeps) if resize else node.args
    if args is None:
        return None
    numbered, start = [], 0
    for x, keep in zip(moved, held, strict=True):
        count = math.prod(facts[x].shape)
        index = torch.arange(start, start + count, dtype=torch.float64).view(facts[x].shape)
        numbered.append(select(index, keep))
        start += count
    try:
        result = _run(node, facts, numbered, args).long()
    except (RuntimeError, IndexError, ValueError):
        return None
    if not torch.equal(result, select(source, keeps)):
        return None
    queue = iter(held)
    reads = tuple(
        full(len(facts[x].shape)) if index else next(queue)
        for x, index in zip(operands(node, facts), _is_index(node, facts), strict=True)
    )
    emit = concatenation if node.target == aten.cat.default else None
    return Decision(reads, keeps, keeps, args, emit)


def _without_put_slices(keeps: Keep, put: Tensor, held: list[Keep]) -> Keep:
    """Slices of nothing but constants leave a dimension of which something is gone anyhow."""
    found = list(keeps)
    for d in range(put.dim()):
        gone = any(len(keep) == put.dim() and keep[d] is not None for keep in held)
        if gone and bool(put.any()):
            constant = ~any_over(~put, [e for e in range(put.dim()) if e != d])
            kept = ~constant if found[d] is None else found[d] & ~constant  # type: ignore[operator]
            found[d] = None if bool(kept.all()) else kept
    return tuple(found)


def _closed(plan: "Plan", node: fx.Node, source: Tensor, offsets: list[int]) -> list[Keep]:
    """The least positions of the operands that give a product of positions with all that is needed."""
    facts = plan.facts
    moved = moved_by(node, facts)
    sizes = [math.prod(facts[x].shape) for x in moved]
    variable = facts[node].variable
    wanted = plan.required[node].cpu()
    held: list[Keep] = []
    for _ in range(8):
        wanted = outer(projected(wanted, variable), source.shape, source.device)
        flat = torch.zeros(offsets[-1] + sizes[-1], dtype=torch.bool)
        asked = source[wanted]
        flat[asked[asked >= 0]] = True
        parts = [p.view(facts[x].shape) for p, x in zip(flat.split(sizes), moved, strict=True)]
        held = [
            projected(p, facts[x].variable)
            if bool(p.any()) or node.target == aten.cat.default
            else full(p.dim())
            for p, x in zip(parts, moved, strict=True)
        ]
        there = [
            outer(k, facts[x].shape, torch.device("cpu")).flatten()
            for k, x in zip(held, moved, strict=True)
        ]
        present = torch.cat(there)[source.clamp(min=0)] & (source >= 0)
        if not bool((present & ~wanted).any()):
            break
        wanted = wanted | present
    return held


# What each operator's arguments become on what is left: (args) or None where there is no way.


def _sizes(position: int) -> Any:
    def resize(plan: "Plan", node: fx.Node, held: list[Keep], keeps: Keep) -> Any:
        sizes = list(node.args[position])  # type: ignore[arg-type]
        offset = len(keeps) - len(sizes)
        for d, kept in enumerate(keeps):
            if kept is not None and d >= offset:
                sizes[d - offset] = int(kept.sum())
        return (*node.args[:position], sizes, *node.args[position + 1 :])

    return resize


def _unflattened(plan: "Plan", node: fx.Node, held: list[Keep], keeps: Keep) -> Any:
    x = operands(node, plan.facts)[0]
    dim = int(node.args[1]) % len(plan.facts[x].shape)  # type: ignore[arg-type]
    sizes = [
        size if keeps[dim + k] is None else int(keeps[dim + k].sum())  # type: ignore[union-attr]
        for k, size in enumerate(node.args[2])  # type: ignore[arg-type]
    ]
    return (node.args[0], node.args[1], sizes)


def _sliced(plan: "Plan", node: fx.Node, held: list[Keep], keeps: Keep) -> Any:
    dim = int(argument(node, 1, "dim", 0)) % len(keeps)
    kept = held[0][dim]
    if kept is None:
        return node.args
    start, end, step = (argument(node, k, n) for k, n in ((2, "start"), (3, "end"), (4, "step")))
    if step not in (None, 1) or any(isinstance(edge, fx.Node) for edge in (start, end)):
        return None
    first, last, _ = slice(start, end).indices(len(kept))
    before = int(kept[:first].sum())
    return (node.args[0], dim, before, before + int(kept[first:last].sum()))


def _slice_scattered(plan: "Plan", node: fx.Node, held: list[Keep], keeps: Keep) -> Any:
    x, source, dim, start, end, step = (
        argument(node, k, name, default)
        for k, (name, default) in enumerate((
            ("self", None), ("src", None), ("dim", 0), ("start", None), ("end", None), ("step", 1)
        ))
    )  # fmt: skip
    kept = held[0][int(dim) % len(keeps)]
    if kept is None:
        return node.args
    if step != 1 or any(isinstance(edge, fx.Node) for edge in (start, end)):
        return None
    first, last, _ = slice(start, end).indices(len(kept))
    before = int(kept[:first].sum())
    return (x, source, dim, before, before + int(kept[first:last].sum()))


def _narrowed(plan: "Plan", node: fx.Node, held: list[Keep], keeps: Keep) -> Any:
    dim = int(node.args[1]) % len(keeps)  # type: ignore[arg-type]
    kept = held[0][dim]
    if kept is None:
        return node.args
    start, length = node.args[2:4]
    if not (isinstance(start, int) and isinstance(length, int)):
        return None
    start %= len(kept)
    inside = int(kept[start : start + length].sum())
    return (node.args[0], dim, int(kept[:start].sum()), inside)


def _selected(plan: "Plan", node: fx.Node, held: list[Keep], keeps: Keep) -> Any:
    rank = len(held[0])
    dim, index = int(node.args[1]) % rank, node.args[2]  # type: ignore[arg-type]
    kept = held[0][dim]
    if kept is None:
        return node.args
    if not isinstance(index, int):
        return None
    index %= len(kept)
    return (node.args[0], dim, int(kept[:index].sum())) if kept[index] else None


def _padded(plan: "Plan", node: fx.Node, held: list[Keep], keeps: Keep) -> Any:
    """Without the padding of dimensions from which it is gone."""
    widths = list(node.args[1])  # type: ignore[arg-type]
    rank = len(keeps)
    for d in range(rank):
        place = 2 * (rank - 1 - d)
        if keeps[d] is None or place >= len(widths):
            continue
        if any(isinstance(w, fx.Node) for w in widths[place : place + 2]):
            return None
        before, after = widths[place], widths[place + 1]
        inside = keeps[d][before : len(keeps[d]) - after]  # type: ignore[index,arg-type]
        if int(inside.sum()) == int(keeps[d].sum()):  # type: ignore[union-attr]
            widths[place : place + 2] = [0, 0]
    return (node.args[0], widths, *node.args[2:])


_RESIZE: dict[Any, Any] = {
    aten.view.default: _sizes(1),
    aten.reshape.default: _sizes(1),
    aten._unsafe_view.default: _sizes(1),
    aten.expand.default: _sizes(1),
    aten.unflatten.int: _unflattened,
    aten.slice.Tensor: _sliced,
    aten.slice_scatter.default: _slice_scattered,
    aten.narrow.default: _narrowed,
    aten.select.int: _selected,
    aten.constant_pad_nd.default: _padded,
}

# Operands that say where numbers go, or how many there are.
_INDICES: dict[Any, slice] = {
    aten.index_select.default: slice(1, 2),
    aten.index_copy.default: slice(1, 2),
    aten.index.Tensor: slice(1, None),
    aten.index_put.default: slice(1, -1),
    aten.gather.default: slice(1, 2),
    aten.scatter.src: slice(1, 2),
    aten.expand_as.default: slice(1, 2),
    aten.repeat_interleave.self_Tensor: slice(1, 2),
}


def _is_index(node: fx.Node, facts: Facts) -> list[bool]:
    """For each operand whether it says where numbers go."""
    count = len(operands(node, facts))
    places = range(count)[_INDICES.get(node.target, slice(0, 0))]
    return [k in places for k in range(count)]


def is_move(node: fx.Node, facts: Facts) -> bool:
    """Whether it is known which number goes where, and none is added to another."""
    nodes = operands(node, facts)
    places = [x for x, index in zip(nodes, _is_index(node, facts), strict=True) if index]
    return (
        node.target == aten.expand_as.default
        or all(facts[x].fixed for x in places)
        and not (node.target == aten.index_put.default and argument(node, 3, "accumulate", False))
    )


MOVEMENT = Rule(_known, _needed, _narrow)

_MOVES = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.numpy_T.default, aten.mT.default, aten.movedim.int, aten.movedim.intlist,
    aten.swapaxes.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.expand.default, aten.expand_as.default, aten.repeat.default,
    aten.repeat_interleave.self_int, aten.tile.default, aten.cat.default, aten.stack.default,
    aten.slice.Tensor, aten.narrow.default, aten.select.int, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default, aten.channel_shuffle.default, aten.flip.default,
    aten.roll.default, aten.constant_pad_nd.default, aten.pad.default,
    aten.slice_scatter.default, aten.select_scatter.default,
    aten.index_put.default, aten.diagonal.default, aten.unfold.default,
    aten.repeat_interleave.self_Tensor,
)  # fmt: skip
register(list(_MOVES), where(is_move, MOVEMENT))


def moves(node: fx.Node, facts: Facts) -> bool:
    """Whether the node does nothing but move numbers to places that are known."""
    by_index = (aten.index_select.default, aten.index.Tensor, aten.index_copy.default)
    return node.target in (*_MOVES, *by_index) and is_move(node, facts)

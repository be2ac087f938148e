"""Positions taken by fixed indices, and tensors added at fixed positions.

The indices are those of the full width. On what is left they are worked out again.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from spr_or.pruning.compaction.facts import Facts, known_zero, named, operands, uniform
from spr_or.pruning.compaction.layers import indexed_call
from spr_or.pruning.compaction.movement import MOVEMENT, is_move
from spr_or.pruning.compaction.rules import MIXING, Decision, Rule, agreed, passing, register, where

if TYPE_CHECKING:
    from spr_or.pruning.compaction.plan import Plan

aten = torch.ops.aten


def _taken(node: fx.Node, facts: Facts) -> tuple[int, fx.Node] | None:
    """The one dimension along which positions are taken, and the index vector."""
    if node.target == aten.index_select.default:
        dim, index = named(node, "dim"), named(node, "index")
        return int(dim) % len(facts[operands(node, facts)[0]].shape), index
    given = [(d, index) for d, index in enumerate(named(node, "indices")) if index is not None]
    return given[0] if len(given) == 1 else None


def _takes_along_one(node: fx.Node, facts: Facts) -> bool:
    """Whether one vector of numbers, the same for every input, says what is taken."""
    found = _taken(node, facts)
    if found is None or not facts[found[1]].fixed:
        return False
    index = facts[found[1]].value
    return index.dim() == 1 and index.dtype in (torch.int64, torch.int32)


def _others(dim: int, rank: int) -> dict[int, int]:
    return {d: d for d in range(rank) if d != dim}


def _narrow_taken(plan: "Plan", node: fx.Node) -> Decision:
    """Take what is needed, from what there is if that is enough."""
    facts, least = plan.facts, plan.least(node)
    x = operands(node, facts)[0]
    found = _taken(node, facts)
    assert found is not None
    dim, count = found[0], facts[x].shape[found[0]]
    wanted = least[dim]
    index = facts[found[1]].value.cpu() % count
    plain = agreed(plan, node, [_others(dim, len(facts[x].shape)), {}])
    asked = index if wanted is None else index[wanted.cpu()]
    held = plan.kept[x][dim]
    if held is not None and not bool(held.cpu()[asked].all()):
        held = torch.zeros(count, dtype=torch.bool).index_fill(0, asked.long(), True)
    if held is None and wanted is None:
        return plain._replace(reason="")
    keeps = _put(plain.keeps, dim, wanted)
    reads = (_put(plain.reads[0], dim, held), (None,))
    places = asked if held is None else (held.cpu().cumsum(0) - 1)[asked]
    emit = indexed_call(aten.index_select.default, dim, places)
    return Decision(reads, keeps, keeps, emit=emit, unread=(1,))


def _put(keep: tuple[Any, ...], dim: int, kept: Tensor | None) -> tuple[Any, ...]:
    return (*keep[:dim], kept, *keep[dim + 1 :])


register(
    [aten.index_select.default, aten.index.Tensor],
    where(
        _takes_along_one,
        MOVEMENT._replace(narrow=_narrow_taken),
        where(is_move, MOVEMENT),
    ),
)


# index_add(x, dim, index, source): source[j] is added to x[index[j]]; index_copy: it takes its place.


def _added_known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
    x, index, source = operands(node, facts)
    unknown = [(~facts[side].known).int() for side in (x, source)]  # type: ignore[operator]
    return unknown[0].index_add(named(node, "dim"), facts[index].value, unknown[1]) == 0


def _added_needed(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
    _, index, source = operands(node, facts)
    places = facts[index].value
    landing = wanted.index_select(named(node, "dim"), places) & ~known_zero(facts[source])
    return [wanted, torch.ones(places.shape, dtype=torch.bool), landing]


def _placed_narrow(plan: "Plan", node: fx.Node) -> Decision:
    """Place what lands where anything is needed; zeros that are gone are not added."""
    facts, least = plan.facts, plan.least(node)
    x, index, source = operands(node, facts)
    rank = len(facts[x].shape)
    dim = int(named(node, "dim")) % rank
    plain = agreed(plan, node, [_others(dim, rank), {}, _others(dim, rank)])
    kept, own = least[dim], plan.kept[source][dim]
    if kept is None and own is None:
        return plain._replace(reason="")
    places = facts[index].value.cpu()
    lands = torch.ones_like(places, dtype=torch.bool) if kept is None else kept.cpu()[places]
    settings = {}
    if node.target == aten.index_add.default:
        held, value = uniform(facts[source], dim)
        zero = (held & (value == 0)).cpu()
        lands &= ~zero if own is None else ~zero | own.cpu()
        settings["alpha"] = named(node, "alpha")
    at = places if kept is None else kept.cpu().cumsum(0)[places] - 1
    keeps = _put(plain.keeps, dim, kept)
    reads = (keeps, (None,), _put(plain.reads[2], dim, None if bool(lands.all()) else lands))
    emit = indexed_call(node.target, dim, at[lands], **settings)
    return Decision(reads, keeps, keeps, emit=emit, unread=(1,))


def _at_fixed_places(node: fx.Node, facts: Facts) -> bool:
    _, index, source = operands(node, facts)
    return facts[index].fixed and facts[index].value.dim() == 1 and facts[source].is_tensor


register(
    aten.index_add.default,
    where(_at_fixed_places, Rule(_added_known, _added_needed, _placed_narrow), MIXING),
)
register(
    aten.index_copy.default,
    where(_at_fixed_places, MOVEMENT._replace(narrow=_placed_narrow), MIXING),
)


# gather and scatter: dimensions other than the indexed one pass where all sizes are the same.


def _along_index(node: fx.Node, facts: Facts) -> list[dict[int, int]]:
    shapes = [facts[x].shape for x in operands(node, facts)]
    rank = len(shapes[0])
    dim = int(named(node, "dim")) % rank
    even = [d for d in range(rank) if d != dim and len({shape[d] for shape in shapes}) == 1]
    only_index = node.target == aten.gather.default  # the result has the shape of the index
    index_too = [{d: d for d in range(rank)}] if only_index else [{d: d for d in even}]
    return [{d: d for d in even}, *index_too, *({d: d for d in even} for _ in shapes[2:])]


register(aten.gather.default, where(is_move, MOVEMENT, passing(_along_index, absorbing=(0,))))
register(
    [aten.scatter.src, aten.scatter.value, aten.scatter_add.default],
    where(is_move, MOVEMENT, passing(_along_index)),
)

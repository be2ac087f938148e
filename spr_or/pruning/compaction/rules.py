"""One table from operator to rule, and the rule that serves most operators.

A rule is three small functions of a node:

* ``known(node, facts, value)``: which elements of the result are known, given the operands' facts;
* ``needed(node, facts, wanted)``: which elements of each operand the wanted ones depend on;
* ``narrow(plan, node)``: a `Decision`: what the operator reads and makes when it runs on what is left;
* ``dims(node, facts)``, where it has such: the dimensions of each operand that pass.

Most operators treat some dimensions position by position and mix the others: softmax mixes one, an
activation none, an operator that nobody described all. `passing` makes the three functions from
the dimensions that pass. So one line describes most operators, here one of our own:

>>> import torch
>>> from torch import Tensor
>>> from spr_or.pruning.compaction.rules import all_but, every_dimension, passing, register
>>> @torch.library.custom_op("example::swish", mutates_args=())
... def swish(x: Tensor) -> Tensor:
...     return x * x.sigmoid()
>>> _ = swish.register_fake(torch.empty_like)
>>> register(torch.ops.example.swish.default, passing(every_dimension))

One that mixes its last dimension is ``passing(all_but(-1))``. What is mixed is filled up with its
constants in front of the operator. So an operator without a rule is not wrong, but takes all of its
inputs at full width.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx

from spr_or.pruning.compaction.facts import (
    Fact,
    Facts,
    Keep,
    any_over,
    full,
    known_zero,
    operands,
    same,
)

if TYPE_CHECKING:
    from spr_or.pruning.compaction.plan import Plan

Pairs = dict[int, int]
"""Dimensions of an operand that pass, each to the dimension of the result it becomes."""


class Decision(NamedTuple):
    """How a node runs on what is left.

    reads: for each operand the positions that it is given. makes: the positions of the result
    that it then computes; keeps: those of them that go on. args: its arguments, None for the node's
    own. emit: builds the node where that is not a call of its operator. reason: why something had to
    be filled up, empty where nothing had. unread: operands, by number, that emit does without.
    """

    reads: tuple[Keep, ...]
    makes: Keep
    keeps: Keep
    args: Any = None
    emit: Any = None
    reason: str = ""
    unread: tuple[int, ...] = ()


class Rule(NamedTuple):
    """See the module's docstring."""

    known: Callable[[fx.Node, Facts, Tensor], Tensor]
    needed: Callable[[fx.Node, Facts, Tensor], list[Tensor | None]]
    narrow: Callable[["Plan", fx.Node], Decision]
    dims: Callable[[fx.Node, Facts], list[Pairs]] | None = None


_TABLE: dict[Any, Rule] = {}


def register(operators: Any, rule: Rule) -> None:
    """Use a rule for an operator, such as ``torch.ops.mylib.swish.default``, or for a list of them."""
    for operator in operators if isinstance(operators, list | tuple) else (operators,):
        _TABLE[operator] = rule


def rule_of(target: Any) -> Rule:
    """The rule of an operator: its own, that of all pointwise operators, or that of unknown ones."""
    if target in _TABLE:
        return _TABLE[target]
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return POINTWISE
    return UNKNOWN


def is_known(target: Any) -> bool:
    """Whether the operator has a rule that is not that of unknown ones."""
    return rule_of(target) is not UNKNOWN


def has_rule(target: Any) -> bool:
    """Whether a rule was registered for the operator itself."""
    return target in _TABLE


def every_dimension(node: fx.Node, facts: Facts) -> list[Pairs]:
    """Every dimension of every operand passes, aligned from the right as in broadcasting."""
    value = facts[node].value if node in facts else None
    shapes = [facts[x].shape if facts[x].is_tensor else () for x in operands(node, facts)]
    shape = tuple(value.shape) if value is not None else torch.broadcast_shapes(*shapes)
    return [_aligned(s, shape) for s in shapes]


def _aligned(shape: Sequence[int], result: Sequence[int]) -> Pairs:
    offset = len(result) - len(shape)
    return {
        d: d + offset for d, n in enumerate(shape) if d + offset >= 0 and n == result[d + offset]
    }


def no_dimension(node: fx.Node, facts: Facts) -> list[Pairs]:
    """Nothing passes: every element of the result may depend on every element of the operands."""
    return [{} for _ in operands(node, facts)]


def all_but(*mixed: int) -> Callable[[fx.Node, Facts], list[Pairs]]:
    """Every dimension of every operand passes except those listed, which count from either end."""

    def dims(node: fx.Node, facts: Facts) -> list[Pairs]:
        ranks = [len(facts[x].shape) if facts[x].is_tensor else 0 for x in operands(node, facts)]
        gone = [{d % rank for d in mixed if -rank <= d < rank} for rank in ranks]
        return [{d: d for d in range(r) if d not in g} for r, g in zip(ranks, gone, strict=True)]

    return dims


def to_result(mask: Tensor, pairs: Pairs, shape: Sequence[int]) -> Tensor:
    """Positions of the result all of whose sources in ``mask`` are True, as bool of ``shape``."""
    mixed = [d for d in range(mask.dim()) if d not in pairs]
    held = ~any_over(~mask, mixed)
    order = sorted(pairs)
    targets = [pairs[d] for d in order]
    held = held.permute(sorted(range(len(order)), key=targets.__getitem__))
    sizes = iter(held.shape)
    held = held.reshape([next(sizes) if d in targets else 1 for d in range(len(shape))])
    return held.expand(tuple(shape))


def to_operand(wanted: Tensor, pairs: Pairs, shape: Sequence[int]) -> Tensor:
    """The operand's elements that wanted ones of the result depend on, as bool of ``shape``."""
    order = sorted(pairs, key=pairs.__getitem__)
    targets = [pairs[d] for d in order]
    asked = any_over(wanted, [d for d in range(wanted.dim()) if d not in targets])
    asked = asked.permute(sorted(range(len(order)), key=order.__getitem__))
    sizes = iter(asked.shape)
    asked = asked.reshape([next(sizes) if d in pairs else 1 for d in range(len(shape))])
    return asked.expand(tuple(shape))


def passing(
    dims: Callable[[fx.Node, Facts], list[Pairs]],
    absorbing: Sequence[int] = (),
    known: Callable[[fx.Node, Facts, Tensor], Tensor] | None = None,
) -> Rule:
    """The rule of an operator that treats some dimensions position by position.

    dims: for each operand the dimensions that pass. absorbing: operands whose zeros make the
    result zero or a fixed number, whatever the others are. known: where the result is known, if
    not exactly where all that it depends on is.
    """

    def all_known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
        found = torch.ones(value.shape, dtype=torch.bool, device=value.device)
        nodes, pairs = operands(node, facts), dims(node, facts)
        for x, passes in zip(nodes, pairs, strict=True):
            found = found & to_result(_known(facts[x]), passes, value.shape)
        for k in absorbing:
            if k < len(nodes):
                found = found | to_result(known_zero(facts[nodes[k]]), pairs[k], value.shape)
        return found

    def needed(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
        nodes, pairs = operands(node, facts), dims(node, facts)
        asked: list[Tensor | None] = []
        for k, (x, passes) in enumerate(zip(nodes, pairs, strict=True)):
            left = wanted
            for other in absorbing:
                if other != k and other < len(nodes):
                    zero = to_result(known_zero(facts[nodes[other]]), pairs[other], wanted.shape)
                    left = left & ~zero
            asked.append(to_operand(left, passes, facts[x].shape))
        return asked

    def narrow(plan: "Plan", node: fx.Node) -> Decision:
        return agreed(plan, node, dims(node, plan.facts))

    return Rule(known or all_known, needed, narrow, dims)


def _known(fact: Fact) -> Tensor:
    return fact.known if fact.known is not None else torch.ones((), dtype=torch.bool)


def agreed(plan: "Plan", node: fx.Node, pairs: list[Pairs]) -> Decision:
    """Operands take the same positions of every dimension that passes, and all of those that do not.

    Where they hold the same already, nothing is moved; else they get what the result needs.
    """
    nodes = operands(node, plan.facts)
    shape = plan.facts[node].shape
    least = plan.least(node)
    keeps: list[Tensor | None] = []
    for d in range(len(shape)):
        held = _votes(plan, nodes, pairs, d, fixed=False) or _votes(plan, nodes, pairs, d, True)
        if held and all(same(held[0], other) for other in held) and covers(held[0], least[d]):
            keeps.append(held[0])
        else:
            keeps.append(least[d] if held else None)
    reads, reason = [], ""
    for x, passes in zip(nodes, pairs, strict=True):
        rank = len(plan.facts[x].shape) if plan.facts[x].is_tensor else 0
        reads.append(tuple(keeps[passes[d]] if d in passes else None for d in range(rank)))
        mixed = [d for d in range(rank) if d not in passes and plan.kept[x][d] is not None]
        if mixed:
            reason = f"it mixes dimension {mixed[0]} of its input"
    return Decision(tuple(reads), tuple(keeps), tuple(keeps), reason=reason)


def _votes(
    plan: "Plan", nodes: list[fx.Node], pairs: list[Pairs], dim: int, fixed: bool
) -> list[Tensor | None]:
    """What the operands hold of a dimension of the result."""
    return [
        plan.kept[x][d]
        for x, passes in zip(nodes, pairs, strict=True)
        if plan.facts[x].fixed == fixed
        for d, target in passes.items()
        if target == dim
    ]


def covers(held: Tensor | None, needed: Tensor | None) -> bool:
    """Whether the positions that are held include those that are needed."""
    if held is None:
        return True
    if needed is None:
        return bool(held.all())
    return not bool((needed.cpu() & ~held.cpu()).any())


def everything(plan: "Plan", node: fx.Node) -> Decision:
    """The node as it is, on operands as they were."""
    nodes = operands(node, plan.facts)
    facts = [plan.facts[x] for x in nodes]
    reads = tuple(full(len(f.shape)) if f.is_tensor else () for f in facts)
    filled = any(k is not None for x in nodes for k in plan.kept[x])
    own = plan.facts[node]
    rank = len(own.shape) if own.is_tensor else 0
    reason = "it takes its inputs whole" if filled else ""
    return Decision(reads, full(rank), full(rank), reason=reason)


def _unknown_needed(node: fx.Node, facts: Facts, wanted: Tensor) -> list[Tensor | None]:
    return [
        torch.ones(facts[x].shape, dtype=torch.bool, device=facts[x].value.device)
        if facts[x].is_tensor
        else None
        for x in operands(node, facts)
    ]


def _unknown_known(node: fx.Node, facts: Facts, value: Tensor) -> Tensor:
    return torch.zeros(value.shape, dtype=torch.bool, device=value.device)


POINTWISE = passing(every_dimension)
MIXING = passing(no_dimension)
UNKNOWN = Rule(_unknown_known, _unknown_needed, everything)


def where(
    condition: Callable[[fx.Node, Facts], bool], rule: Rule, otherwise: Rule = UNKNOWN
) -> Rule:
    """One rule for the nodes of which the condition holds, another for the rest."""

    def chosen(node: fx.Node, facts: Facts) -> Rule:
        return rule if condition(node, facts) else otherwise

    return Rule(
        lambda node, facts, value: chosen(node, facts).known(node, facts, value),
        lambda node, facts, wanted: chosen(node, facts).needed(node, facts, wanted),
        lambda plan, node: chosen(node, plan.facts).narrow(plan, node),
        rule.dims if rule.dims is otherwise.dims else None,
    )

"""What of a network is needed, and what each operator runs on.

1. Forwards: what is *known* of every tensor, from a run of the example (`facts`).
2. Backwards: which elements are *needed*. A constant is not asked for where it can become a bias,
   and one that is asked for need not be computed: it can be put back.
3. Forwards: a *decision* for every operator: what it reads, makes and keeps (`rules`).
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

import spr_or.pruning.compaction.additions
import spr_or.pruning.compaction.movement
import spr_or.pruning.compaction.operators
import spr_or.pruning.compaction.selection  # noqa: F401 - these fill the table of rules
from spr_or.pruning.compaction.errors import CompactionError
from spr_or.pruning.compaction.facts import (
    Fact,
    Facts,
    Keep,
    any_over,
    counted,
    full,
    on_cpu,
    operands,
    projected,
    uniform,
)
from spr_or.pruning.compaction.rules import Decision, covers, everything, rule_of
from spr_or.pruning.compaction.trace import at_line, is_random
from spr_or.pruning.compaction.weighted import WEIGHTED, layer_of, operations

aten = torch.ops.aten
_getitem = operator.getitem


class Obstacle(NamedTuple):
    """An operator that cannot take what is left.

    place: where the user's code calls it, " at file:line: code", empty where torch does not know.
    filled: what is put back in front of it. node: the operator in the graph.
    """

    operator: str
    reason: str
    place: str
    filled: tuple[str, ...]
    node: fx.Node

    def __str__(self) -> str:
        return f"{self.operator}{self.place}: {self.reason}; put back: {', '.join(self.filled)}"


class Plan:
    """The analysis of one graph with its present weights, and what follows from it.

    graph: from `trace`, in evaluation mode. values: the graph's inputs, one for each placeholder.
    needed, required: for each node the elements that are asked of it, and those among them that have
    to be computed. asked: what it asks of its operands. kept: the positions that remain.
    decisions: how each node runs.
    """

    def __init__(
        self, graph: fx.GraphModule, values: Sequence[Any], constants: bool = True
    ) -> None:
        self.graph = graph
        self.facts = facts_of(graph, values)
        self.needed: dict[fx.Node, Tensor] = {}
        self.required: dict[fx.Node, Tensor] = {}
        self.asked: dict[fx.Node, list[Tensor | None]] = {}
        self.kept: dict[fx.Node, Keep] = {}
        self.decisions: dict[fx.Node, Decision] = {}
        self._constants = constants
        self._least: dict[fx.Node, Keep] = {}
        self._backwards()
        self._forwards()

    def alive(self, node: fx.Node) -> bool:
        """Whether anything of the node is computed."""
        return node in self.required

    def least(self, node: fx.Node) -> Keep:
        """The positions of a node's result that have to be computed."""
        if node not in self._least:
            self._least[node] = projected(self.required[node], self.facts[node].variable)
        return self._least[node]

    def needed_along(self, node: fx.Node, dim: int) -> Tensor:
        """The positions of one dimension at which anything is asked for, (n,)."""
        return _along(self.needed.get(node), self.facts[node], dim)

    def required_along(self, node: fx.Node, dim: int) -> Tensor:
        """The positions of one dimension at which anything has to be computed, (n,)."""
        return _along(self.required.get(node), self.facts[node], dim)

    def _backwards(self) -> None:
        for node in reversed(self.graph.graph.nodes):
            if node.op == "output":
                for leaf in node.all_input_nodes:
                    self._ask(leaf, None)
                continue
            if node not in self.needed:
                continue
            fact = self.facts[node]
            if node.op in ("placeholder", "get_attr"):
                if fact.is_tensor:
                    self.required[node] = self.needed[node]
                continue
            if not fact.is_tensor:
                self.required[node] = self.needed[node]
                if not isinstance(fact.value, int | float | bool):
                    for x in operands(node, self.facts):
                        self._ask(x, None)
                self._ask_sizes(node)
                continue
            required = self.needed[node]
            if self._constants and not fact.fixed:
                required = required & ~insertable(fact)
                if not bool(required.any()):
                    required = _smallest_part(fact, self.needed[node])
            self.required[node] = required
            rule = rule_of(node.target)
            if node.target is not _getitem:
                nodes = operands(node, self.facts)
                asked = rule.needed(node, self.facts, required)
                self.asked[node] = asked
                if node.target not in WEIGHTED and any(self.facts[x].fixed for x in nodes):
                    # What could be put back may be computed all the same, beside what has to be:
                    # then from numbers that are right. (Constants are; parameters have to be kept.)
                    whole = rule.needed(node, self.facts, self.needed[node])
                    pairs = zip(nodes, asked, whole, strict=True)
                    asked = [all_ if self.facts[x].fixed else some for x, some, all_ in pairs]
                for x, mask in zip(nodes, asked, strict=True):
                    self._ask(x, mask)
                inputs = [x for x in nodes if not self.facts[x].fixed]
                if inputs and not any(x in self.needed for x in inputs):
                    # A constant has the batch and the positions of something.
                    self._ask(inputs[0], _first_slice(self.facts[inputs[0]]))
            else:
                self._ask(node.args[0], None)
            self._ask_sizes(node)

    def _ask(self, node: Any, mask: Tensor | None) -> None:
        """Note that elements of a node are needed: those of the mask, or all."""
        fact = self.facts[node]
        if not fact.is_tensor:
            self.needed[node] = torch.ones((), dtype=torch.bool)
            return
        if mask is None:
            mask = torch.ones(fact.shape, dtype=torch.bool)
        mask = mask.to(fact.value.device)
        if not bool(any_over(mask, range(mask.dim())).any()):
            return
        before = self.needed.get(node)
        self.needed[node] = mask if before is None else before | mask

    def _ask_sizes(self, node: fx.Node) -> None:
        """Tensors whose sizes the node uses have to be there."""

        def look(argument: Any) -> Any:
            if isinstance(argument, fx.Node) and isinstance(
                self.facts[argument].value, int | float
            ):
                self.needed[argument] = torch.ones((), dtype=torch.bool)
                self.required[argument] = self.needed[argument]
                for source in argument.all_input_nodes:
                    fact = self.facts[source]
                    if fact.is_tensor and source.op != "placeholder":
                        self._ask(source, _first_slice(fact))
                    look(source)
            return argument

        map_aggregate((node.args, node.kwargs), look)

    def _forwards(self) -> None:
        for node in self.graph.graph.nodes:
            fact = self.facts.get(node)
            rank = len(fact.shape) if fact is not None and fact.is_tensor else 0
            self.kept[node] = full(rank)
            if node not in self.required or fact is None:
                continue
            if node.op == "get_attr":
                self.kept[node] = projected(self.needed[node], frozenset())
            elif node.op == "call_function":
                if not fact.is_tensor or node.target is _getitem:
                    decision = everything(self, node)
                else:
                    decision = rule_of(node.target).narrow(self, node)
                if fact.is_tensor and not all(map(covers, decision.keeps, self.least(node))):
                    raise CompactionError(
                        f"what {node.name!r} keeps is less than what is needed of it"
                    )
                self.decisions[node] = decision
                self.kept[node] = decision.keeps

    def obstacles(self) -> list[Obstacle]:
        """Operators in front of which something that was gone has to be put back."""
        found = []
        for node, decision in self.decisions.items():
            filled = [
                part
                for x, keep in zip(operands(node, self.facts), decision.reads, strict=True)
                if not self.facts[x].fixed
                for part in _put_back(x, self.kept[x], keep)
            ]
            if filled:
                reason = decision.reason or "a constant that it reads cannot become a bias"
                found.append(Obstacle(str(node.target), reason, at_line(node), tuple(filled), node))
        return found

    def operations(self) -> int:
        """Multiply-accumulate operations of what is left, in convolutions and linear layers."""
        total = 0
        for node, decision in self.decisions.items():
            if node.target in WEIGHTED:
                layer = layer_of(node, self.facts)
                weight = weight_shape(self, node, decision)
                read = counted(decision.reads[0], self.facts[layer.x].shape)
                made = counted(decision.makes, self.facts[node].shape)
                total += (
                    operations(layer, weight, read, made)
                    * len(self.facts[node].value[:1])
                    // max(1, len(self.facts[node].value))
                )
        return total


def _put_back(x: fx.Node, held: Keep, read: Keep) -> list[str]:
    """What of a tensor is put back for a reader."""
    found = []
    for dim, (have, want) in enumerate(zip(held, read, strict=True)):
        if have is not None and not covers(have, want):
            count = len(have) if want is None else int(want.sum())
            missing = count - int((have.cpu() if want is None else have.cpu() & want.cpu()).sum())
            found.append(f"{missing} of the {count} positions of dimension {dim} of {x.name!r}")
    return found


def weight_shape(plan: Plan, node: fx.Node, decision: Decision) -> tuple[int, ...]:
    """The shape that is left of a layer's weight."""
    layer = layer_of(node, plan.facts)
    if hasattr(decision.emit, "weight_shape"):
        return decision.emit.weight_shape(plan.facts)
    return counted(decision.reads[1], plan.facts[layer.weight].shape)


def _along(mask: Tensor | None, fact: Fact, dim: int) -> Tensor:
    if mask is None:
        return torch.zeros(fact.shape[dim], dtype=torch.bool)
    return any_over(mask, [d for d in range(mask.dim()) if d != dim]).cpu()


def insertable(fact: Fact) -> Tensor:
    """Elements that need not be computed: their slice along some dimension is one known value."""
    found = torch.zeros(fact.shape, dtype=torch.bool, device=fact.value.device)
    for dim, n in enumerate(fact.shape):
        if dim in fact.variable or n == 1:
            continue
        held, _ = uniform(fact, dim)
        found = found | held.view([-1 if d == dim else 1 for d in range(len(fact.shape))])
    return found


def _smallest_part(fact: Fact, needed: Tensor) -> Tensor:
    """Of constants the fewest that have to be there for the rest to be put back along one dimension."""
    best = needed
    for dim, n in enumerate(fact.shape):
        if dim in fact.variable or n == 1:
            continue
        asked = any_over(needed, [d for d in range(len(fact.shape)) if d != dim])
        kept = asked & ~uniform(fact, dim)[0]
        if not bool(kept.any()):
            kept[asked.nonzero()[0]] = True
        part = needed & kept.view([-1 if d == dim else 1 for d in range(len(fact.shape))])
        best = part if int(part.sum()) < int(best.sum()) else best
    return best


def _first_slice(fact: Fact) -> Tensor:
    """One position of the first dimension that may be narrowed, everything of the others."""
    found = torch.ones(fact.shape, dtype=torch.bool, device=fact.value.device)
    for dim, n in enumerate(fact.shape):
        if dim not in fact.variable and n > 1:
            found.narrow(dim, 1, n - 1).fill_(False)
            break
    return found


def facts_of(graph: fx.GraphModule, values: Sequence[Any]) -> Facts:
    """Run the graph and see what of each result is known.

    On the CPU, wherever the network is: what is decided from them is many small masks, and none of
    them meets a tensor of another device.
    """
    facts = Facts()
    inputs = iter(values)
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                value = next(inputs)
                known = None
                if isinstance(value, Tensor):
                    value = value.cpu()
                    known = torch.zeros(value.shape, dtype=torch.bool)
                facts[node] = Fact(value, known, False, node.meta["variable"])
            elif node.op == "get_attr":
                value = _attribute(graph, str(node.target)).cpu()
                known = torch.ones(value.shape, dtype=torch.bool)
                facts[node] = Fact(value, known, True, frozenset())
            elif node.op == "call_function":
                facts[node] = _fact(node, facts)
    return facts


def _fact(node: fx.Node, facts: Facts) -> Fact:
    def concrete(argument: Any) -> Any:
        return facts[argument].value if isinstance(argument, fx.Node) else on_cpu(argument)

    filled: Any = map_aggregate((node.args, node.kwargs), concrete)
    args, kwargs = filled
    value = node.target(*args, **kwargs)  # type: ignore[operator]
    if not isinstance(value, Tensor):
        return Fact(value, None, False, frozenset())
    variable = node.meta["variable"]
    nodes = operands(node, facts)
    fixed = all(facts[x].fixed for x in nodes) and not is_random(node)
    if fixed:
        known = torch.ones(value.shape, dtype=torch.bool, device=value.device)
    elif node.target is _getitem or not all(facts[x].is_tensor for x in nodes):
        known = torch.zeros(value.shape, dtype=torch.bool, device=value.device)
    else:
        known = rule_of(node.target).known(node, facts, value)
    places = _numbers(node, facts)
    if places:
        others = [a + 1 if k in places else a for k, a in enumerate(args)]
        known = known & (value == node.target(*others, **kwargs))  # type: ignore[operator]
        fixed = False
    return Fact(value, known, fixed, variable)


def _numbers(node: fx.Node, facts: Facts) -> set[int]:
    """Positions of arguments that are sizes, or numbers read off tensors, and are computed with.

    (Sizes that only say how large the result is are integers by the operator's schema.)
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.target in (aten.arange.default, aten.arange.start):
        return set()
    return {
        k
        for k, (given, declared) in enumerate(zip(node.args, schema.arguments, strict=False))
        if isinstance(given, fx.Node)
        and isinstance(facts[given].value, int | float)
        and str(declared.type) in ("Tensor", "number", "Optional[Tensor]", "Optional[number]")
    }


def _attribute(graph: fx.GraphModule, name: str) -> Tensor:
    place: Any = graph
    for part in name.split("."):
        place = getattr(place, part)
    return place.detach()

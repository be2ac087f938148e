"""Residual branches as entities, and what groups of entities are called."""

import torch
from torch import fx

from spr_or.pruning.compaction.facts import Facts, argument, operands
from spr_or.pruning.compaction.movement import moves
from spr_or.pruning.compaction.weighted import WEIGHTED, layer_of
from spr_or.pruning.groups import EntityGroup, Member

aten = torch.ops.aten


def branches(graph: fx.GraphModule, facts: Facts, trainable: set[str]) -> list[EntityGroup]:
    """What lies on one side of an addition only, beside the other side: one entity a branch."""
    before: dict[fx.Node, set[fx.Node]] = {}
    groups = []
    for node in graph.graph.nodes:
        before[node] = set()
        for source in node.all_input_nodes:
            before[node] |= {source} | before[source]
        if node.target != aten.add.Tensor:
            continue
        sides = [x for x in operands(node, facts) if not facts[x].fixed]
        if len(sides) != 2 or facts[sides[0]].shape != facts[sides[1]].shape:
            continue
        own = [({x} | before[x]) - ({y} | before[y]) for x, y in (sides, sides[::-1])]
        weights = [[n for n in nodes if n.op == "get_attr"] for nodes in own]
        branch = max(range(2), key=lambda k: len(weights[k]))
        group = _branch(weights[branch], own[branch], facts, trainable, graph)
        if group is not None:
            groups.append(group)
    return named(groups)


def _branch(
    weights: list[fx.Node], branch: set[fx.Node], facts: Facts, trainable: set[str],
    graph: fx.GraphModule,
) -> EntityGroup | None:  # fmt: skip
    """All parameters that only the branch reads, as one entity."""
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    only = [n for n in weights if all(user in branch for user in n.users)]
    only = [n for n in only if str(n.target) in trainable and facts[n].shape]
    readers = {n: min(order[u] for u in n.users) for n in only}
    only.sort(key=lambda n: (readers[n], order[n]))
    if not any(len(facts[n].shape) > 1 for n in only):
        return None
    rows = roles(graph, facts)
    members = tuple(
        Member(str(n.target), rows.get(n, 0),
               torch.arange(facts[n].shape[rows.get(n, 0)]).unsqueeze(0))
        for n in only
    )  # fmt: skip
    first = next(n for n in only if len(facts[n].shape) > 1)
    return EntityGroup(owner(str(first.target)), members, "blocks")


def owner(parameter: str) -> str:
    """The module of a weight; another parameter's own name.

    >>> owner("fc.weight"), owner("pos_embed")
    ('fc', 'pos_embed')
    """
    path, _, key = parameter.rpartition(".")
    return path if key == "weight" and path else parameter


def named(groups: list[EntityGroup]) -> list[EntityGroup]:
    """The groups under names of their own: layers that write several kinds of features get a number."""
    count: dict[str, int] = {}
    named = []
    for group in groups:
        count[group.name] = count.get(group.name, 0) + 1
        number = count[group.name]
        name = group.name if number == 1 else f"{group.name}#{number}"
        named.append(EntityGroup(name, group.members, group.kind))
    return named


def roles(graph: fx.GraphModule, facts: Facts) -> dict[fx.Node, int]:
    """Parameters that are weights of layers, with the dimension that counts their outputs."""
    found: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in WEIGHTED and not isinstance(argument(node, 6, "groups", 1), fx.Node):
            layer = layer_of(node, facts)
            source = layer.weight
            dim = layer.row_dim
            if layer.transposed and layer.groups > 1:
                dim = 0
            while source.op == "call_function" and moves(source, facts):
                source, dim = operands(source, facts)[0], 0
            if source.op == "get_attr":
                found.setdefault(source, dim)
        elif node.target == aten.embedding.default:
            source = operands(node, facts)[0]
            if source.op == "get_attr":
                found[source] = 1
    return found

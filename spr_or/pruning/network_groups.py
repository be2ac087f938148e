"""Entities that cross layers, found on the network's graph: channels, heads, neurons, blocks.

Every row of a layer's weight, every number of a bias, a scale or a position embedding is an *atom*.
Tensors are labelled with the atoms that write their elements, and the labels go through the graph
as the numbers do: a view moves them, an addition joins those that meet, a norm joins its scale and
shift, a depthwise convolution its filter. What a layer reads as one feature is one class of atoms:
it can leave the network only together, so it is one entity E_i of the paper.

Three labels are no atoms: what the inputs write is alive whatever is masked (`ALIVE`), zeros
and constants do not matter (`NEUTRAL`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spr_or.pruning.branches import branches, named, owner, roles
from spr_or.pruning.compaction.facts import Facts, argument, operands
from spr_or.pruning.compaction.inputs import Example, like_model
from spr_or.pruning.compaction.movement import moved_by, moves, sources
from spr_or.pruning.compaction.operators import letters_of
from spr_or.pruning.compaction.plan import facts_of
from spr_or.pruning.compaction.prepare import prepared
from spr_or.pruning.compaction.rules import rule_of
from spr_or.pruning.compaction.trace import trace
from spr_or.pruning.compaction.weighted import WEIGHTED, layer_of
from spr_or.pruning.groups import EntityGroup, Member
from spr_or.pruning.labels import (
    ALIVE,
    NEUTRAL,
    along,
    compressed,
    distinct,
    filled,
    first_along,
    joined,
    lettered,
    small,
    to_result,
    together,
)
from spr_or.pruning.unwrap import unwrap

aten = torch.ops.aten

KINDS = ("channels", "heads", "neurons", "blocks")

_CHANNEL_NORMS = (
    aten.batch_norm.default, aten.group_norm.default, aten.instance_norm.default,
)  # fmt: skip
_FEATURE_NORMS = (aten.layer_norm.default, aten.rms_norm.default)
_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default, aten.einsum.default)
_GATES = (aten.mul.Tensor, aten.multiply.Tensor, aten.div.Tensor)


class NoSuchEntities(ValueError):
    """The network has no entities of the kind that was asked for."""


class _Slice(NamedTuple):
    """One slice of a parameter."""

    parameter: str
    dim: int
    number: int


def network_groups(
    model: nn.Module, example: Example, kind: str = "channels", columns: bool = False
) -> tuple[EntityGroup, ...]:
    """The groups of entities of a network.

    Parameters
    ----------
    example : inputs of the model, as `spr_or.pruning.compaction.api.compact` takes them
    kind : one of

        - ``"channels"``: everything that dies with one feature: the filters or neurons of all layers
          that write it, their biases, the norms' scales and shifts, depthwise filters, position
          embeddings. In attention one position of the width is a feature in all heads together, and
          beside a convolution in groups one position of all groups;
        - ``"heads"``: the rows of queries, keys and values of one attention head;
        - ``"neurons"``: hidden units between two linear layers, gated pairs together;
        - ``"blocks"``: all that a residual branch holds, one entity a branch.
    columns : also the weights that read a feature, in layers whose rows are in no entity

    Features of the network's outputs are in no group. Raises `NoSuchEntities` where there is no group
    of that kind, and CompactionError for a network that cannot be traced (both are ``ValueError``).

    >>> from spr_or.models.resnet_cifar import resnet20
    >>> groups = network_groups(resnet20(), torch.zeros(2, 3, 32, 32))
    >>> groups[0].name, groups[0].count, len(groups[0].members)
    ('conv1', 16, 30)
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be among {', '.join(KINDS)}, not {kind!r}")
    graph, facts, trainable = _traced(model, example)
    if kind == "blocks":
        groups = branches(graph, facts, trainable)
    else:
        walk = _Walk(graph, facts, trainable, heads=kind == "heads")
        groups = walk.groups(kind, columns)
    if not groups:
        raise NoSuchEntities(f"{type(unwrap(model)).__name__} has no {kind}")
    return tuple(groups)


class Features(NamedTuple):
    """Which slices of a network's parameters belong to which feature.

    Both map (parameter, dimension) to the numbers of features, int64 (n,), one for each slice along that
    dimension; equal numbers are one feature. The dimension of a vector is -1.

    Attributes
    ----------
    written : slices that make the feature: rows of layers, biases, scales, shifts
    read : columns of layers; 0 for what the inputs write, -1 for constants
    """

    written: dict[tuple[str, int], Tensor]
    read: dict[tuple[str, int], Tensor]


def features(model: nn.Module, example: Example) -> Features:
    """The features of a network; ``example`` and errors as `network_groups` has them.

    Columns of convolutions in groups are left out.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> found = features(net, torch.zeros(2, 2))
    >>> torch.equal(found.written["0.weight", 0], found.read["2.weight", 1])
    True
    """
    graph, facts, trainable = _traced(model, example)
    return _Walk(graph, facts, trainable, heads=False).features()


def _traced(model: nn.Module, example: Example) -> tuple[fx.GraphModule, Facts, set[str]]:
    """The graph of a network, what is known of its nodes, and the names of its parameters."""
    inner = unwrap(model)
    with torch.no_grad():
        copied = prepared(inner)
        inputs = like_model(copied, example)
        graph = trace(copied, example)
        facts = facts_of(graph, pytree.tree_leaves((inputs.args, inputs.kwargs)))
    return graph, facts, {name for name, _ in inner.named_parameters(remove_duplicate=False)}


class _Atoms:
    """Numbered slices of parameters, and which of them belong together (union-find)."""

    def __init__(self) -> None:
        self.slices: list[_Slice] = [_Slice("", 0, 0)]  # 0 is ALIVE
        self.parent: list[int] = [0]
        self._first: dict[tuple[str, int], int] = {}

    def of(self, parameter: str, dim: int, count: int) -> Tensor:
        """The atoms of a parameter's slices along a dimension, (count,)."""
        key = parameter, dim
        if key not in self._first:
            self._first[key] = len(self.slices)
            self.slices += [_Slice(parameter, dim, i) for i in range(count)]
            self.parent += range(len(self.parent), len(self.slices))
        first = self._first[key]
        return torch.arange(first, first + count)

    def find(self, atom: int) -> int:
        """The representative of an atom's class."""
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def join(self, atoms: Iterable[int]) -> None:
        """Make one class of all atoms given."""
        roots = sorted({self.find(a) for a in atoms if a > 0})
        for root in roots[1:]:
            self.parent[root] = roots[0]


class _Walk:
    """Labels of every tensor of a graph, node by node."""

    def __init__(
        self, graph: fx.GraphModule, facts: Facts, trainable: set[str], heads: bool
    ) -> None:
        self.facts, self.trainable, self.heads = facts, trainable, heads
        self.atoms = _Atoms()
        self.labels: dict[fx.Node, Tensor] = {}
        self.outputs: set[int] = set()
        self.streams: set[int] = set()
        self.head_atoms: set[int] = set()
        self.attention: set[int] = set()
        self.readers: list[tuple[Tensor, str, int]] = []  # labels of columns, parameter, dimension
        self.norm_atoms: set[int] = set()
        self._rows = roles(graph, facts)
        for node in graph.graph.nodes:
            if node.op == "output":
                for leaf in node.all_input_nodes:
                    if leaf in self.labels:
                        self.outputs |= set(distinct(self.labels[leaf]))
            elif facts[node].is_tensor:
                self.labels[node] = compressed(self._label(node))

    def _label(self, node: fx.Node) -> Tensor:
        fact = self.facts[node]
        if node.op == "get_attr":
            return self._parameter(node)
        if node.op == "placeholder":
            return filled(fact.shape, ALIVE)
        if node.target in WEIGHTED and not isinstance(argument(node, 6, "groups", 1), fx.Node):
            return self._layer(node)
        if node.target == aten.embedding.default:
            return self._embedding(node)
        if node.target in (*_CHANNEL_NORMS, *_FEATURE_NORMS):
            return self._norm(node)
        if node.target == aten.scaled_dot_product_attention.default:
            return self._attention(node)
        if node.target in _PRODUCTS and letters_of(node, self.facts) is not None:
            return self._product(node)
        rule = rule_of(node.target)
        if moves(node, self.facts):
            return self._moved(node)
        if rule.dims is not None and all(
            self.facts[x].is_tensor for x in operands(node, self.facts)
        ):
            return self._passed(node, rule.dims(node, self.facts))
        return filled(fact.shape, NEUTRAL if fact.fixed else ALIVE)

    def _parameter(self, node: fx.Node) -> Tensor:
        """Slices along the dimension that layers use; single numbers where there is no such."""
        fact, name = self.facts[node], str(node.target)
        if name not in self.trainable or not fact.shape:
            return filled(fact.shape, NEUTRAL)
        if node in self._rows:
            dim = self._rows[node]
            rows = self.atoms.of(name, dim, fact.shape[dim])
            return rows.view([-1 if d == dim else 1 for d in range(len(fact.shape))]).expand(
                fact.shape
            )
        return self.atoms.of(name, -1, math.prod(fact.shape)).view(fact.shape)

    def _layer(self, node: fx.Node) -> Tensor:
        layer, shape = layer_of(node, self.facts), self.facts[node].shape
        self._one_feature(self.labels[layer.x], layer.axis)
        weight = self.labels[layer.weight]
        self._note_columns(layer.weight, 1 - layer.row_dim, self.labels[layer.x], layer.axis)
        rows = first_along(weight, layer.row_dim)
        depthwise = layer.groups > 1 and layer.groups == self.facts[layer.x].shape[layer.axis]
        if layer.transposed and layer.groups > 1:
            if not (depthwise and len(rows) == 1):
                return filled(shape, ALIVE)
            rows = first_along(weight, 0)
        if layer.bias is not None:
            self._join_pairs(rows, self.labels[layer.bias])
        if layer.groups > 1 and not depthwise:
            self._even_groups(rows, layer.groups)
            self._even_groups(first_along(self.labels[layer.x], layer.axis), layer.groups)
        if depthwise:
            read = first_along(self.labels[layer.x], layer.axis)
            self._join_pairs(rows, read.repeat_interleave(len(rows) // len(read)))
        return along(rows, layer.axis, shape)

    def _even_groups(self, features: Tensor, groups: int) -> None:
        """Groups stay alike: position j of all of them is one feature."""
        for position in features.view(groups, -1).T.tolist():
            self.atoms.join(position)

    def _note_columns(self, weight: fx.Node, dim: int, labels: Tensor, axis: int) -> None:
        if weight.op == "get_attr" and str(weight.target) in self.trainable:
            self.readers.append((first_along(labels, axis), str(weight.target), dim))

    def _embedding(self, node: fx.Node) -> Tensor:
        weight = self.labels[operands(node, self.facts)[0]]
        shape = self.facts[node].shape
        return along(first_along(weight, 1), len(shape) - 1, shape)

    def _norm(self, node: fx.Node) -> Tensor:
        """Scale and shift die with the feature that they scale."""
        x, *vectors = operands(node, self.facts)
        labels, shape = self.labels[x], self.facts[node].shape
        if node.target in _FEATURE_NORMS and len(node.args[1]) > 1:  # type: ignore[arg-type]
            count = len(node.args[1])  # type: ignore[arg-type]
            last = labels
            for vector in vectors:
                own = self.labels[vector]
                if own.shape == last.shape[-count:]:
                    self._meet([last, own.expand(shape)])
            return last
        axis = 1 if node.target in _CHANNEL_NORMS else len(shape) - 1
        self._one_feature(labels, axis)
        features = first_along(labels, axis)
        for vector in vectors:
            own = self.labels[vector]
            if own.shape == features.shape and bool((own > 0).any()):
                self.norm_atoms |= set(own.tolist())
                self._join_pairs(features, own)
        return labels

    def _moved(self, node: fx.Node) -> Tensor:
        source, _ = sources(node, self.facts)
        flat = torch.cat([self.labels[x].reshape(-1) for x in moved_by(node, self.facts)])
        return torch.where(source >= 0, flat[source.clamp(min=0)], NEUTRAL)

    def _passed(self, node: fx.Node, pairs: list[dict[int, int]]) -> Tensor:
        """Operands side by side; what varies along a dimension that is mixed is lost."""
        shape = self.facts[node].shape
        nodes = operands(node, self.facts)
        sides = [
            to_result(self.labels[x], p, shape, NEUTRAL if self.facts[x].fixed else ALIVE)
            for x, p in zip(nodes, pairs, strict=True)
        ]
        if len(sides) == 1:
            return sides[0]
        if not sides:
            return filled(shape, NEUTRAL)
        moving = [not self.facts[x].fixed for x in nodes]
        gate = node.target in _GATES
        if sum(moving) > 1 and not gate:
            self.streams |= set(distinct(torch.cat([small(s).reshape(-1) for s in sides])))
        self._meet(sides)
        return joined(sides, gate)

    def _meet(self, sides: list[Tensor]) -> None:
        """Join labels that stand at the same element."""
        rows = torch.stack([s.reshape(-1) for s in together(sides)], dim=1)
        for row in torch.unique(rows, dim=0).tolist():
            self.atoms.join(row)

    def _join_pairs(self, one: Tensor, other: Tensor) -> None:
        if one.shape == other.shape:
            self._meet([one, other])

    def _one_feature(self, labels: Tensor, axis: int) -> None:
        """What a layer reads as one feature can leave only as one."""
        least = small(labels)
        if least.shape[axis] == labels.shape[axis]:
            for row in least.movedim(axis, 0).reshape(labels.shape[axis], -1):
                self.atoms.join(set(row.tolist()))

    # Attention

    def _attention(self, node: fx.Node) -> Tensor:
        q, k, v = (self.labels[x] for x in operands(node, self.facts)[:3])
        shape = self.facts[node].shape
        if self.heads:
            self._join_heads(q, k, v)
            return v.select(-2, 0).unsqueeze(-2).expand(
                *v.shape[:-2], shape[-2], shape[-1]
            ) if v.shape[:-2] == tuple(shape[:-2]) else filled(shape, ALIVE)  # fmt: skip
        self._one_width([(q, -1), (k, -1)])
        self._one_width([(v, -1)])
        width = first_along(v, v.dim() - 1)
        return along(width, len(shape) - 1, shape)

    def _join_heads(self, *sides: Tensor) -> None:
        """All rows of one head of queries, keys and values; a key may serve several heads."""
        count = max(s.shape[-3] if s.dim() > 2 else 1 for s in sides)
        for head in range(count):
            found: set[int] = set()
            for s in sides:
                own = s.shape[-3]
                found |= set(distinct(s.select(-3, head * own // count)))
            self.atoms.join(found)
            self.head_atoms |= found

    def _one_width(self, sides: list[tuple[Tensor, int]]) -> None:
        """One position of the width of all heads."""
        n = sides[0][0].shape[sides[0][1]]
        for position in range(n):
            found: set[int] = set()
            for labels, dim in sides:
                found |= set(distinct(labels.select(dim, position)))
            self.atoms.join(found)
            self.attention |= found

    def _product(self, node: fx.Node) -> Tensor:
        """Summed positions die together; the others keep the label of the operand they come from."""
        found = letters_of(node, self.facts)
        assert found is not None
        terms, right = found
        shape = self.facts[node].shape
        a, b = operands(node, self.facts)[-2:]
        sides = [self.labels[a], self.labels[b]]
        if self.heads and min(s.dim() for s in sides) > 2:
            self._join_batches(sides, terms, right)
        else:
            for letter in set(terms[0]) & set(terms[1]) - set(right):
                places = [(s, t.index(letter)) for s, t in zip(sides, terms, strict=True)]
                if all(not self.facts[x].fixed for x in (a, b)):
                    self._one_width(places)
        outcomes = [lettered(s, t, right, shape) for s, t in zip(sides, terms, strict=True)]
        useful = [o for o in outcomes if bool((small(o) > 0).any())]
        return useful[0] if len(useful) == 1 else filled(shape, ALIVE)

    def _join_batches(self, sides: list[Tensor], terms: list[str], right: str) -> None:
        """The letters in front of a product of matrices are batch and heads."""
        shared = [c for c in right if all(c in t for t in terms)]
        if not shared:
            return
        letter = shared[-1]
        places = [t.index(letter) for t in terms]
        counts = [s.shape[d] for s, d in zip(sides, places, strict=True)]
        if counts[0] != counts[1]:
            return
        for head in range(counts[0]):
            found: set[int] = set()
            for s, d in zip(sides, places, strict=True):
                found |= {label for label in distinct(s.select(d, head)) if label > 0}
            self.atoms.join(found)
            self.head_atoms |= found

    # From classes to groups

    def features(self) -> Features:
        """The class of every slice that writes a feature, and of every column that reads one."""
        find = self.atoms.find
        written: dict[tuple[str, int], list[int]] = {}
        for atom, piece in enumerate(self.atoms.slices):
            if atom:
                written.setdefault((piece.parameter, piece.dim), []).append(find(atom))
        sizes = {str(n.target): f.shape for n, f in self.facts.items() if n.op == "get_attr"}
        read = {
            (name, dim): torch.tensor([find(a) if a > 0 else a for a in labels.tolist()])
            for labels, name, dim in self.readers
            if len(labels) == sizes[name][dim]
        }
        return Features({key: torch.tensor(found) for key, found in written.items()}, read)

    def groups(self, kind: str, columns: bool) -> list[EntityGroup]:
        """The classes of that kind as groups of entities with equal members."""
        dead = {self.atoms.find(a) for a in self.outputs if a > 0}
        classes: dict[int, list[_Slice]] = {}
        for atom, piece in enumerate(self.atoms.slices):
            if atom and self.atoms.find(atom) not in dead:
                classes.setdefault(self.atoms.find(atom), []).append(piece)
        shapes = {n.target: f.shape for n, f in self.facts.items() if n.op == "get_attr"}
        rows = {
            (str(n.target), d) for n, d in self._rows.items() if str(n.target) in self.trainable
        }
        streams = {self.atoms.find(a) for a in self.streams if a > 0}
        heads = {self.atoms.find(a) for a in self.head_atoms if a > 0}
        attention = {self.atoms.find(a) for a in self.attention if a > 0}
        found: dict[tuple[Any, ...], list[dict[tuple[str, int], list[int]]]] = {}
        for root, pieces in classes.items():
            members = _members(pieces, shapes)
            written = [key for key in members if key in rows]
            if not written:
                continue  # scales and shifts of something that stays alive
            if kind == "heads" and root not in heads:
                continue
            linear = all(len(shapes[name]) == 2 for name, _ in written)
            if kind == "neurons" and (root in streams or root in attention or not linear):
                continue
            key = tuple(sorted((name, dim, len(index)) for (name, dim), index in members.items()))
            found.setdefault(key, []).append(members)
        made = [_group(members, kind, rows) for members in found.values()]
        if columns:
            made = self._with_columns(made)
        return named(made)

    def _with_columns(self, groups: list[EntityGroup]) -> list[EntityGroup]:
        """The groups with the columns that read them, in layers whose rows are in no group."""
        taken = {m.parameter for g in groups for m in g.members}
        entity_of: dict[int, tuple[int, int]] = {}
        position = {(s.parameter, s.dim, s.number): a for a, s in enumerate(self.atoms.slices)}
        for g, group in enumerate(groups):
            first = group.members[0]
            for i, index in enumerate(first.index.tolist()):
                atom = position.get((first.parameter, first.dim, index[0]))
                if atom is not None:
                    entity_of[self.atoms.find(atom)] = g, i
        extra: dict[tuple[int, str, int], dict[int, list[int]]] = {}
        for labels, name, dim in self.readers:
            if name in taken:
                continue
            for column, label in enumerate(labels.tolist()):
                place = entity_of.get(self.atoms.find(label)) if label > 0 else None
                if place is not None:
                    extra.setdefault((place[0], name, dim), {}).setdefault(place[1], []).append(
                        column
                    )
        for (g, name, dim), by_entity in extra.items():
            group = groups[g]
            if len(by_entity) == group.count and len({len(c) for c in by_entity.values()}) == 1:
                index = torch.tensor([by_entity[i] for i in range(group.count)])
                groups[g] = EntityGroup(
                    group.name, (*group.members, Member(name, dim, index)), group.kind
                )
        return groups


def _members(
    pieces: list[_Slice], shapes: dict[Any, tuple[int, ...]]
) -> dict[tuple[str, int], list[int]]:
    """(parameter, dimension) to the slices of a class; single numbers become slices where they fill some."""
    found: dict[tuple[str, int], list[int]] = {}
    single: dict[str, list[int]] = {}
    for piece in pieces:
        if piece.dim < 0:
            single.setdefault(piece.parameter, []).append(piece.number)
        else:
            found.setdefault((piece.parameter, piece.dim), []).append(piece.number)
    for name, numbers in single.items():
        shape = shapes[name]
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[torch.tensor(numbers)] = True
        mask = mask.view(shape)
        for dim in reversed(range(len(shape))):
            others = [d for d in range(len(shape)) if d != dim]
            whole = mask.all(dim=others[0]) if len(others) == 1 else mask
            if len(others) > 1:
                whole = mask.movedim(dim, 0).reshape(shape[dim], -1).all(1)
            if int(whole.sum()) * (math.prod(shape) // shape[dim]) == len(numbers):
                found[name, dim] = whole.nonzero().flatten().tolist()
                break
    return {key: sorted(index) for key, index in found.items()}


def _group(
    entities: list[dict[tuple[str, int], list[int]]], kind: str, rows: set[tuple[str, int]]
) -> EntityGroup:
    """One group of entities with equal members, in the order of their first rows."""
    keys = sorted(entities[0], key=lambda key: key not in rows)
    first = keys[0]
    entities = sorted(entities, key=lambda members: members[first])
    members = tuple(
        Member(name, dim, torch.tensor([entity[name, dim] for entity in entities]))
        for name, dim in keys
    )
    return EntityGroup(owner(first[0]), members, kind)

r"""The tree of a proof, and the walk that adds up what its records prove.

A record states a point (and moved curvature) whose bound holds for its node (`bounds`); the entities that
this bound fixes safely; and either the entity branched on (two children, y = 0 and y = 1), or one child
that continues with those fixings, or nothing: a leaf.  The walk follows the fixings from the root, sees
that both sides of every branching are there, and takes the least bound over all leaves and over the far
sides of all fixings.  A node inherits the bound of the nodes above it, and a record that proves nothing
leaves it at that: it may not fix anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spr_or.proof.rounding import UNIT, Array

CONTINUES = -1  # the value of a record that is no side of a branching
_SLOTS, _COLUMNS = 8, 64  # of a cluster, at most: a check must not be made to enumerate for ever
_LARGEST_WEIGHT = 1e100


@dataclass(eq=False)
class Record:
    """One node; arrays of int64 and float64, entities numbered as in the problem.

    parent, value : the number of the parent (-1: the root), and the side of its branching
    entities (n,), W (n, k, q) : weights of some entities, zero for the others, feasible or not
    d : moved curvature, None, a diagonal (n, k), blocks (n, k, k), or blocks of clusters (m, s k, s k)
    zeros, ones : entities fixed by this record's bound; branch : the entity branched on, or -1
    clusters : (m, s) entities or -1, or None; entities that the record does not name count for nothing
    """

    parent: int
    value: int
    entities: Array
    W: Array
    d: Array | None
    zeros: Array
    ones: Array
    branch: int = -1
    clusters: Array | None = None


@dataclass(eq=False)
class Proof:
    """The records, parents before children; record 0 is the root.  A search adds to it as it goes on."""

    records: list[Record] = field(default_factory=list)

    def add(
        self,
        parent: int,
        value: int,
        entities: Any,
        W: Any,
        d: Any | None,
        clusters: Any | None = None,
    ) -> int:
        """Append a record (arrays or tensors, copied) and return its number.

        Without d, entities at zero are left out.
        """
        entities, W = _array(entities, np.int64), _array(W, np.float64)
        if d is None:
            used = (W != 0).any(axis=(1, 2))
            entities, W = entities[used], W[used]
        nothing = np.zeros(0, dtype=np.int64)
        moved = None if d is None else _array(d, np.float64)
        members = None if clusters is None else _array(clusters, np.int64)
        self.records.append(
            Record(parent, value, entities, W, moved, nothing, nothing, -1, members)
        )
        return len(self.records) - 1

    def fix(self, record: int, zeros: Any, ones: Any) -> None:
        """Add entities that the bound of ``record`` fixes."""
        at = self.records[record]
        at.zeros = np.concatenate([at.zeros, _array(zeros, np.int64)])
        at.ones = np.concatenate([at.ones, _array(ones, np.int64)])

    def branch(self, record: int, entity: int) -> None:
        """Branch on an entity; both children are added next."""
        self.records[record].branch = entity

    def repair(self) -> None:
        """Take back what a search broken off in mid-step has left half done: a branching of one side."""
        last = self.records[-1] if self.records else None
        if last is not None and last.value >= 0:
            sides = sum(r.parent == last.parent for r in self.records)
            if sides < 2:
                self.records.pop()
        parents = {record.parent for record in self.records}
        for number, record in enumerate(self.records):
            if record.branch >= 0 and number not in parents:
                record.branch = -1


def _array(values: Any, dtype: type) -> NDArray:
    """A copy of an array, or of a tensor wherever it is."""
    plain = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    return np.array(plain, dtype=dtype)


class State(NamedTuple):
    """At a record: entities still alive (not zero), those at one, and the best bound above it."""

    alive: NDArray[np.bool_]
    one: NDArray[np.bool_]
    inherited: Any


Evaluate = Callable[[int, State], "tuple[Any, Any] | str"]


class Walked(NamedTuple):
    """The bound that a tree proves, what is wrong with the tree (the bound is -inf then), and which
    records prove nothing themselves, with the reason."""

    bound: Any
    faults: list[str]
    idle: dict[int, str]


class Rules(NamedTuple):
    """What every solution obeys: the indicators in ``must`` (N,) bool are 1; at most ``most`` of the first
    ``priced`` entities are used (None: any number), and i only with p for each pair (i, p) in ``needs``; the
    supports in ``forbidden`` (F, priced) bool do not count."""

    must: NDArray[np.bool_]
    priced: int
    most: int | None
    needs: NDArray
    forbidden: NDArray

    def close(
        self, alive: NDArray[np.bool_], one: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], bool]:
        """What follows for the indicators where those outside ``alive`` are 0 and those in ``one`` are 1;
        and whether any solution is left."""
        alive, one = alive.copy(), one | self.must
        for _ in range(len(self.needs) + 1):
            before = one.sum() - alive.sum()
            one[self.needs[one[self.needs[:, 0]], 1]] = True
            alive[self.needs[~alive[self.needs[:, 1]], 0]] = False
            if one.sum() - alive.sum() == before:
                break
        possible = bool((alive | ~one).all())
        if self.most is not None:
            used = int(one[: self.priced].sum())
            possible = possible and used <= self.most
            if used == self.most:
                alive[: self.priced] &= one[: self.priced]
        if (alive == one).all():  # a single support is left
            possible = possible and not (self.forbidden == one[: self.priced]).all(axis=1).any()
        return alive, one, possible


def walk(
    records: list[Record], shape: tuple[int, int, int], evaluate: Evaluate, rules: Rules
) -> Walked:
    """The least bound of a tree over N entities of up to k columns and q outputs, (N, k, q) = ``shape``.

    The records have passed `structure`.  ``evaluate(number, state)`` gives the bound of a record and the
    score of each entity, as floats (`bounds`) or fractions (`exact`), or says why the record has none.
    """
    idle: dict[int, str] = {}
    children = _children(records)
    states: dict[int, State] = {}
    least: Any = math.inf
    for number, record in enumerate(records):
        if record.parent < 0:
            nothing = np.zeros(shape[0], dtype=bool)
            state = State(~nothing, nothing, -math.inf)
        else:
            state = _descend(states[record.parent], records[record.parent], record.value)
        alive, one, possible = rules.close(state.alive, state.one)
        if not possible:  # no solution comes here, or further down
            if children[number]:
                states[number] = state._replace(inherited=math.inf)
            if record.parent >= 0 and number == children[record.parent][-1]:
                del states[record.parent]
            continue
        state = State(alive, one, state.inherited)
        wrong = _inadmissible(record, state)
        if wrong:
            return Walked(-math.inf, [f"record {number}: {wrong}"], {})
        far = [(i, -1) for i in record.zeros.tolist()] + [(i, 1) for i in record.ones.tolist()]
        found = evaluate(number, state)
        if not isinstance(found, str) and not _finite(found[0], *(found[1][i] for i, _ in far)):
            found = "its bound is not finite"
        if isinstance(found, str):
            idle[number] = found
            below = state.inherited
            least = min(least, below) if far else least
        else:
            bound, score = found
            below = max(bound, state.inherited)
            for i, sign in far:
                least = min(least, max(below, _forced(bound, sign * score[i])))
        if children[number]:
            states[number] = State(*_fixed(state, record), below)
        else:
            least = min(least, below)
        if record.parent >= 0 and number == children[record.parent][-1]:
            del states[record.parent]
    return Walked(least, [], idle)


def structure(records: list[Record], shape: tuple[int, int, int]) -> Iterator[str]:
    """What keeps the records from being a tree whose leaves cover the root, of arrays that fit."""
    if not records:
        yield "the proof has no records"
    for number, record in enumerate(records):
        wrong = _misshapen(record, shape)
        if wrong:
            yield f"record {number}: {wrong}"
    children = _children(records)
    for number, record in enumerate(records):
        if (number == 0) != (record.parent < 0) or record.parent >= number:
            yield f"record {number}: its parent {record.parent} does not come before it"
        sides = sorted(records[child].value for child in children[number])
        if record.branch >= 0 and sides != [0, 1]:
            yield f"record {number}: branches on entity {record.branch}, but has the sides {sides}"
        if record.branch < 0 and sides not in ([], [CONTINUES]):
            yield f"record {number}: has children {sides} without a branching"


def _children(records: list[Record]) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in records]
    for number, record in enumerate(records):
        if 0 <= record.parent < number:
            children[record.parent].append(number)
    return children


def _forced(bound: Any, less: Any) -> Any:
    """The bound of the far side of a fixing, where an entity that gained max(0, s) gains s or nothing."""
    far = bound + max(0, less)
    return far - 4 * UNIT * (abs(bound) + abs(less)) if isinstance(far, float) else far


def _finite(*values: Any) -> bool:
    return all(-math.inf < value < math.inf for value in values)


def _fixed(state: State, record: Record) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    alive, one = state.alive.copy(), state.one.copy()
    alive[record.zeros] = False
    one[record.ones] = True
    return alive, one


def _descend(state: State, parent: Record, value: int) -> State:
    """The state of a child; what the parent itself fixed is in ``state`` already."""
    alive, one = state.alive.copy(), state.one.copy()
    if value == 0:
        alive[parent.branch] = False
    elif value == 1:
        one[parent.branch] = True
    return State(alive, one, state.inherited)


def _misshapen(record: Record, shape: tuple[int, int, int]) -> str:
    """What is wrong with the sizes and numbers of a record; empty where nothing is."""
    N, k, q = shape
    n = len(record.entities)
    named = [record.entities, record.zeros, record.ones]
    if any(len(x) and not (x.min() >= 0 and x.max() < N) for x in named):
        return f"names an entity that is not one of 0 to {N - 1}"
    if not -1 <= record.branch < N:
        return f"branches on {record.branch}, which is not one of 0 to {N - 1}"
    if record.W.shape != (n, k, q):
        return f"has weights of shape {record.W.shape}, not {(n, k, q)}"
    if not (np.abs(record.W) <= _LARGEST_WEIGHT).all():
        return f"has weights that are not finite, or beyond {_LARGEST_WEIGHT:g}"
    if record.d is None:
        return "" if record.clusters is None else "has clusters without curvature"
    shapes: list[tuple[int, ...]] = [(n, k), (n, k, k)] if q == 1 else [(n, k)]
    if record.clusters is not None:
        c = record.clusters
        if c.ndim != 2 or (c.size and not (c.min() >= -1 and c.max() < N)):
            return "has clusters that are no lists of entities"
        if len(c) > n or c.shape[1] > _SLOTS or c.shape[1] * k > _COLUMNS:
            return (
                f"has more clusters than entities, or some of more than {_SLOTS} entities or "
                f"{_COLUMNS} columns"
            )
        shapes = [(len(c), c.shape[1] * k, c.shape[1] * k)] if q == 1 and n else []
    if record.d.shape not in shapes:
        return f"moves a curvature of shape {record.d.shape}"
    return _not_positive(record.d)


def _not_positive(d: Array) -> str:
    """What is wrong with moved curvature that must be symmetric with a positive diagonal."""
    if not np.isfinite(d).all():
        return "moves a curvature that is not finite"
    if d.ndim == 3 and not (d == d.swapaxes(1, 2)).all():
        return "moves a curvature that is not symmetric"
    diagonal = d if d.ndim == 2 else np.diagonal(d, axis1=1, axis2=2)
    return "" if (diagonal > 0).all() else "moves a curvature that is not positive"


def _inadmissible(record: Record, state: State) -> str:
    """What is wrong with the entities a record names; empty where nothing is."""
    free = state.alive & ~state.one
    fixed = np.concatenate([record.zeros, record.ones])
    if not free[fixed].all():
        return "fixes an entity that is not free"
    if len(np.unique(fixed)) != len(fixed):
        return "fixes an entity twice"
    alive, one = _fixed(state, record)
    if record.branch >= 0 and not (alive & ~one)[record.branch]:
        return f"branches on entity {record.branch}, which is not free"
    if len(np.unique(record.entities)) != len(record.entities):
        return "names an entity twice"
    if record.d is not None:
        named = np.zeros(len(state.alive), dtype=bool)
        named[record.entities] = True
        if not (named | ~state.alive).all():
            return "moves curvature without naming every entity that is left"
    if record.clusters is not None:
        members = record.clusters[record.clusters >= 0]
        once = len(np.unique(members)) == len(members)
        if not once or not np.isin(record.entities, members).all():
            return "has clusters that are no partition of its entities"
    return ""

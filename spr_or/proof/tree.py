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
    """At a record: entities still alive (not zero), and those at one, (N,)."""

    alive: NDArray[np.bool_]
    one: NDArray[np.bool_]


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


def silent(done: int, of: int) -> None:
    """A listener that shows nothing."""


def settling(records: list[Record]) -> list[int]:
    """The records whose bounds settle what a tree proves: its leaves, and those that fix entities."""
    parents = {record.parent for record in records}
    return [
        number
        for number, record in enumerate(records)
        if number not in parents or len(record.zeros) or len(record.ones)
    ]


def walk(
    records: list[Record],
    shape: tuple[int, int, int],
    evaluate: Evaluate,
    rules: Rules,
    tell: Callable[[int, int], None] = silent,
) -> Walked:
    """The least bound of a tree over N entities of up to k columns and q outputs, (N, k, q) = ``shape``.

    The records have passed `structure`.  ``evaluate(number, state)`` gives the bound of a record and the
    score of each entity, as floats (`bounds`) or fractions (`exact`), or says why the record has none.
    ``tell`` hears how many records are done.

    Bounds above a leaf matter only where the leaf proves less than the rest of the tree: they are evaluated
    where that is so.
    """
    proven, settles = _Proven(records, evaluate), set(settling(records))
    nothing = np.zeros(shape[0], dtype=bool)
    children, states = _children(records), {-1: State(~nothing, nothing)}
    ends: list[tuple[Any, int]] = []  # what leaves and the far sides of fixings prove themselves
    for number, record in enumerate(records):
        tell(number + 1, len(records))
        above = states.get(record.parent)
        if record.parent >= 0 and number == children[record.parent][-1]:
            states.pop(record.parent, None)
        state = None if above is None else _descend(above, records, number, rules)
        if state is None:  # no solution comes here, or further down
            continue
        wrong = _inadmissible(record, state)
        if wrong:
            return Walked(-math.inf, [f"record {number}: {wrong}"], {})
        if number in settles:
            bound, far = proven(number, state)
            if not children[number]:
                ends.append((bound, number))
            if far is not None:
                ends.append((max(bound, far), number))
        if children[number]:
            states[number] = _fixed(state, record)
    least: Any = math.inf
    for own, number in sorted(ends, key=lambda end: end[0]):
        if own >= least:
            break
        least = min(least, max(own, proven.above(number, State(~nothing, nothing), rules)))
    return Walked(least, [], proven.idle)


class _Proven:
    """What the records of a tree prove themselves, each evaluated once; ``idle`` says which prove nothing."""

    def __init__(self, records: list[Record], evaluate: Evaluate) -> None:
        self.records, self.evaluate = records, evaluate
        self.bounds: dict[int, Any] = {}
        self.idle: dict[int, str] = {}

    def __call__(self, number: int, state: State) -> tuple[Any, Any]:
        """The bound of a record, and the least one of the far sides of its fixings (None: it has none)."""
        record = self.records[number]
        fixes = [*record.zeros.tolist(), *record.ones.tolist()]
        found = self.evaluate(number, state)
        if not isinstance(found, str) and not _finite(found[0], found[1], fixes):
            found = "its bound is not finite"
        if isinstance(found, str):
            self.idle[number] = found
            self.bounds[number] = -math.inf
            return -math.inf, -math.inf if fixes else None
        self.bounds[number] = found[0]
        return found[0], _far_side(*found, record) if fixes else None

    def above(self, number: int, start: State, rules: Rules) -> Any:
        """The best bound of the records above one that has a state; ``start`` is that of the root."""
        path = [number]
        while self.records[path[-1]].parent >= 0:
            path.append(self.records[path[-1]].parent)
        best: Any = -math.inf
        for at in reversed(path[1:]):
            state = _descend(start, self.records, at, rules)
            assert state is not None
            if at not in self.bounds:
                self(at, state)
            best = max(best, self.bounds[at])
            start = _fixed(state, self.records[at])
        return best


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


def _far_side(bound: Any, score: Any, record: Record) -> Any:
    """The least bound of the far sides of a record's fixings, where an entity that gained max(0, s) gains s
    or nothing."""
    if not isinstance(score, np.ndarray):
        gains = [score[i] for i in record.ones.tolist()] + [
            -score[i] for i in record.zeros.tolist()
        ]
        return min(bound + max(0, gain) for gain in gains)
    gain = np.concatenate([score[record.ones], -score[record.zeros]])
    far = bound + np.maximum(0.0, gain)
    return float((far - 4 * UNIT * (abs(bound) + np.abs(gain))).min())


def _finite(bound: Any, score: Any, of: list[int]) -> bool:
    """Whether a bound, and the scores of some entities, are numbers."""
    if isinstance(score, np.ndarray):
        return math.isfinite(bound) and bool(np.isfinite(score[of]).all())
    return all(-math.inf < value < math.inf for value in (bound, *(score[i] for i in of)))


def _fixed(state: State, record: Record) -> State:
    """The state after a record's fixings."""
    alive, one = state.alive.copy(), state.one.copy()
    alive[record.zeros] = False
    one[record.ones] = True
    return State(alive, one)


def _descend(above: State, records: list[Record], number: int, rules: Rules) -> State | None:
    """The state at a record whose parent leaves ``above``, or None where no solution obeys the rules."""
    record = records[number]
    alive, one = above.alive.copy(), above.one.copy()
    if record.value == 0:
        alive[records[record.parent].branch] = False
    elif record.value == 1:
        one[records[record.parent].branch] = True
    alive, one, possible = rules.close(alive, one)
    return State(alive, one) if possible else None


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
        shapes = [(len(c), c.shape[1] * k, c.shape[1] * k)] if n else []
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


def _repeats(entities: Array) -> bool:
    """Whether an entity stands there twice."""
    return bool(len(entities) and np.bincount(entities).max() > 1)


def _inadmissible(record: Record, state: State) -> str:
    """What is wrong with the entities a record names; empty where nothing is."""
    free = state.alive & ~state.one
    fixed = np.concatenate([record.zeros, record.ones])
    if not free[fixed].all():
        return "fixes an entity that is not free"
    if _repeats(fixed):
        return "fixes an entity twice"
    alive, one = _fixed(state, record)
    if record.branch >= 0 and not (alive & ~one)[record.branch]:
        return f"branches on entity {record.branch}, which is not free"
    if _repeats(record.entities):
        return "names an entity twice"
    if record.d is not None:
        named = np.zeros(len(state.alive), dtype=bool)
        named[record.entities] = True
        if not (named | ~state.alive).all():
            return "moves curvature without naming every entity that is left"
    if record.clusters is not None:
        members = record.clusters[record.clusters >= 0]
        if _repeats(members) or not np.isin(record.entities, members).all():
            return "has clusters that are no partition of its entities"
    return ""

r"""The tree as a proof: what a reader needs to see that no better solution exists, and the check.

Each record states a point (W, d) whose tangent bounds its node (`bounds`), the entities that this
bound fixes safely, and either the entity branched on (two children, y = 0 and y = 1), or one child
that continues with those fixings, or nothing: a leaf.  The check trusts none of the numbers the search
had: it follows the fixings from the root, sees that both sides of every branching are there, evaluates
every bound again from the samples, proves R positive semidefinite by a Cholesky factorisation, and
takes the least over all leaves and over the far sides of all fixings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.bounds import Terms, dual_bound, penalty_of
from spr_or.certified_solver.design import Design, columns_of, loss_and_gradient

CONTINUES = -1  # the value of a record that is no side of a branching
INDEFINITE = "R is not positive semidefinite"
_LARGE = "its weights are too large for float64"
_ROUNDINGS = 16  # of the largest term, which the allowance has to hold at least


@dataclass(eq=False)
class Record:
    """One node: ``value`` is the side of the parent's branching; entities are the problem's numbers.

    ``entities`` (n,) carry the weights W (n, k, q), all others are at zero; d is the moved curvature:
    blocks (n, k, k) for one output, a diagonal (n, k) for several, None for lambda u alpha.  With
    ``clusters`` (m, s), entities of the problem or -1, d has a block a cluster, (m, s k, s k); what it
    has for entities the record does not name counts for nothing.  An entity that is fixed to 0 may have
    weights: the tangent is taken at W, feasible or not.
    """

    parent: int
    value: int
    entities: Tensor
    W: Tensor
    d: Tensor | None
    zeros: Tensor
    ones: Tensor
    branch: int = -1
    clusters: Tensor | None = None


@dataclass(eq=False)
class Proof:
    """The records, parents before children; record 0 is the root."""

    records: list[Record] = field(default_factory=list)

    def add(
        self,
        parent: int,
        value: int,
        entities: Tensor,
        W: Tensor,
        d: Tensor | None,
        clusters: Tensor | None = None,
    ) -> int:
        """Append a record and return its number.  Without d, entities at zero need not be kept."""
        entities, W = entities.cpu(), W.detach().cpu()
        if d is None:
            used = (W != 0).flatten(1).any(-1)
            entities, W = entities[used], W[used]
        nothing = torch.empty(0, dtype=torch.int64)
        moved = None if d is None else d.detach().cpu().clone()
        record = Record(parent, value, entities.clone(), W.clone(), moved, nothing, nothing)
        record.clusters = None if clusters is None else clusters.cpu()
        self.records.append(record)
        return len(self.records) - 1

    def fix(self, record: int, zeros: Tensor, ones: Tensor) -> None:
        """Add entities that the bound of ``record`` fixes."""
        at = self.records[record]
        at.zeros = torch.cat([at.zeros, zeros.cpu()])
        at.ones = torch.cat([at.ones, ones.cpu()])

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


class Verified(NamedTuple):
    """What a check found: the bound it could prove itself, and everything that was wrong."""

    bound: Any
    problems: list[str]


class State(NamedTuple):
    """At a record: entities still alive (not zero), those at one, and the best bound above it."""

    alive: Tensor
    one: Tensor
    inherited: Any


Evaluator = Callable[[Record, State], "tuple[Any, Sequence[Any]] | str"]


def check_tree(proof: Proof, shape: tuple[int, int, int], evaluate: Evaluator) -> Verified:
    """Walk a proof over N entities of up to k columns and q outputs, (N, k, q) = ``shape``.

    ``evaluate(record, state)`` gives the tangent bound and the score of each entity, as floats
    (`FloatBounds`) or fractions (`proof_exact.ExactBounds`), or says why the record has none.
    """
    problems = list(structure(proof))
    if problems:
        return Verified(-math.inf, problems)
    states: dict[int, State] = {}
    children = _children(proof)
    least = math.inf
    for number, record in enumerate(proof.records):
        if record.parent < 0:
            nothing = torch.zeros(shape[0], dtype=torch.bool)
            state = State(~nothing, nothing, -math.inf)
        else:
            state = _descend(states[record.parent], proof.records[record.parent], record.value)
        wrong = _misshapen(record, shape) or _inadmissible(record, state)
        if wrong:
            return Verified(-math.inf, [f"record {number}: {wrong}"])
        found = evaluate(record, state)
        if isinstance(found, str):
            return Verified(-math.inf, [f"record {number}: {found}"])
        bound, score = found
        named = torch.cat([record.zeros, record.ones]).tolist()
        if not all(-math.inf < x < math.inf for x in (bound, *(score[i] for i in named))):
            return Verified(-math.inf, [f"record {number}: its bound is not finite"])
        below = max(bound, state.inherited)
        far = [bound + max(0, -score[i]) for i in record.zeros.tolist()]
        far += [bound + max(0, score[i]) for i in record.ones.tolist()]
        least = min(least, *(max(x, below) for x in far)) if far else least
        if children[number]:
            states[number] = State(*_fixed(state, record), below)
        else:
            least = min(least, below)
        if record.parent >= 0 and number == children[record.parent][-1]:
            del states[record.parent]
    return Verified(least, [])


def structure(proof: Proof) -> Iterator[str]:
    """Whether the records form a tree whose leaves cover the root."""
    if not proof.records:
        yield "the proof has no records"
    children = _children(proof)
    for number, record in enumerate(proof.records):
        if (number == 0) != (record.parent < 0) or record.parent >= number:
            yield f"record {number}: its parent {record.parent} does not come before it"
        values = sorted(proof.records[child].value for child in children[number])
        if record.branch >= 0 and values != [0, 1]:
            yield f"record {number}: branches on entity {record.branch}, but has the sides {values}"
        if record.branch < 0 and values not in ([], [CONTINUES]):
            yield f"record {number}: has children {values} without a branching"


def _children(proof: Proof) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in proof.records]
    for number, record in enumerate(proof.records):
        if 0 <= record.parent < number:
            children[record.parent].append(number)
    return children


def _fixed(state: State, record: Record) -> tuple[Tensor, Tensor]:
    alive, one = state.alive.clone(), state.one.clone()
    alive[record.zeros] = False
    one[record.ones] = True
    return alive, one


def _descend(state: State, parent: Record, value: int) -> State:
    """The state of a child (the parent's own fixings are already in ``state``)."""
    alive, one = state.alive.clone(), state.one.clone()
    if value == 0:
        alive[parent.branch] = False
    elif value == 1:
        one[parent.branch] = True
    return State(alive, one, state.inherited)


def _misshapen(record: Record, shape: tuple[int, int, int]) -> str:
    """What is wrong with the sizes and numbers of a record; empty where nothing is."""
    N, k, q = shape
    n = len(record.entities)
    for named, least in (
        (record.entities, 0), (record.zeros, 0), (record.ones, 0),
        (torch.tensor([record.branch]), -1),
        (record.entities[:0] if record.clusters is None else record.clusters, -1),
    ):  # fmt: skip
        if named.numel() and not (least <= int(named.min()) and int(named.max()) < N):
            return f"names an entity that is not one of 0 to {N - 1}"
    if tuple(record.W.shape) != (n, k, q):
        return f"has weights of shape {tuple(record.W.shape)}, not {(n, k, q)}"
    if record.d is None:
        return ""
    allowed: list[tuple[int, ...]] = [(n, k), (n, k, k)] if q == 1 else [(n, k)]
    if record.clusters is not None:
        m, s = record.clusters.shape
        allowed = [(m, s * k, s * k)] if q == 1 and n else []
    if tuple(record.d.shape) not in allowed:
        return f"moves a curvature of shape {tuple(record.d.shape)}"
    return ""


def _inadmissible(record: Record, state: State) -> str:
    """What is wrong with the entities a record names; empty where nothing is."""
    free = state.alive & ~state.one
    named = torch.cat([record.zeros, record.ones])
    if len(named) and not bool(free[named].all()):
        return "fixes an entity that is not free"
    if len(named) != len(named.unique()):
        return "fixes an entity twice"
    alive, one = _fixed(state, record)
    if record.branch >= 0 and not bool((alive & ~one)[record.branch]):
        return f"branches on entity {record.branch}, which is not free"
    if len(record.entities) != len(record.entities.unique()):
        return "names an entity twice"
    if record.d is not None:
        named = torch.zeros_like(state.alive)
        named[record.entities] = True
        if not bool((named | ~state.alive).all()):
            return "moves curvature without naming every entity that is left"
        if not positive(record.d):
            return "moves a curvature that is not positive"
        if not _partitions(record):
            return "has clusters that are no partition of its entities"
    if not bool(record.W.isfinite().all()):
        return "has weights that are not finite"
    return ""


def _partitions(record: Record) -> bool:
    """Whether the clusters of a record, if any, hold each of its entities exactly once."""
    if record.clusters is None:
        return True
    members = record.clusters[record.clusters >= 0]
    once = len(members) == len(members.unique())
    return once and bool(torch.isin(record.entities, members).all())


def rows_of(record: Record) -> Tensor:
    """The clusters (m, s) of a record as rows of its entities, -1 for what it does not name."""
    assert record.clusters is not None
    order = record.entities.argsort()
    names = record.entities[order]
    at = torch.searchsorted(names, record.clusters).clamp(max=len(names) - 1)
    return torch.where(names[at] == record.clusters, order[at], -1)


class FloatBounds:
    """Bounds of records in float64: through G for moved curvature, through the samples else.

    ``design`` holds all entities, on the CPU.  A record whose terms are so large that rounding them could
    move its bound by ``allowance`` has none.
    """

    def __init__(self, design: Design, proof: Proof, allowance: float) -> None:
        self.design, self.allowance = design, allowance
        split = [record.entities for record in proof.records if record.d is not None]
        self.used = torch.cat(split).unique() if split else torch.empty(0, dtype=torch.int64)
        self.small = design.restrict(self.used).with_moments() if split else None

    def __call__(self, record: Record, state: State) -> tuple[float, list[float]] | str:
        """The bound and the scores (N,), or why there is none."""
        return self._plain(record, state) if record.d is None else self._split(record, state)

    def _too_large(self, terms: Tensor) -> bool:
        """Whether rounding can move a sum of these, of which all other terms are a part."""
        return not float(terms) * _ROUNDINGS * torch.finfo(terms.dtype).eps <= self.allowance

    def _plain(self, record: Record, state: State) -> tuple[float, list[float]] | str:
        used = state.alive.clone()
        used[record.entities] = True  # weights of an entity fixed to zero may shape the tangent
        active = used.nonzero().flatten()
        small = self.design if len(active) == len(state.alive) else self.design.restrict(active)
        W = torch.zeros((1, *small.shape), dtype=torch.float64)
        W[0, torch.searchsorted(active, record.entities)] = record.W
        if self._too_large(_largest_loss(self.design, record)):
            return _LARGE
        value, gradient = loss_and_gradient(small, W)
        return self._finish(active, state, value, gradient, W, None)

    def _split(self, record: Record, state: State) -> tuple[float, list[float]] | str:
        assert self.small is not None and self.small.moments is not None and record.d is not None
        design = self.small.restrict(torch.searchsorted(self.used, record.entities))
        assert design.moments is not None
        _, C, c0 = design.moments
        real = design.real.flatten()
        R = design.quadratic()
        clusters = rows_of(record) if record.clusters is not None else None
        D = record.d if record.d.dim() == 3 else torch.diag_embed(record.d)
        members = torch.arange(len(D)).unsqueeze(1) if clusters is None else clusters
        subtract_blocks(R, D, members, design.real)
        if not provably_semidefinite(R):
            return INDEFINITE
        w = record.W.flatten(0, 1) * real.unsqueeze(-1)
        if self._too_large((w.abs() * (R.abs() @ w.abs() + 2 * C.abs())).sum() + c0):
            return _LARGE
        Rw = R @ w
        value = (w * (Rw - 2 * C)).sum() + c0
        shape = (1, *record.W.shape)
        gradient = (2 * (Rw - C)).view(shape)
        return self._finish(
            record.entities, state, value.unsqueeze(0), gradient, w.view(shape), record.d, clusters
        )

    def _finish(
        self,
        active: Tensor,
        state: State,
        value: Tensor,
        gradient: Tensor,
        W: Tensor,
        d: Tensor | None,
        clusters: Tensor | None = None,
    ) -> tuple[float, list[float]]:
        one = state.one[active].unsqueeze(0)
        free = state.alive[active].unsqueeze(0) & ~one
        terms = Terms(
            None if d is None else d.unsqueeze(0), free, one,
            None if clusters is None else clusters.unsqueeze(0),
        )  # fmt: skip
        penalty = penalty_of(self.design, active)
        bound, score = dual_bound(penalty, value, gradient, W, terms)
        full = torch.full((self.design.shape[0],), torch.nan, dtype=torch.float64)
        full[active] = score[0]
        return float(bound), full.tolist()


def _largest_loss(design: Design, record: Record) -> Tensor:
    """The mean loss if no term of any prediction cancelled another, ()."""
    used = design.restrict(record.entities)
    predictions = used.block().abs() @ record.W.abs().flatten(0, 1)
    if design.loss == "squared":
        return (predictions + design.Y.abs()).square().sum() / design.n
    return (1 + predictions).sum() / design.n


def subtract_blocks(R: Tensor, D: Tensor, members: Tensor, real: Tensor) -> None:
    """Take the blocks D (m, s k, s k) of ``members`` (m, s), rows of ``real`` (n, k) or -1, from R
    (n k, n k) in place, padded columns left alone."""
    k = real.shape[1]
    at = members.clamp(min=0)
    counted = (real[at] & (members >= 0).unsqueeze(-1)).flatten(1)
    pair = counted.unsqueeze(-1) & counted.unsqueeze(-2)
    columns = columns_of(at, k).flatten(1)
    flat = columns.unsqueeze(-1) * len(R) + columns.unsqueeze(-2)
    R.view(-1).index_add_(0, flat.flatten(), -torch.where(pair, D, 0.0).flatten())


def positive(d: Tensor) -> bool:
    """Whether moved curvature, blocks (n, k, k) or a diagonal (n, k), is provably positive."""
    if d.dim() == 2:
        return bool((d > 0).all())
    diagonal = d.diagonal(dim1=-2, dim2=-1)
    if not bool(d.isfinite().all()) or not bool((d == d.mT).all() and (diagonal > 0).all()):
        return False
    # Scaled by powers of two, which rounds nothing and makes all columns count alike.
    scale = torch.exp2(-(diagonal.log2() / 2).round())
    return provably_semidefinite(scale.unsqueeze(-1) * d * scale.unsqueeze(-2))


def provably_semidefinite(R: Tensor) -> bool:
    """Whether the symmetric float64 R (..., P, P) are all provably positive semidefinite.

    If floating-point Cholesky runs through on R - s I with s >= gamma_{P+1} trace(R) / (1 - gamma),
    R is (Rump, BIT Numerical Mathematics 46, 2006, Theorem 2.3); s here is twice that, for the
    rounding of R itself.
    """
    count = R.shape[-1]
    if R.numel() == 0:
        return True
    unit = torch.finfo(R.dtype).eps / 2
    gamma = (count + 2) * unit / (1 - (count + 2) * unit)
    trace = R.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).clamp(min=0)
    shifted = R.clone()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(2 * gamma / (1 - gamma) * trace)
    return not bool(torch.linalg.cholesky_ex(shifted)[1].any())

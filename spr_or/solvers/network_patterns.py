r"""One hidden layer of ReLUs on samples in the plane, trained to proven optimality by activation patterns.

Branching on single ReLUs of a big-M model says nothing before most of them are fixed.  Here
interchangeable neurons stay interchangeable, and the bound comes from convex hulls.

**A node** is a list of groups.  A group g stands for c_g neurons in use whose output weight is
sigma_g M_free (`network_wiring.scaled_weights`) and which lie in one `Region` of
`activation_patterns`.  The first nodes have p neurons of positive and q of negative sign, p + q <= N:
(N + 1)(N + 2) / 2 cases for the 4^N choices of indicators and signs.

**Its bound.**  With l* the conjugate of the loss, any nu bounds the training problem of the node from
below by Fenchel's inequality, as in `SparseTrainingProblem.dual_bound`.  What remains is
linear in the output of each neuron, so each minimises for itself,

.. math::  D(\nu) = -\frac1n \sum_m \ell^*(\nu_m) - M_{free} \Bigl|\frac1n \sum_m \nu_m\Bigr|
    + \sum_g c_g \Bigl[\lambda u (1-\alpha) - \frac{\gamma_g(\nu)^2}{4 \lambda u \alpha}\Bigr],
    \qquad \gamma_g = \max_{d \in g,\, \lVert d \rVert = 1}
    -\frac{\sigma_g M_{free}}{n} \sum_m \nu_m \max(0, d \cdot \tilde x_m),

because the best length of a neuron with the gain gamma is gamma / (2 lambda u alpha).  The maximum is exact
(`most_helpful`); the bounds |w_j| <= M are left out, which only lowers D.

**Its nu.**  max D is the dual of training with mixtures of neurons: neurons of g at directions d_k
with lengths r_k together cost alpha (sum_k r_k)^2 / c_g.  Columns d_k are generated: a small convex
quadratic program gives nu, `most_helpful` gives D(nu) and the next columns.

**Branching.**  If the columns of a group agree on where they fire, their mixture is one neuron,
sum_k r_k d_k / c_g in each of c_g places, and the node is solved.  Otherwise some sample m
has a gap sum_k r_k max(0, z_km) - max(0, sum_k r_k z_km) > 0.  The group is split by how many
of its neurons fire there: a = 0, ..., c_g do, c_g - a do not.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spr_or.formulations import one_hidden_layer
from spr_or.formulations.activation_patterns import (
    Arrangement,
    Neuron,
    Region,
    arrangement,
    most_helpful,
)
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.solvers.certificate import Certificate, Solved, certify
from spr_or.solvers.neuron_mixtures import LOSS_PROGRAMS, Group, Mixture, best_mixture
from spr_or.solvers.time_limit import TimeLimit

_ROUNDS = 40  # of columns in one node
_NEAR = (
    0.1  # a node is left for branching once its nu is this close to the best, relative to its gap
)
_UNUSED = 1e-9  # a column with a smaller length does not count
_SAME = 1e-7  # a smaller gap of a mixture, relative to the largest z, is none
_ROUNDING = (
    1e-11  # by this share bounds are lowered before they are stated; the check encloses roundings
)
_LEAF = (-1, -1)


def reason_against(problem: SparseTrainingProblem) -> str:
    """Why this file cannot solve a problem; empty if it can."""
    reason = one_hidden_layer.reason_against(problem)
    if not reason and problem.X.shape[1] != 2:
        return f"samples must have two numbers, not {problem.X.shape[1]}"
    if not reason and problem.loss not in LOSS_PROGRAMS:
        return f"the loss must be {' or '.join(LOSS_PROGRAMS)}, not {problem.loss}"
    return reason


@dataclass(frozen=True, eq=False, repr=False)
class PatternCertificate(Certificate):
    """A `Certificate` with the tree that proves its bound.

    splits : (R, 2) int64, the nodes in preorder, the group and the sample that were branched on, (-1, -1) for
        a leaf.  The children of a node stand in the order of a = 0, ..., c_g, the first nodes in that of
        (p, q), q fastest
    multipliers : (L, n) float64, nu of each leaf in order
    """

    splits: Tensor
    multipliers: Tensor


@dataclass
class Record:
    """What the tree keeps of a node: its best multipliers, and how it was branched on, if it was."""

    nu: Tensor
    branching: tuple[int, int, list[Record]] | None = None


@dataclass(frozen=True)
class Node:
    """Groups, multipliers nu (n,) to begin with, and the columns of each group."""

    groups: list[Group]
    nu: Tensor
    columns: list[list[Neuron]]
    record: Record


def solve(
    problem: SparseTrainingProblem,
    time_limit: float | None = None,
    gap: float = 1e-6,
    start: Tensor | None = None,
) -> PatternCertificate:
    """The optimum of (1)-(3) for a network Linear(2, h), ReLU, Linear(h, 1), to the relative ``gap``.

    The certificate holds the tree and multipliers that prove its bound, for `spr_or.proof.network_tree`.

    Parameters
    ----------
    time_limit : seconds, or None; when it is reached the certificate has the status "time_limit" and
        the gap that is left
    start : weights (P,) of a solution to begin with, e.g. from `spr_or.solvers.network_sgd`

    Raises ``ValueError`` where `reason_against` has one, and for samples of which three lie on a line.

    >>> from torch import nn
    >>> from spr_or.formulations.entities import neurons
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> X, y = [[0.0, 0.1], [0.1, 1.0], [1.0, 0.0], [0.9, 1.0]], [0.0, 1.0, 1.0, 0.0]
    >>> p = SparseTrainingProblem.network(net, X, y, neurons(net), lam=0.05, alpha=0.1, M=2)
    >>> solve(p).status
    'optimal'
    """
    reason = reason_against(problem)
    if reason:
        raise ValueError(f"network_patterns cannot solve {problem.name!r}: {reason}")
    return Search(problem, gap, TimeLimit(time_limit)).run(start)


class Search:
    """A best-first search: ``value``, ``weights``, ``bound``, ``nodes`` solved, the open ``heap``."""

    def __init__(self, problem: SparseTrainingProblem, gap: float, clock: TimeLimit) -> None:
        self.problem, self.gap, self.clock = problem, gap, clock
        ones = torch.full((problem.n, 1), problem.bias_input, dtype=torch.float64)
        self.arrangement: Arrangement = arrangement(torch.cat([problem.X, ones], dim=1))
        self.places = one_hidden_layer.places(problem)
        self.price = problem.lam * float(problem.u[0]) * (1 - problem.alpha)
        self.ridge = problem.lam * float(problem.u[0]) * problem.alpha
        self.value, self.bound = math.inf, 0.0
        self.floor = math.inf  # the least bound of a node that rounding leaves open
        self.weights = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
        self.nodes = 0
        self.heap: list[tuple[float, int, Node]] = []
        self.ticket = itertools.count()
        most = len(problem.entities)
        pairs = itertools.product(range(most + 1), repeat=2)
        self.roots = [
            (p, q, Record(torch.zeros(problem.n, dtype=torch.float64)))
            for p, q in pairs
            if p + q <= most
        ]

    def run(self, start: Tensor | None) -> PatternCertificate:
        self.offer(self.weights)
        if start is not None:
            self.offer(start)
        status = "optimal"
        try:
            self.first_nodes()
            while self.heap and self.heap[0][0] < self.cutoff:
                self.bound = max(self.bound, min(self.heap[0][0], self.floor))
                if self.clock.spent:
                    status = "time_limit"
                    break
                # The node stays on the heap until its children are there: Ctrl-C loses nothing.
                bound, children = self.solved(self.heap[0][0], self.heap[0][2])
                heapq.heappop(self.heap)
                for child in children:
                    self.push(bound, child)
            else:
                self.bound = max(self.bound, min(self.cutoff, self.floor))
        except KeyboardInterrupt:
            status = "interrupted"
        used = self.problem.entities.rows(self.weights).abs().amax(-1) > 0
        made = certify(
            self.problem,
            Solved("bigm", "integer", "patterns", torch.__version__),
            status=status,
            bound=min(self.bound, self.value) - _ROUNDING * abs(self.value),
            seconds=self.clock.seconds,
            weights=self.weights,
            indicators=used.double(),
            tolerance=max(self.gap, 1e-5),
        )
        splits, multipliers = _tree([record for _, _, record in self.roots])
        return PatternCertificate(**vars(made), splits=splits, multipliers=multipliers)

    @property
    def cutoff(self) -> float:
        """A node with this bound holds nothing that is better by more than the gap."""
        return self.value * (1 - self.gap)

    def push(self, bound: float, node: Node) -> None:
        if bound < self.cutoff:
            heapq.heappush(self.heap, (bound, next(self.ticket), node))

    def first_nodes(self) -> None:
        none = torch.zeros(self.problem.n, dtype=torch.bool)
        for p, q, record in self.roots:
            counts = [(sign, count) for sign, count in ((1, p), (-1, q)) if count]
            groups = [Group(Region(sign, none, none), count) for sign, count in counts]
            node = Node(groups, record.nu, [[] for _ in groups], record)
            self.push(self.price * (p + q), node)

    def offer(self, theta: Tensor) -> None:
        """Take weights as the best so far if they are; rows that are 0 are not used."""
        entities = self.problem.entities
        rows = entities.rows(theta)
        rows = rows.clamp(-float(self.problem.M[0]), float(self.problem.M[0]))
        free = theta[entities.free].clamp(-self.problem.M_free, self.problem.M_free)
        theta = entities.flat(rows, free)
        value = one_hidden_layer.value(self.problem, theta)
        if value < self.value:
            self.value, self.weights = value, theta

    def dual(self, groups: list[Group], nu: Tensor) -> tuple[float, list[Neuron | None]]:
        """D(nu), and the neurons that attain its maxima; inf where a region is empty."""
        problem = self.problem
        found = most_helpful(self.arrangement, nu, [group.region for group in groups])
        bound = -float(LOSSES[problem.loss].conjugate(nu.unsqueeze(1), problem.y).mean())
        bound -= problem.M_free * problem.bias_input * abs(float(nu.mean()))
        for group, neuron in zip(groups, found, strict=True):
            if neuron is None:
                return math.inf, found
            gain = problem.M_free / problem.n * neuron.gain
            bound += group.size * (self.price - gain**2 / (4 * self.ridge))
        return bound, found

    def solved(self, bound: float, node: Node) -> tuple[float, list[Node]]:
        """The bound of a node, and its children if it is not decided."""
        self.nodes += 1
        columns = [list(own) for own in node.columns]
        nu, best = node.nu, node.nu
        mixture: Mixture | None = None
        split: tuple[int, int] | None = None
        for _ in range(_ROUNDS):
            here, found = self.dual(node.groups, nu)
            if here > bound:
                bound, best = here, nu
            if bound >= self.cutoff:
                node.record.nu = best
                return bound, []
            if split and mixture and mixture.value - bound <= _NEAR * (self.cutoff - bound):
                break
            for own, neuron in zip(columns, found, strict=True):
                if neuron is not None and neuron.gain > 0:
                    own.append(neuron)
            mixture = best_mixture(self.problem, node.groups, columns)
            split = _widest(columns, mixture)
            nu = mixture.nu
            self.offer(self.merged(node.groups, columns, mixture))
        if split is None:
            self.floor = min(self.floor, bound)
            node.record.nu = best
            return bound, []
        assert mixture is not None
        columns = [
            [column for column, r in zip(own, lengths.tolist(), strict=True) if r > _UNUSED]
            for own, lengths in zip(columns, mixture.lengths, strict=True)
        ]
        children = _children(Node(node.groups, best, columns, node.record), *split)
        node.record.branching = (*split, [child.record for child in children])
        return bound, children

    def merged(self, groups: list[Group], columns: list[list[Neuron]], mixture: Mixture) -> Tensor:
        """The weights of the network in which each mixture is replaced by equal neurons."""
        problem, where = self.problem, self.places
        theta = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
        theta[where.out] = problem.M_free
        theta[where.bias] = mixture.bias
        slot = 0
        for group, own, lengths in zip(groups, columns, mixture.lengths, strict=True):
            slots = slice(slot, slot + group.size)
            if own:
                total = lengths @ torch.stack([column.direction for column in own])
                theta[where.rows[slots]] = total / group.size
            theta[where.out[slots]] = group.region.sign * problem.M_free
            slot += group.size
        return theta


def _widest(columns: list[list[Neuron]], mixture: Mixture) -> tuple[int, int] | None:
    """The group and the sample with the largest gap of a mixture; None if there is none."""
    best, place = 0.0, None
    for g, (own, lengths) in enumerate(zip(columns, mixture.lengths, strict=True)):
        if not own:
            continue
        z = torch.stack([column.z for column in own])
        gap = lengths @ z.clamp(min=0) - (lengths @ z).clamp(min=0)
        m = int(gap.argmax())
        if float(gap[m]) > max(best, _SAME * float(z.abs().max() * lengths.sum())):
            best, place = float(gap[m]), (g, m)
    return place


def _children(node: Node, g: int, m: int) -> list[Node]:
    """The group g split by how many of its neurons fire at sample m."""
    (sign, on, off), count = node.groups[g]
    here = torch.arange(len(on)) == m
    children = []
    for firing in range(count + 1):
        parts = [
            Group(Region(sign, on | here, off), firing),
            Group(Region(sign, on, off | here), count - firing),
        ]
        parts = [part for part in parts if part.size]
        own = [[c for c in node.columns[g] if bool(part.region.holds(c.z))] for part in parts]
        groups = node.groups[:g] + parts + node.groups[g + 1 :]
        columns = node.columns[:g] + own + node.columns[g + 1 :]
        children.append(Node(groups, node.nu, columns, Record(node.nu)))
    return children


def _tree(roots: list[Record]) -> tuple[Tensor, Tensor]:
    """The ``splits`` and ``multipliers`` of a `PatternCertificate`."""
    splits, multipliers = [], []
    waiting = roots[::-1]
    while waiting:
        record = waiting.pop()
        if record.branching is None:
            splits.append(_LEAF)
            multipliers.append(record.nu)
        else:
            g, m, children = record.branching
            splits.append((g, m))
            waiting += children[::-1]
    return torch.tensor(splits), torch.stack(multipliers)

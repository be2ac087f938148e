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
from typing import NamedTuple

import torch
from torch import Tensor, nn

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
from spr_or.solvers.time_limit import TimeLimit

_ROUNDS = 40  # of columns in one node
_NEAR = 0.1  # a node is left for branching once its nu is this close to the best, relative to its gap
_UNUSED = 1e-9  # a column with a smaller length does not count
_SAME = 1e-7  # a smaller gap of a mixture, relative to the largest z, is none
_QP_TOLERANCE = 1e-9


def reason_against(problem: SparseTrainingProblem) -> str:
    """Why this file cannot solve a problem; empty if it can."""
    reason = one_hidden_layer.reason_against(problem)
    if not reason and problem.X.shape[1] != 2:
        return f"samples must have two numbers, not {problem.X.shape[1]}"
    if not reason and problem.loss not in _MASTERS:
        return f"the loss must be {' or '.join(_MASTERS)}, not {problem.loss}"
    return reason


class _Group(NamedTuple):
    region: Region
    count: int


@dataclass(frozen=True)
class _Node:
    """Groups, multipliers nu (n,) to begin with, and the columns of each group."""

    groups: list[_Group]
    nu: Tensor
    columns: list[list[Neuron]]


class _Master(NamedTuple):
    """The best mixture of columns: its value, nu (n,), the bias c, and the length of each column."""

    value: float
    nu: Tensor
    bias: float
    lengths: list[Tensor]


def solve(
    problem: SparseTrainingProblem,
    time_limit: float | None = None,
    gap: float = 1e-6,
    start: Tensor | None = None,
) -> Certificate:
    """The optimum of (1)-(3) for a network Linear(2, h), ReLU, Linear(h, 1), to the relative ``gap``.

    Parameters
    ----------
    time_limit : seconds, or None; when it is reached the certificate has the status "time_limit" and
        the gap that is left
    start : weights (P,) of a solution to begin with, e.g. from `spr_or.solvers.network_sgd`

    Raises ``ValueError`` where `reason_against` has one, and for samples of which three lie on a line.

    >>>     >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> X, y = [[0.0, 0.1], [0.1, 1.0], [1.0, 0.0], [0.9, 1.0]], [0.0, 1.0, 1.0, 0.0]
    >>> p = SparseTrainingProblem.network(net, X, y, neurons(net), lam=0.05, alpha=0.1, M=2)
    >>> solve(p).status
    'optimal'
    """
    reason = reason_against(problem)
    if reason:
        raise ValueError(f"network_patterns cannot solve {problem.name!r}: {reason}")
    return _Search(problem, gap, TimeLimit(time_limit)).run(start)


class _Search:
    """A best-first search; what it has found so far is in ``value``, ``weights`` and ``bound``."""

    def __init__(self, problem: SparseTrainingProblem, gap: float, clock: TimeLimit) -> None:
        self.problem, self.gap, self.clock = problem, gap, clock
        ones = torch.full((problem.n, 1), problem.bias_input, dtype=torch.float64)
        self.arrangement: Arrangement = arrangement(torch.cat([problem.X, ones], dim=1))
        self.places = one_hidden_layer.places(problem)
        self.price = problem.lam * float(problem.u[0]) * (1 - problem.alpha)
        self.ridge = problem.lam * float(problem.u[0]) * problem.alpha
        self.value, self.bound = math.inf, 0.0
        self.weights = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
        self.nodes = 0
        self.heap: list[tuple[float, int, _Node]] = []
        self.ticket = itertools.count()

    def run(self, start: Tensor | None) -> Certificate:
        self.offer(self.weights)
        if start is not None:
            self.offer(start)
        status = "optimal"
        try:
            self.first_nodes()
            while self.heap and self.heap[0][0] < self.cutoff:
                self.bound = max(self.bound, self.heap[0][0])
                if self.clock.spent:
                    status = "time_limit"
                    break
                # The node stays on the heap until its children are there: Ctrl-C loses nothing.
                bound, children = self.solved(self.heap[0][0], self.heap[0][2])
                heapq.heappop(self.heap)
                for child in children:
                    self.push(bound, child)
            else:
                self.bound = max(self.bound, self.cutoff)
        except KeyboardInterrupt:
            status = "interrupted"
        used = self.problem.entities.rows(self.weights).abs().amax(-1) > 0
        return certify(
            self.problem,
            Solved("bigm", "integer", "patterns", torch.__version__),
            status=status,
            bound=min(self.bound, self.value),
            seconds=self.clock.seconds,
            weights=self.weights,
            indicators=used.double(),
        )

    @property
    def cutoff(self) -> float:
        """A node with this bound holds nothing that is better by more than the gap."""
        return self.value * (1 - self.gap)

    def push(self, bound: float, node: _Node) -> None:
        if bound < self.cutoff:
            heapq.heappush(self.heap, (bound, next(self.ticket), node))

    def first_nodes(self) -> None:
        n, most = self.problem.n, len(self.problem.entities)
        none = torch.zeros(n, dtype=torch.bool)
        nu = torch.zeros(n, dtype=torch.float64)
        for p, q in itertools.product(range(most + 1), repeat=2):
            if p + q <= most:
                counts = [(sign, count) for sign, count in ((1, p), (-1, q)) if count]
                groups = [_Group(Region(sign, none, none), count) for sign, count in counts]
                self.push(self.price * (p + q), _Node(groups, nu, [[] for _ in groups]))

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

    def dual(self, groups: list[_Group], nu: Tensor) -> tuple[float, list[Neuron | None]]:
        """D(nu), and the neurons that attain its maxima; inf where a region is empty."""
        problem = self.problem
        found = most_helpful(self.arrangement, nu, [group.region for group in groups])
        bound = -float(LOSSES[problem.loss].conjugate(nu.unsqueeze(1), problem.y).mean())
        bound -= problem.M_free * problem.bias_input * abs(float(nu.mean()))
        for group, neuron in zip(groups, found, strict=True):
            if neuron is None:
                return math.inf, found
            gain = problem.M_free / problem.n * neuron.gain
            bound += group.count * (self.price - gain**2 / (4 * self.ridge))
        return bound, found

    def solved(self, bound: float, node: _Node) -> tuple[float, list[_Node]]:
        """The bound of a node, and its children if it is not decided."""
        self.nodes += 1
        columns = [list(own) for own in node.columns]
        nu, best = node.nu, node.nu
        master: _Master | None = None
        for _ in range(_ROUNDS):
            here, found = self.dual(node.groups, nu)
            if here > bound:
                bound, best = here, nu
            if bound >= self.cutoff:
                return bound, []
            if master is not None and master.value - bound <= _NEAR * max(
                self.cutoff - bound, self.gap * self.value
            ):
                break
            for own, neuron in zip(columns, found, strict=True):
                if neuron is not None and neuron.gain > 0:
                    own.append(neuron)
            master = _MASTERS[self.problem.loss](self, node.groups, columns)
            nu = master.nu
            self.offer(self.merged(node.groups, columns, master))
        assert master is not None
        split = _widest(columns, master)
        if split is None:
            return bound, [_Node(node.groups, nu, columns)] if bound < self.cutoff else []
        columns = [
            [column for column, r in zip(own, lengths.tolist(), strict=True) if r > _UNUSED]
            for own, lengths in zip(columns, master.lengths, strict=True)
        ]
        return bound, _children(_Node(node.groups, best, columns), *split)

    def merged(
        self, groups: list[_Group], columns: list[list[Neuron]], master: _Master
    ) -> Tensor:
        """The weights of the network in which each mixture is replaced by equal neurons."""
        problem, where = self.problem, self.places
        theta = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
        theta[where.out] = problem.M_free
        theta[where.bias] = master.bias
        slot = 0
        for group, own, lengths in zip(groups, columns, master.lengths, strict=True):
            slots = slice(slot, slot + group.count)
            if own:
                total = lengths @ torch.stack([column.direction for column in own])
                theta[where.rows[slots]] = total / group.count
            theta[where.out[slots]] = group.region.sign * problem.M_free
            slot += group.count
        return theta


def _widest(columns: list[list[Neuron]], master: _Master) -> tuple[int, int] | None:
    """The group and the sample with the largest gap of a mixture; None if there is none."""
    best, place = 0.0, None
    for g, (own, lengths) in enumerate(zip(columns, master.lengths, strict=True)):
        if not own:
            continue
        z = torch.stack([column.z for column in own])
        gap = lengths @ z.clamp(min=0) - (lengths @ z).clamp(min=0)
        m = int(gap.argmax())
        if float(gap[m]) > max(best, _SAME * float(z.abs().max() * lengths.sum())):
            best, place = float(gap[m]), (g, m)
    return place


def _children(node: _Node, g: int, m: int) -> list[_Node]:
    """The group g split by how many of its neurons fire at sample m."""
    (sign, on, off), count = node.groups[g]
    here = torch.arange(len(on)) == m
    children = []
    for firing in range(count + 1):
        parts = [
            _Group(Region(sign, on | here, off), firing),
            _Group(Region(sign, on, off | here), count - firing),
        ]
        parts = [part for part in parts if part.count]
        own = [[c for c in node.columns[g] if bool(part.region.holds(c.z))] for part in parts]
        groups = node.groups[:g] + parts + node.groups[g + 1 :]
        columns = node.columns[:g] + own + node.columns[g + 1 :]
        children.append(_Node(groups, node.nu, columns))
    return children


def _columns(
    search: _Search, groups: list[_Group], columns: list[list[Neuron]]
) -> tuple[Tensor, Tensor, list[int]]:
    """B with f = B (c, r), shape (n, 1 + K), the quadratic penalty of (c, r), and the sizes of groups."""
    problem = search.problem
    sizes = [len(own) for own in columns]
    parts = [torch.full((problem.n, 1), problem.bias_input, dtype=torch.float64)]
    for group, own in zip(groups, columns, strict=True):
        for column in own:
            parts.append(group.region.sign * problem.M_free * column.z.clamp(min=0).unsqueeze(1))
    ridge = torch.zeros(1 + sum(sizes), 1 + sum(sizes), dtype=torch.float64)
    at = 1
    for group, size in zip(groups, sizes, strict=True):
        ridge[at : at + size, at : at + size] = 2 * search.ridge / group.count
        at += size
    return torch.cat(parts, dim=1), ridge, sizes


def _squared(search: _Search, groups: list[_Group], columns: list[list[Neuron]]) -> _Master:
    """min (1/n) ||B x - y||^2 + penalty(x) over x = (c, r), r >= 0, |c| <= M_free."""
    problem = search.problem
    B, ridge, sizes = _columns(search, groups, columns)
    y, n = problem.y.flatten(), problem.n
    k = B.shape[1]
    rows = torch.cat([-torch.eye(k).double(), torch.eye(k).double()[:1]])
    right = torch.zeros(k + 1, dtype=torch.float64)
    right[0] = right[-1] = problem.M_free
    x, _ = _quadratic_program(2 / n * B.T @ B + ridge, -2 / n * B.T @ y, rows, right)
    return _master(search, groups, B, ridge, x, sizes, 2 * (B @ x - y))


def _hinge(search: _Search, groups: list[_Group], columns: list[list[Neuron]]) -> _Master:
    """min (1/n) sum e + penalty(x) over x as in `_squared` and e >= 1 - y B x, e >= 0."""
    problem = search.problem
    B, ridge, sizes = _columns(search, groups, columns)
    y, n = problem.y.flatten(), problem.n
    k = B.shape[1]
    eye, none = torch.eye(n).double(), torch.zeros(n, k).double()
    box = torch.cat([-torch.eye(k).double(), torch.eye(k).double()[:1]])
    rows = torch.cat(
        [
            torch.cat([-y.unsqueeze(1) * B, -eye], 1),
            torch.cat([none, -eye], 1),
            torch.cat([box, torch.zeros(k + 1, n).double()], 1),
        ]
    )
    right = torch.zeros(len(rows), dtype=torch.float64)
    right[:n] = -1
    right[2 * n] = right[-1] = problem.M_free
    P = torch.zeros(k + n, k + n, dtype=torch.float64)
    P[:k, :k] = ridge
    q = torch.cat([torch.zeros(k), torch.full((n,), 1 / n)]).double()
    x, dual = _quadratic_program(P, q, rows, right)
    return _master(search, groups, B, ridge, x[:k], sizes, -n * y * dual[:n])


_MASTERS = {"squared": _squared, "hinge": _hinge}


def _master(
    search: _Search, groups: list[_Group], B: Tensor, ridge: Tensor, x: Tensor, sizes: list[int], nu: Tensor
) -> _Master:
    problem = search.problem
    x = torch.cat([x[:1].clamp(-problem.M_free, problem.M_free), x[1:].clamp(min=0)])
    loss = LOSSES[problem.loss]
    value = float(loss.value((B @ x).unsqueeze(1), problem.y).mean() + x @ ridge @ x / 2)
    value += search.price * sum(group.count for group in groups)
    inside = loss.project(nu.unsqueeze(1), problem.y).flatten()
    return _Master(value, inside, float(x[0]), list(x[1:].split(sizes)))


def _quadratic_program(P: Tensor, q: Tensor, rows: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """min x'Px / 2 + q'x with rows x <= right: x and the multipliers of the rows."""
    import clarabel
    from scipy import sparse

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.presolve_enable = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _QP_TOLERANCE
    solution = clarabel.DefaultSolver(
        sparse.triu(sparse.csc_matrix(P.numpy()), format="csc"), q.numpy(),
        sparse.csc_matrix(rows.numpy()), right.numpy(),
        [clarabel.NonnegativeConeT(len(right))], settings,
    ).solve()  # fmt: skip
    return torch.tensor(solution.x).double(), torch.tensor(solution.z).double()

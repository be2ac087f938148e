r"""Nodes whose curvature is moved in clusters of entities: the partition, and the engine.

With one block of D per entity the relaxation stays loose where many entities are half used and each can
stand in for a little of many others.  A block a cluster, with the exact minimum over the cluster's supports
(`bounds`), sees part of that; `cluster_newton` finds the best D.  Each node takes a few Newton steps
from its parent's D and u: both stay admissible when an entity leaves or is fixed to 1, and the bound
can only rise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spr_or.certified_solver.bounds import Terms, allowed, dual_bound, penalty_of, supports
from spr_or.certified_solver.cluster_newton import Clustered, ClusterPoint, maximise
from spr_or.certified_solver.design import Design, columns_of
from spr_or.certified_solver.node_threads import each_in_a_thread
from spr_or.certified_solver.nodes import Engine, Node

_COLUMNS, _ENTITIES = 24, 6  # at most, in a cluster
_DEAD = 0.5  # the curvature of a dead column, whose diagonal in Q is 1
_ROOM = 0.97  # of the curvature without clusters, where clusters begin


def partition(design: Design, y: Tensor) -> Tensor | None:
    """Entities (m, s) int64 that belong together at indicators y (N,), -1 where a cluster is smaller.

    The strength of a pair is how much of either's part of Q^{-1} the other explains, weighed by how
    undecided both are.  Swaps from the order of the data, at most N, while one raises the sum within
    clusters.  None where entities are too wide for clusters of two.  Q must be positive definite.
    """
    N, k, _ = design.shape
    size = min(_ENTITIES, _COLUMNS // k, N)
    if size < 2:
        return None
    count = -(-N // size)
    strength = y.new_zeros(count * size, count * size)  # those beyond N fill up
    strength[:N, :N] = _partial_correlation(design) * _undecided(y)
    place = torch.arange(count * size, device=y.device) // size
    for _ in range(N):
        inside = torch.nn.functional.one_hot(place, count).to(y)
        to_cluster = strength @ inside
        to_other = to_cluster[:, place]  # of i to the cluster of j
        own = to_other.diagonal()
        gain = to_other + to_other.mT - own.unsqueeze(1) - own - 2 * strength
        gain = gain.masked_fill(place.unsqueeze(1) == place, 0.0)
        best = int(gain.argmax())
        if float(gain.flatten()[best]) <= 1e-9 * float(strength.sum()):
            break
        i, j = divmod(best, count * size)
        place[i], place[j] = int(place[j]), int(place[i])
    members = place.argsort(stable=True).view(count, size)
    return torch.where(members < N, members, -1)


def _partial_correlation(design: Design) -> Tensor:
    """The squared norm of each block of Q^{-1} in units of the diagonal ones, (N, N), zero diagonal."""
    N, k, _ = design.shape
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(design.quadratic()))
    inverse = inverse.view(N, k, N, k).transpose(1, 2)
    own = inverse.diagonal(dim1=0, dim2=1).permute(2, 0, 1)
    L = torch.linalg.cholesky(own)
    half = torch.linalg.solve_triangular(L.unsqueeze(1).expand_as(inverse), inverse, upper=False)
    both = torch.linalg.solve_triangular(L.expand_as(inverse), half.mT, upper=False)
    return both.square().sum((-1, -2)).fill_diagonal_(0.0)


def _undecided(y: Tensor) -> Tensor:
    spread = (y * (1 - y)).clamp(min=0).sqrt()
    return spread.unsqueeze(1) * spread


class ClusterEngine:
    """Evaluates nodes of a squared loss with moments.

    ``clusters`` (m, s) are positions in the design, -1 for none; ``first`` evaluates nodes without a
    choice left; ``mu`` weighs the barrier, ``steps`` are Newton's steps at a node, and ``stop`` is asked
    before each.
    """

    def __init__(
        self,
        design: Design,
        clusters: Tensor,
        first: Engine,
        mu: float,
        steps: int,
        workers: int,
        stop: Callable[[], bool],
    ) -> None:
        self.design, self.clusters, self.first = design, clusters, first
        self.mu, self.steps, self.workers, self.stop = mu, steps, workers, stop
        m, s = clusters.shape
        k = design.shape[1]
        self.at = clusters.clamp(min=0)
        columns = columns_of(self.at, k).flatten()
        self.real = (design.real[self.at] & (clusters >= 0).unsqueeze(-1)).view(m, s * k)
        assert design.moments is not None
        self.Q = design.quadratic()[columns][:, columns]
        self.c = design.moments.C[columns]
        self.table = supports(s, clusters.device)

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        """As `nodes.Engine`."""
        closed = [node for node in nodes if not bool(node.free.any())]
        for node in closed:
            limit = self.design.M[node.position, None, None]
            node.W, node.d, node.clusters = node.W.clamp(-limit, limit), None, None
        if closed:
            self.first(closed, cutoff)
        open_ = [node for node in nodes if bool(node.free.any())]
        each_in_a_thread(self.evaluate, open_, self.workers)

    def begin(self, node: Node) -> None:
        """Turn a node whose curvature is moved entity by entity into one with clusters."""
        assert node.d is not None
        m, s = self.clusters.shape
        k = self.design.shape[1]
        D = self.Q.new_zeros(self.design.shape[0], k, k)
        own = node.d if node.d.dim() == 3 else torch.diag_embed(node.d)
        D[node.position] = _ROOM * own
        whole = self.Q.new_zeros(m, s, k, s, k)
        for slot in range(s):
            whole[:, slot, :, slot] = D[self.at[:, slot]]
        node.d, node.clusters = whole.view(m, s * k, s * k), self.clusters
        problem = self.problem(node)
        w = self.in_clusters(node, node.W.flatten(1)).view(m, s * k, -1)
        Rw = problem.Q @ w.flatten(0, 1) - (self.alone(node.d, problem) @ w).flatten(0, 1)
        node.slope = (2 * (problem.c - Rw)).view(m, s * k, -1)

    def alone(self, D: Tensor, problem: Clustered) -> Tensor:
        """D with dead columns on their own."""
        pair = problem.live.unsqueeze(-1) & problem.live.unsqueeze(-2)
        return torch.where(pair, D, 0.0) + _DEAD * torch.diag_embed((~problem.live).to(D))

    def in_clusters(self, node: Node, x: Tensor) -> Tensor:
        """x (n, any) of the node's entities in the order of the clusters, (m, s any), zero elsewhere."""
        everywhere = x.new_zeros(self.design.shape[0], x.shape[1])
        everywhere[node.position] = x
        return (everywhere[self.at] * (self.clusters >= 0).unsqueeze(-1)).flatten(1)

    def members(self, node: Node, of: Tensor) -> Tensor:
        """A flag (n,) of the node's entities for each place in the clusters, (m, s)."""
        return self.in_clusters(node, of.unsqueeze(-1).to(self.Q)) > 0

    def problem(self, node: Node) -> Clustered:
        """The node's quadratic, prices and supports."""
        k = self.design.shape[1]
        alive = self.members(node, torch.ones_like(node.one))
        live = self.real & alive.repeat_interleave(k, dim=1)
        flat = live.flatten()
        Q = torch.where(flat.unsqueeze(1) & flat, self.Q, torch.diag((~flat).to(self.Q)))
        assert self.design.moments is not None
        return Clustered(
            Q, torch.where(flat.unsqueeze(-1), self.c, 0.0), self.design.moments.c0, live,
            self.design.dear[self.at], self.table,
            allowed(self.table, alive, self.members(node, node.one)),
        )  # fmt: skip

    def evaluate(self, node: Node) -> None:
        """One node, in place."""
        problem = self.problem(node)
        assert node.d is not None and node.slope is not None
        start = torch.where(problem.live.unsqueeze(-1), node.slope, 0.0)
        point = maximise(
            problem, self.alone(node.d, problem), start, self.mu, self.steps, self.stop
        )
        self.store(node, problem, point)

    def store(self, node: Node, problem: Clustered, point: ClusterPoint) -> None:
        """Weights, bound, scores and indicators of what was found."""
        design, k = self.design, self.design.shape[1]
        keep = self.clusters >= 0
        order = self.clusters[keep]

        def by_entity(x: Tensor) -> Tensor:
            """(m, s, ...) in the order of the design."""
            ordered = torch.empty_like(x[keep])
            ordered[order] = x[keep]
            return ordered

        m, s = self.clusters.shape
        q = design.shape[2]
        found = point.w.view(m, s * k, q)
        w = by_entity(torch.where(problem.live.unsqueeze(-1), found, 0.0).view(m, s, k, q))
        Rw = problem.Q @ point.w - (point.D @ found).flatten(0, 1)
        value = (point.w * (Rw - 2 * problem.c)).sum() + problem.c0
        gradient = by_entity((2 * (Rw - problem.c)).view(m, s, k, q))
        one = torch.zeros(design.shape[0], dtype=torch.bool, device=w.device)
        free = one.clone()
        one[node.position], free[node.position] = node.one, node.free
        terms = Terms(
            point.D.unsqueeze(0), free.unsqueeze(0), one.unsqueeze(0), self.clusters.unsqueeze(0)
        )
        bound, score = dual_bound(
            penalty_of(design), value.unsqueeze(0), gradient.unsqueeze(0), w.unsqueeze(0), terms
        )  # fmt: skip
        used = point.pi @ self.table.to(point.pi)
        node.W, node.d, node.slope = w[node.position], point.D, point.u
        node.score, node.indicator = score[0, node.position], by_entity(used)[node.position]
        node.own = float(bound)
        node.bound = max(node.bound, node.own)

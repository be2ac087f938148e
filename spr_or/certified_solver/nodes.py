"""A node of the tree, and the evaluation of many at a time by the engine that fits the problem."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spr_or.certified_solver import block_curvature, node_fista
from spr_or.certified_solver.bounds import Terms
from spr_or.certified_solver.design import Design

_ITERATIONS = 100
_LAST_ITERATIONS = 300
_ROUNDS = 8
_CACHED = 640_000  # numbers in all matrices R of a batch, on the CPU
_WORTH_A_THREAD = 100  # columns
_PATIENCE = 64  # first-order nodes before the first curvature is moved: easy trees end earlier
_FIRST_STEPS = 6  # in d, where a node begins to move curvature


@dataclass(eq=False)
class Node:
    """Entities outside ``position`` are fixed to 0; of those inside, ``one`` are fixed to 1.

    position : (n,) int64 into the design; one : (n,) bool
    W : (n, k, q), the tangent point; d : the moved curvature or None, blocks (n, k, k) for one output, a
    diagonal (n, k) for several, blocks (m, s k, s k) with clusters
    clusters : (m, s) int64 into the design or None; slope : (m, s k), where a child starts
    own : the bound at the tangent point; bound : the best one known, of a parent or its own
    score (n,), indicator (n,) : as evaluated; record : its number in the proof
    fixed_at : the incumbent's objective when it was last looked for what can be fixed
    """

    position: Tensor
    one: Tensor
    W: Tensor
    d: Tensor | None
    own: float = -torch.inf
    bound: float = -torch.inf
    score: Tensor | None = None
    indicator: Tensor | None = None
    record: int = -1
    fixed_at: float = torch.inf
    clusters: Tensor | None = None
    slope: Tensor | None = None

    @property
    def free(self) -> Tensor:
        """(n,) bool."""
        return ~self.one

    def keep(self, kept: Tensor, one: Tensor) -> Node:
        """A node of the entities ``kept`` (n,) bool, with ``one`` (n,) fixed to 1."""
        d = self.d if self.d is None or self.clusters is not None else self.d[kept]
        y = None if self.indicator is None else self.indicator[kept]
        return Node(
            self.position[kept], one[kept], self.W[kept], d, self.own, self.bound, indicator=y,
            clusters=self.clusters, slope=self.slope,
        )  # fmt: skip


class Engine(Protocol):
    """Evaluates nodes in place: W, d, own, bound (never below the parent's), score, indicator."""

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        """Nodes whose bound passes ``cutoff`` need not be solved any further."""
        ...


class FirstOrderEngine:
    """`first_order.solve` for all nodes at a time, over the entities that any of them uses.

    The other entities only have to agree: those that would rather leave zero join, and the nodes that
    wanted them are solved again.
    """

    def __init__(self, design: Design, tolerance: float) -> None:
        self.design = design
        self.block = None if design.moments is not None else design.block()
        self.tolerance = tolerance

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        N, k, q = self.design.shape
        B = len(nodes)
        W = self.design.X.new_zeros((B, N, k, q))
        one = torch.zeros((B, N), dtype=torch.bool, device=W.device)
        free = one.clone()
        for b, node in enumerate(nodes):
            W[b, node.position] = node.W
            one[b, node.position] = node.one
            free[b, node.position] = node.free
        solved = self.solve(W, free, one, cutoff)
        bounds = solved.bound.tolist()
        for b, node in enumerate(nodes):
            at = node.position
            node.W, node.score = solved.W[b, at], solved.score[b, at]
            node.indicator, node.own = solved.indicator[b, at], bounds[b]
            node.bound = max(node.bound, node.own)

    def solve(self, W: Tensor, free: Tensor, one: Tensor, cutoff: float) -> node_fista.Solved:
        """Rounds over a growing working set."""
        terms = Terms(None, free, one)
        # Where nothing is left to branch on, accuracy alone can close the node.
        iterations = _ITERATIONS if bool(free.any()) else _LAST_ITERATIONS
        best = node_fista.evaluate(self.design, W, terms, self.block)
        missing = one | (W != 0).flatten(2).any(-1) | (free & (best.score > 0))
        working = missing.any(0).nonzero().flatten()
        for _ in range(_ROUNDS):
            if len(working) == 0:
                break
            small = self.design.restrict(working)
            if small.loss == "squared" and len(working) * small.shape[1] <= small.n:
                small = small.with_moments()
            block = None if small.moments is not None else small.block()
            # The others hold no weights and gain nothing: what is known of all is known of these.
            start = node_fista.Solved(
                best.W[:, working], best.bound.clone(), best.score[:, working],
                best.indicator[:, working], best.value.clone(),
            )  # fmt: skip
            part = node_fista.solve(
                small, start.W, Terms(None, free[:, working], one[:, working]), start=start,
                smoothness=node_fista.lipschitz(small, block), block=block, cutoff=cutoff,
                tolerance=0.5 * self.tolerance, iterations=iterations,
            )  # fmt: skip
            W = torch.zeros_like(W)
            W[:, working] = part.W
            best = node_fista.better(best, node_fista.evaluate(self.design, W, terms, self.block))
            done = node_fista.done(best, self.tolerance, cutoff)
            missing = free & (best.score > 0) & ~done.unsqueeze(-1)
            missing[:, working] = False
            if not bool(missing.any()):
                break
            working = torch.cat([working, missing.any(0).nonzero().flatten()])
        return best


class SplitEngine:
    """`splitting.evaluate` on the entities each node has left."""

    def __init__(
        self, design: Design, mu: float, steps: int, curvature_one: float, workers: int = 1
    ) -> None:
        self.design, self.mu, self.steps = design, mu, steps
        self.curvature_one, self.workers = curvature_one, workers

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        if self.design.X.device.type != "cpu":
            return self.evaluate(nodes)
        # Of one size, and few enough that their matrices stay in the cache; a thread a core.
        ordered = sorted(nodes, key=lambda node: len(node.position))
        columns = max(1, len(ordered[-1].position)) * self.design.shape[1]
        count = max(1, min(_CACHED // columns**2, -(-len(ordered) // self.workers)))
        chunks = [ordered[i : i + count] for i in range(0, len(ordered), count)]
        if len(chunks) == 1 or self.workers == 1 or columns < _WORTH_A_THREAD:
            for chunk in chunks:
                self.evaluate(chunk)
            return None
        with ThreadPoolExecutor(self.workers) as pool:
            list(pool.map(self.evaluate, chunks))
        return None

    def evaluate(self, nodes: Sequence[Node]) -> None:
        """All at once, as one batch."""
        batch = self.gather(nodes)
        quadratic = block_curvature.quadratic_of(self.design, batch.position, batch.present)
        split = block_curvature.evaluate(quadratic, batch, self.mu, self.steps)
        bounds = split.bound.tolist()
        for b, node in enumerate(nodes):
            n = len(node.position)
            node.W, node.d = split.w[b, :n].unsqueeze(-1), split.D[b, :n]
            node.score, node.indicator = split.score[b, :n], split.indicator[b, :n]
            node.own = bounds[b]
            node.bound = max(node.bound, node.own)

    def gather(self, nodes: Sequence[Node]) -> block_curvature.Nodes:
        """Pad the nodes to the longest one."""
        B, n, k = len(nodes), max(1, *(len(node.position) for node in nodes)), self.design.shape[1]
        X = self.design.X
        position = torch.zeros((B, n), dtype=torch.int64, device=X.device)
        present = torch.zeros((B, n), dtype=torch.bool, device=X.device)
        one = present.clone()
        y = X.new_full((B, n), 0.5)
        half = 0.5 * torch.eye(k, dtype=X.dtype, device=X.device)
        D = half.repeat(B, n, 1, 1)
        for b, node in enumerate(nodes):
            m = len(node.position)
            position[b, :m], present[b, :m], one[b, :m] = node.position, True, node.one
            assert node.d is not None
            if node.indicator is not None:
                y[b, :m] = node.indicator
            # Fixed entities need no moved curvature: what they give back, the free ones can use.
            share = (self.curvature_one / node.d.flatten(1).norm(dim=-1)).clamp(max=1.0)
            share = torch.where(node.one, share, 1.0)
            D[b, :m] = share[:, None, None] * node.d
        real = self.design.real[position] & present.unsqueeze(-1)
        D = torch.where(real.unsqueeze(-1) & real.unsqueeze(-2), D, half)
        return block_curvature.Nodes(position, present, present & ~one, one, y, D)


class MixedEngine:
    """First-order while a node is large, and the split once it has at most ``columns`` columns."""

    def __init__(self, first: FirstOrderEngine, split: SplitEngine, columns: int) -> None:
        self.first, self.split, self.columns = first, split, columns
        self.patience = _PATIENCE

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        plain = [node for node in nodes if node.d is None]
        if plain:
            self.first(plain, cutoff)
        k = self.split.design.shape[1]
        self.patience -= len(plain)
        for node in plain if self.patience < 0 else []:
            if node.bound < cutoff and len(node.position) * k <= self.columns:
                self.try_split(node, cutoff)
        split = [node for node in nodes if node.d is not None and node not in plain]
        if split:
            self.split(split, cutoff)

    def try_split(self, node: Node, cutoff: float) -> None:
        """Begin to move curvature at this node, if its matrix allows that and the bound gains."""
        design = self.split.design
        Q = block_curvature.quadratic_of(
            design, node.position.unsqueeze(0), torch.ones_like(node.one).unsqueeze(0)
        ).Q[0]
        if Q.shape[0] == 0 or not bool(node.free.any()):
            return
        values = torch.linalg.eigvalsh(Q)
        if float(values[0]) <= 1e-8 * float(values[-1]):
            return
        trial = node.keep(torch.ones_like(node.one), node.one)
        trial.d = block_curvature.uniform(design, len(node.position), 0.9 * float(values[0]))
        SplitEngine(design, self.split.mu, _FIRST_STEPS, self.split.curvature_one)([trial], cutoff)
        if trial.own > node.own:
            node.W, node.d, node.own, node.bound = trial.W, trial.d, trial.own, trial.bound
            node.score, node.indicator = trial.score, trial.indicator

"""A node of the tree, what an engine is, and the first-order engine, which fits every problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spr_or.certified_solver import node_fista
from spr_or.certified_solver.bounds import Terms
from spr_or.certified_solver.design import Design

_ITERATIONS = 100
_LAST_ITERATIONS = 300
_ROUNDS = 8


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
        at = kept.nonzero().squeeze(1)

        def left(x: Tensor) -> Tensor:
            return x if len(at) == len(kept) else x.index_select(0, at)

        d = self.d if self.d is None or self.clusters is not None else left(self.d)
        y = None if self.indicator is None else left(self.indicator)
        return Node(
            left(self.position), left(one), left(self.W), d, self.own, self.bound, indicator=y,
            clusters=self.clusters, slope=self.slope,
        )  # fmt: skip


class Engine(Protocol):
    """Evaluates nodes in place: W, d, own, bound (never below the parent's), score, indicator."""

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        """Nodes whose bound passes ``cutoff`` need not be solved any further."""
        ...


class FirstOrderEngine:
    """`node_fista.solve` for all nodes at a time, over the entities that any of them uses.

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

    def solve(self, W: Tensor, free: Tensor, one: Tensor, cutoff: float) -> node_fista.NodeAnswers:
        """Rounds over a growing working set."""
        terms = Terms(None, free, one)
        # Where nothing is left to branch on, only accuracy can close the node.
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
            # The others hold no weights and gain nothing: what is known of all is known of these.
            start = node_fista.NodeAnswers(
                best.W[:, working], best.bound.clone(), best.score[:, working],
                best.indicator[:, working], best.value.clone(),
            )  # fmt: skip
            part = node_fista.solve(
                node_fista.smooth_part(small), start.W,
                Terms(None, free[:, working], one[:, working]), start=start, cutoff=cutoff,
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

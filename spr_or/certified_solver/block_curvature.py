"""Nodes whose curvature is moved entity by entity: how they are batched, and their engines.

Nodes have different entities left.  A batch pads them to the longest one, and `block_newton` finds the
best curvature D for all of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spr_or.certified_solver.block_newton import BlockNodes, Quadratic, evaluate
from spr_or.certified_solver.bounds import penalty_of
from spr_or.certified_solver.design import Design, columns_of
from spr_or.certified_solver.node_threads import each_in_a_thread
from spr_or.certified_solver.nodes import FirstOrderEngine, Node

_CACHED = 640_000  # numbers in all matrices R of a batch, on the CPU
_WORTH_A_THREAD = 100  # columns
_PATIENCE = 64  # first-order nodes before the first curvature is moved: easy trees end earlier
_SAMPLE = 4  # nodes that are tried first
_WORTH = 0.5  # of what a node's bound lacks: less gained does not pay for a dearer tree
_SPARED = 0.9  # of the largest equal share of all columns' curvature, where a node begins
_SINGULAR = 1e-8
_FIRST_STEPS = 6  # in d, where a node begins to move curvature


class SplitEngine:
    """`block_newton.evaluate` on the entities that each node has left."""

    def __init__(
        self, design: Design, mu: float, steps: int, curvature_one: float, workers: int = 1
    ) -> None:
        self.design, self.mu, self.steps = design, mu, steps
        self.curvature_one, self.workers = curvature_one, workers

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        if self.design.X.device.type != "cpu":
            return self.evaluate(nodes)
        # Of one size, and few enough that their matrices stay in the cache; one thread per core.
        ordered = sorted(nodes, key=lambda node: len(node.position))
        columns = max(1, len(ordered[-1].position)) * self.design.shape[1]
        count = max(1, min(_CACHED // columns**2, -(-len(ordered) // self.workers)))
        chunks = [ordered[i : i + count] for i in range(0, len(ordered), count)]
        if len(chunks) == 1 or self.workers == 1 or columns < _WORTH_A_THREAD:
            for chunk in chunks:
                self.evaluate(chunk)
            return None
        return each_in_a_thread(self.evaluate, chunks, self.workers)

    def evaluate(self, nodes: Sequence[Node]) -> None:
        """All at once, as one batch."""
        batch = self.gather(nodes)
        quadratic = quadratic_of(self.design, batch.position, batch.present)
        split = evaluate(quadratic, batch, self.mu, self.steps)
        bounds = split.bound.tolist()
        for b, node in enumerate(nodes):
            n = len(node.position)
            node.W, node.d = split.w[b, :n].unsqueeze(-1), split.D[b, :n]
            node.score, node.indicator = split.score[b, :n], split.indicator[b, :n]
            node.own = bounds[b]
            node.bound = max(node.bound, node.own)

    def gather(self, nodes: Sequence[Node]) -> BlockNodes:
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
        return BlockNodes(position, present, present & ~one, one, y, D)


class MixedEngine:
    """First-order while a node is large, and the split once it has at most ``columns`` columns."""

    def __init__(self, first: FirstOrderEngine, split: SplitEngine, columns: int) -> None:
        self.first, self.split, self.columns = first, split, columns
        self.patience = self.wait = _PATIENCE
        self.sample = _SAMPLE

    def __call__(self, nodes: Sequence[Node], cutoff: float) -> None:
        plain = [node for node in nodes if node.d is None]
        split = [node for node in nodes if node.d is not None]
        if plain:
            self.first(plain, cutoff)
        k = self.split.design.shape[1]
        self.patience -= len(plain)
        if self.patience < 0:
            small = [node for node in plain if len(node.position) * k <= self.columns]
            promising = [node for node in small if node.bound < cutoff]
            self.try_split(promising[: self.sample], cutoff)
        if split:
            self.split(split, cutoff)

    def try_split(self, nodes: Sequence[Node], cutoff: float) -> None:
        """Begin to move curvature at those nodes whose matrix allows that and whose bound gains.

        Where few gain, the next nodes to try wait, longer each time.
        """
        tried = [(node, trial) for node in nodes if (trial := self.trial(node)) is not None]
        if not tried:
            return
        SplitEngine(self.split.design, self.split.mu, _FIRST_STEPS, self.split.curvature_one)(
            [trial for _, trial in tried], cutoff
        )
        gained = 0
        for node, trial in tried:
            if trial.own < node.own + _WORTH * (cutoff - node.own):
                continue
            gained += 1
            node.W, node.d, node.own, node.bound = trial.W, trial.d, trial.own, trial.bound
            node.score, node.indicator = trial.score, trial.indicator
        if 2 * gained >= len(tried):
            self.sample *= 2
        else:
            self.wait *= 2
            self.patience, self.sample = self.wait, _SAMPLE

    def trial(self, node: Node) -> Node | None:
        """The same node with as much curvature moved as every column can spare; None if that is none."""
        if not bool(node.free.any()):
            return None
        trial = node.keep(torch.ones_like(node.one), node.one)
        trial.d = spare_curvature(self.split.design, node.position)
        return None if trial.d is None else trial


def quadratic_of(design: Design, position: Tensor, present: Tensor) -> Quadratic:
    """Gather the quadratic of each node's entities."""
    assert design.moments is not None
    G, C, c0 = design.moments
    k = design.columns.shape[1]
    B, n = position.shape
    flat = columns_of(position, k).flatten(1)
    real = (design.real[position] & present.unsqueeze(-1)).view(B, n * k)
    pair = real.unsqueeze(-1) & real.unsqueeze(-2)
    Q = torch.where(pair, G[flat.unsqueeze(-1), flat.unsqueeze(-2)], 0.0)
    ridge = design.ridge[position].repeat_interleave(k, dim=-1)
    Q.diagonal(dim1=-2, dim2=-1).add_(torch.where(real, ridge, 1.0))
    c = torch.where(real, C[flat].squeeze(-1), 0.0)
    return Quadratic(Q, c, c0, real.view(B, n, k), penalty_of(design, position))


def spare_curvature(design: Design, position: Tensor) -> Tensor | None:
    """Curvature for the entities at ``position`` (n,) to begin with, (n, k, k): the same share of each
    column's own, which leaves a definite rest.  None where that is nothing, or where the loss is flat along
    some weights for want of samples: then hardly more than the ridge can be moved."""
    small = design.restrict(position)
    Q = small.quadratic()
    own = Q.diagonal()
    if len(own) == 0 or int(small.real.sum()) > len(design.Y) or not bool((own > 0).all()):
        return None
    scale = own.rsqrt()
    least = float(torch.linalg.eigvalsh(scale.unsqueeze(1) * Q * scale)[0])
    if least <= _SINGULAR:
        return None
    return torch.diag_embed((_SPARED * least * own).view(small.columns.shape))

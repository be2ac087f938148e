"""The tree search: best-first with dives, safe fixing, incumbents, and the proof as it grows."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spr_or.certified_solver import incumbents, node_fista
from spr_or.certified_solver.bounds import Terms, forced_bounds
from spr_or.certified_solver.design import Design
from spr_or.certified_solver.incumbents import Incumbent
from spr_or.certified_solver.nodes import Engine, Node
from spr_or.proof.certificate import SearchProgress
from spr_or.proof.tree import CONTINUES, Proof
from spr_or.solvers.time_limit import TimeLimit

_DIVE_EVERY = 8
_WIDE = 12  # moves of each kind, of a local search; 6 found less on one hard instance, 24 no more
GRAM_COLUMNS = 2000  # up to here a Gram matrix of what is left pays


@dataclass
class Search:
    """The state of one search; nodes are numbered as ``design``, ``best`` as the whole problem.

    ``closed`` is the least bound of anything cut off so far: leaves, and the other side of every
    safe fixing.  ``kept`` is what stays when the tree begins again: how many entities the root had fixed
    to zero and to one when the design shrank to the others, and ``closed`` at that time.
    ``stop`` is asked after every round, and ``stopped`` is what it answered.  ``tried`` holds the
    entities of ``design`` that nodes were rounded to, before the rules were obeyed.  ``noise`` is what the
    arithmetic of the search cannot tell two objectives apart by.
    """

    design: Design
    clock: TimeLimit
    gap: float
    proof: Proof
    best: Incumbent
    listener: Callable[[SearchProgress], None] | None = None
    stop: Callable[[], bool] = lambda: False
    stopped: bool = False
    closed: float = math.inf
    evaluated: int = 0
    heap: list[tuple[float, int, Node]] = field(default_factory=list)
    trace: list[SearchProgress] = field(default_factory=list)
    mid_round: bool = False
    kept: tuple[int, int, float] = (0, 0, math.inf)
    counter: itertools.count = field(default_factory=itertools.count)
    tried: set[bytes] = field(default_factory=set)
    noise: float = 0.0

    @property
    def wanted(self) -> float:
        """The gap asked for, as a difference of objectives."""
        return max(self.gap * abs(self.best.objective), self.noise)

    @property
    def cutoff(self) -> float:
        """Nodes at or above it cannot improve the incumbent by more than the gap asked for."""
        return self.best.objective - 0.9 * self.wanted

    @property
    def progress(self) -> SearchProgress:
        """Where it stands."""
        return SearchProgress(
            self.clock.seconds, self.best.objective, self.bound, self.evaluated, len(self.heap)
        )

    @property
    def bound(self) -> float:
        """Proven so far; no objective is below 0."""
        open_bound = self.heap[0][0] if self.heap else math.inf
        return min(max(min(self.closed, open_bound), 0.0), self.best.objective)

    @property
    def over(self) -> bool:
        """Whether nothing is open, or the search has to end."""
        return not self.heap or self.halted()

    def halted(self) -> bool:
        """Whether the time is up, or ``stop`` ended the search."""
        return self.stopped or self.clock.spent

    def report(self) -> None:
        """End a round: note the progress, pass it on, and ask whether to stop."""
        self.mid_round = False
        now = self.progress
        self.trace.append(now)
        with torch.inference_mode(False):  # the caller's functions may do what they like
            if self.listener is not None:
                self.listener(now)
            self.stopped = self.stopped or self.stop()

    def offer(self, found: Incumbent) -> bool:
        """Take an incumbent of the current design if it is better."""
        better = found.objective < self.best.objective and self.design.allow(found.support)
        if better:
            self.best = enlarge(found, self.design, self.best.support.shape[0])
        return better

    def fix(self, node: Node) -> Node:
        """Safe fixing of an evaluated node; what was fixed goes into the proof."""
        if self.design.rules is not None:
            kept, one, _ = self.implied(node, torch.ones_like(node.one), node.one)
            if not (bool(kept.all()) and bool((one == node.one).all())):
                node = _narrowed(node, kept, one)
        assert node.score is not None
        node.fixed_at = self.best.objective
        one_bound, zero_bound = forced_bounds(node.own, node.score)
        free, cutoff = node.free, self.cutoff
        # A node is below the cutoff, so that at most one of both sides is not.
        far = torch.maximum(one_bound, zero_bound)
        decided = (far >= cutoff) & free
        at = decided.nonzero().squeeze(1)
        if len(at) == 0:
            return node
        self.closed = min(self.closed, float(far[at].min()))
        to_one = (zero_bound >= cutoff) & free
        side = to_one[at]
        entities = self.design.entities[node.position[at]]
        self.proof.fix(node.record, entities[~side], entities[side])
        kept, one, possible = self.implied(node, ~decided | to_one, node.one | to_one)
        fixed = _narrowed(node, kept, one)
        if not possible:
            fixed.bound = math.inf
            self.record(fixed, node.record, CONTINUES)
        return fixed

    def implied(self, node: Node, kept: Tensor, one: Tensor) -> tuple[Tensor, Tensor, bool]:
        """What the rules imply where only the entities ``kept`` (n,) of a node can be used and those at
        ``one`` (n,) are: both with what follows, and whether any solution is left."""
        rules = self.design.rules
        if rules is None:
            return kept, one, True
        entities = self.design.entities[node.position].cpu()
        alive, at_one = torch.zeros_like(rules.required), torch.zeros_like(rules.required)
        alive[entities[kept.cpu()]] = True
        at_one[entities[one.cpu()]] = True
        alive, at_one, possible = rules.close(alive, at_one)
        return alive[entities].to(kept.device), at_one[entities].to(one.device), possible

    def record(self, node: Node, parent: int, value: int) -> None:
        """Write an evaluated node into the proof, as side ``value`` of its parent."""
        entities = self.design.entities[node.position]
        d, clusters = node.d, node.clusters
        if d is not None and clusters is not None:
            left = torch.isin(clusters, node.position).any(1)  # the others say nothing
            d, clusters = d[left], clusters[left]
            clusters = torch.where(clusters >= 0, self.design.entities[clusters], -1)
        elif d is not None and d.shape[1:] == (1, 1):
            d = d.squeeze(-1)  # a diagonal takes the check less time than blocks
        node.record = self.proof.add(parent, value, entities, node.W, d, clusters)

    def push(self, node: Node) -> None:
        """Keep a node open, or close it where it cannot improve."""
        if node.bound >= self.cutoff:
            self.closed = min(self.closed, node.bound)
        else:
            heapq.heappush(self.heap, (node.bound, next(self.counter), node))

    def open(self, node: Node) -> None:
        """Make ``node`` the only open one: it continues the one that was."""
        self.heap.clear()
        self.push(node)

    def shrink(self, node: Node) -> None:
        """Go on with the entities of ``node``, the only open one; the others it has fixed to zero."""
        top = self.proof.records[0]
        self.kept = (len(top.zeros), len(top.ones), self.closed)
        self.design = self.design.restrict(node.position)
        if self.design.loss == "squared" and self.design.real.numel() <= GRAM_COLUMNS:
            self.design = self.design.with_moments()
        node.position = torch.arange(len(node.position), device=node.position.device)
        self.tried.clear()

    def take(self, batch: int, round_number: int) -> list[Node]:
        """The most promising open nodes, every few rounds the deepest one among them."""
        taken: list[Node] = []
        if round_number % _DIVE_EVERY == 0 and self.heap:
            place = min(range(len(self.heap)), key=lambda i: int(self.heap[i][2].free.sum()))
            taken.append(self.heap.pop(place)[2])
            heapq.heapify(self.heap)
        while self.heap and len(taken) < batch:
            bound, _, node = heapq.heappop(self.heap)
            if bound >= self.cutoff:
                self.closed = min(self.closed, bound)
            else:
                taken.append(node)
        return taken

    def round_support(self, node: Node) -> list[Tensor]:
        """Supports suggested by a node that were not tried before: its indicators cut at two thresholds."""
        assert node.indicator is not None
        N, X = self.design.shape[0], self.design.X
        supports = []
        for threshold in (0.5, 0.2):
            used = node.position[node.indicator > threshold]
            key = used.cpu().numpy().tobytes()
            if key in self.tried:
                continue
            self.tried.add(key)
            support = torch.zeros(N, dtype=torch.bool, device=X.device)
            support[used] = True
            if self.design.rules is not None:
                promise = X.new_zeros(N)
                promise[node.position] = node.indicator
                support = self.design.mend(support, promise)
            supports.append(support)
        return supports

    def run(self, engine: Engine, batch: int, nodes: float = math.inf) -> None:
        """Branch until the gap is closed, the search is halted, or ``nodes`` more are evaluated."""
        last = self.evaluated + nodes
        each = 0.0
        for round_number in itertools.count(1):
            if self.over or self.evaluated >= last:
                break
            self.mid_round = True
            began = self.clock.seconds
            # The nodes that fit into the time left, by what one of the last round took.
            room = self.clock.left() / each if each else math.inf
            taken = self.take(int(max(1, min(batch, room))), round_number)
            parents = []
            for node in taken:
                if node.fixed_at > self.best.objective:
                    node = self.fix(node)
                if node.bound >= self.cutoff:
                    self.closed = min(self.closed, node.bound)
                elif bool(node.free.any()):
                    parents.append(node)
                else:
                    self.close_fixed(node, engine)
            if parents:
                self.branch(parents, engine)
            each = (self.clock.seconds - began) / max(1, len(taken))
            self.report()

    def search_wider(self) -> None:
        """Search around the incumbent once more, among more moves: a tree that grows is worth it."""
        at = self.design.entities
        support = self.best.support[at]
        if int(support.sum()) < int(self.best.support.sum()):
            return  # it cannot be written in what is left: safe fixing keeps only better ones
        here = Incumbent(self.best.objective, support, self.best.W[at])
        self.offer(incumbents.local_search(self.design, here, self.halted, width=_WIDE))

    def along(self, node: Node, path: Sequence[float], engine: Callable[[float], Engine]) -> Node:
        """``node`` solved for one weight of the barrier after the other: the best answer, or ``node``.

        Each counts as one node: a bound counts only with the point that proves it.
        """
        best = node
        for factor in path:
            node = node.keep(torch.ones_like(node.one), node.one)
            node.own = node.bound = -math.inf
            engine(factor)([node], self.cutoff)
            best = node if node.own > best.own else best
            if self.halted():
                break
        return best

    def begin_again(self, node: Node) -> None:
        """Forget the tree below the root, and go on with ``node``, a better answer to the root."""
        self.mid_round = True
        del self.proof.records[1:]
        top = self.proof.records[0]
        zeros, ones, self.closed = self.kept
        top.zeros, top.ones, top.branch = top.zeros[:zeros], top.ones[:ones], -1
        self.record(node, 0, CONTINUES)
        self.open(self.fix(node))
        self.report()

    def branch(self, parents: list[Node], engine: Engine) -> None:
        """Evaluate both sides of the most fractional entity of each parent, look for incumbents at
        them, then open or close them."""
        indices = [_most_fractional(parent) for parent in parents]
        sides = [
            (self.child(parent, index, 0), self.child(parent, index, 1))
            for parent, index in zip(parents, indices, strict=True)
        ]
        children = [child for pair in sides for child in pair if child.bound < math.inf]
        if children:
            engine(children, self.cutoff)
        self.evaluated += len(children)
        self.try_rounding(children)
        for parent, index, pair in zip(parents, indices, sides, strict=True):
            self.proof.branch(parent.record, int(self.design.entities[parent.position[index]]))
            for value, child in enumerate(pair):
                self.record(child, parent.record, value)
                self.settle(child)

    def child(self, parent: Node, index: int, value: int) -> Node:
        """The side ``value`` of a branching; its bound is infinite where no solution obeys the rules."""
        kept, one = torch.ones_like(parent.one), parent.one.clone()
        if value == 0:
            kept[index] = False
        else:
            one[index] = True
        kept, one, possible = self.implied(parent, kept, one)
        child = parent.keep(kept, one)
        if not possible:
            child.bound = math.inf
        return child

    def settle(self, node: Node) -> None:
        """Fix what an evaluated and recorded node can, and keep it open or close it."""
        self.push(node if node.bound >= self.cutoff else self.fix(node))

    def close_fixed(self, node: Node, engine: Engine) -> None:
        """A node whose last entity was fixed: evaluate it once more, now without a choice."""
        last = node.keep(torch.ones_like(node.one), node.one)
        engine([last], math.inf)
        self.evaluated += 1
        support = torch.zeros(self.design.shape[0], dtype=torch.bool, device=self.design.X.device)
        support[node.position] = True
        small = self.design.restrict(node.position)
        terms = Terms(None, last.free.unsqueeze(0), last.one.unsqueeze(0))
        # Without a ridge a bound is as good as its point: the polished one may be better.
        for polish in (_quickly, incumbents.in_box):
            found = polish(self.design, support)
            self.offer(found)
            W = found.W[node.position]
            at = node_fista.evaluate(small, W.unsqueeze(0), terms, None)
            if float(at.bound) > last.own:
                last.W, last.d, last.clusters, last.own = W, None, None, float(at.bound)
                last.bound = max(last.bound, last.own)
            if last.bound >= self.cutoff:
                break
        self.record(last, node.record, CONTINUES)
        self.closed = min(self.closed, last.bound)

    def try_rounding(self, children: list[Node]) -> None:
        """Polish what the children round to, and search around what improves."""
        fresh = []
        for child in children:
            if child.bound >= self.cutoff:
                continue
            fresh += [s for s in self.round_support(child) if self.design.allow(s)]
        if fresh:
            found = min(incumbents.polish(self.design, fresh), key=lambda x: x.objective)
            if self.offer(found):
                self.offer(incumbents.local_search(self.design, found, self.halted))


def _most_fractional(node: Node) -> int:
    """The index within the node of the free entity whose indicator is nearest to 1/2."""
    assert node.indicator is not None
    distance = (node.indicator - 0.5).abs()
    return int(torch.where(node.free, -distance, -torch.inf).argmax())


def _quickly(design: Design, support: Tensor) -> Incumbent:
    return incumbents.polish(design, [support])[0]


def _narrowed(node: Node, kept: Tensor, one: Tensor) -> Node:
    """An evaluated node with only the entities ``kept`` (n,), those at ``one`` (n,) fixed to 1."""
    assert node.score is not None and node.indicator is not None
    narrowed = node.keep(kept, one)
    narrowed.record, narrowed.score = node.record, node.score[kept]
    narrowed.fixed_at = node.fixed_at
    narrowed.indicator = torch.where(one & ~node.one, 1.0, node.indicator)[kept]
    return narrowed


def enlarge(found: Incumbent, design: Design, count: int) -> Incumbent:
    """An incumbent of a design in the numbering of the problem's ``count`` entities."""
    support = torch.zeros(count, dtype=torch.bool, device=design.X.device)
    W = design.X.new_zeros((count, *found.W.shape[1:]))
    support[design.entities] = found.support
    W[design.entities] = found.W
    return Incumbent(found.objective, support, W)

r"""A certified solver for group-sparse linear models: branch and bound on the projected relaxation.

Squared loss (one or many outputs), logistic and Poisson loss.  The steps, each in a file of
`spr_or.certified_solver`: the relaxation over all entities by a working set (`root`), incumbents
(`incumbents`), safe fixing (`bounds`), and on what is left a best-first tree (`search`) whose nodes are
solved many at a time, with moved curvature where the loss has some (`block_curvature`; `clusters` where a
tree stays open), else by an accelerated proximal gradient method (`node_fista`).
docs/explanation/solver.md has the mathematics and the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spr_or import __version__
from spr_or.certified_solver import (
    clusters,
    column_nodes,
    incumbents,
    many_outputs,
    root,
    tree_size,
)
from spr_or.certified_solver.block_curvature import MixedEngine, SplitEngine, spare_curvature
from spr_or.certified_solver.column_nodes import ColumnEngine
from spr_or.certified_solver.design import Design, design_of, theta_of, weights_of
from spr_or.certified_solver.nodes import Engine, FirstOrderEngine, Node
from spr_or.certified_solver.search import Search
from spr_or.formulations.certificate import Certificate
from spr_or.formulations.checked_input import finite_array
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.formulations.support_rules import NoSupportLeft
from spr_or.proof.certificate import ProofCertificate, SearchProgress
from spr_or.proof.check import VANISHING, ProofCheck, Stated, check, prove
from spr_or.proof.data import data_of
from spr_or.proof.losses import size_at_zero
from spr_or.proof.tree import CONTINUES, Proof
from spr_or.solvers.certificate import Solved, certify
from spr_or.solvers.time_limit import TimeLimit

# Of the loss at zero, that a stated bound lies below the proven one: usually, and at the least; and how many
# times what was measured.
_SPARE, _LEAST_SPARE, _MEASURED = 1e-12, 1e-15, 100
_NOISE = 1e-15  # of the loss at zero, in the values that the search computes
_CANDIDATES = 200  # entities the first local search looks at
_SPLIT_COLUMNS = 600  # above, one semidefinite step costs more than it brings
_MIXED_COLUMNS = 60  # below, the split pays in any case
_PATH = (100.0, 10.0, 1.0)  # of the barrier at the root, in units of its last value
_ROOT_STEPS, _NODE_STEPS = 15, 1
_BATCH = {"cpu": 32, "cuda": 256}
_TRIAL = 1500  # first-order nodes, at most, before curvature is moved at every node
_DEARER = 16  # what such a node costs, in first-order nodes
_DEARER_COLUMNS = 2  # the same of single columns, where only the root looks for its curvature
_SPLIT_TRIAL = 100  # nodes with curvature moved entity by entity, before it is in clusters
_CLUSTER_PATH = (100.0, 50.0, 25.0, 12.0, 6.0, 3.0, 1.5)
_CLUSTER_ROOT_STEPS, _CLUSTER_NODE_STEPS = 30, 2
_CLUSTER_OUTPUTS = (
    12  # at most: each cluster has a Newton system with as many slopes for each column
)


def branch_and_bound(
    problem: SparseTrainingProblem,
    gap: float = 1e-4,
    time_limit: float | None = None,
    node_batch: int | None = None,
    device: str | torch.device = "cpu",
    *,
    start: Tensor | None = None,
    relaxed: Tensor | None = None,
    progress: Callable[[SearchProgress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ProofCertificate:
    """Solve a linear problem to a proven relative gap.

    Parameters
    ----------
    problem : linear, squared, logistic or poisson loss
    gap : relative, (objective - bound) / |objective|
    time_limit : seconds of wall-clock time, or None; what is running when it ends is finished
    node_batch : nodes branched on at a time (default: 32 on the CPU, 256 on an accelerator); with curvature
        in clusters as many as there are threads
    device : where the node computations run; float64 throughout
    start : weights (P,) to begin with, such as the solution for a neighbouring lambda
    relaxed : weights (P,) near the solution of the relaxation, where its own search begins
    progress : called with a `SearchProgress` after every round
    stop : asked after every round; True ends the search

    Ctrl-C, the time limit and ``stop`` return the best so far with its proven gap.  Raises ``ValueError`` for
    networks, other losses, and arguments out of range.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=0.1, alpha=0.5, M=4)
    >>> certificate = branch_and_bound(p)
    >>> certificate.status, certificate.indicators.tolist(), certificate.check().ok
    ('optimal', [1.0, 0.0], True)
    """
    if not 0 <= gap < math.inf:
        raise ValueError(f"gap must be a number of at least 0, got {gap}")
    if node_batch is not None and node_batch < 1:
        raise ValueError(f"node_batch must be at least 1, got {node_batch}")
    if start is not None:
        start = _checked_start(problem, start, "start")
    if relaxed is not None:
        relaxed = _checked_start(problem, relaxed, "relaxed")
    clock = TimeLimit(time_limit)
    design = design_of(problem, device)
    data_of(problem)  # refuses numbers that the check would refuse
    batch = node_batch or _BATCH.get(torch.device(device).type, 256)
    # Small matrices: the threads torch would use inside an operation serve whole batches of nodes.
    workers = torch.get_num_threads()
    with _threads(1):
        search = Search(
            design, clock, gap, Proof(), without_more(design), progress, stop,
            noise=_NOISE * size_at_zero(problem),
        )  # fmt: skip
        try:
            # Nothing is differentiated, and small kernels take less time without autograd's books.
            with torch.inference_mode():
                _offer_start(search, problem, start)
                near = None if relaxed is None else weights_of(problem, design, relaxed)
                _solve(search, batch, workers, near)
            status = "interrupted" if search.stopped else "time_limit"
        except KeyboardInterrupt:
            status = "interrupted"
        except torch.linalg.LinAlgError:
            status = (
                "inexact"  # too ill-conditioned to go on; the tree so far proves what it proves
            )
        on_cpu = design.X.device.type == "cpu"
        return _certificate(problem, design if on_cpu else design_of(problem), search, status)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def without_more(design: Design) -> incumbents.Incumbent:
    """The solution without entities but those required; where that one does not count, the best of the next
    larger ones."""
    supports = [design.must()]
    promise = design.X.new_zeros(len(supports[0]))
    singles = torch.eye(len(promise), dtype=torch.bool, device=promise.device)
    while supports:
        allowed = [support for support in supports if design.allow(support)]
        if allowed:
            return min(incumbents.polish(design, allowed), key=lambda x: x.objective)
        larger = [design.mend(s | one, promise) for s in supports for one in singles]
        unique = {tuple(support.tolist()): support for support in larger}
        supports = [s for s in unique.values() if all(not torch.equal(s, old) for old in supports)]
    raise NoSupportLeft("every support that obeys the rules is forbidden")


def _checked_start(problem: SparseTrainingProblem, start: Any, name: str) -> Tensor:
    """``start`` as float64 (P,), whatever kind of array it is; ``ValueError`` for another shape."""
    weights = finite_array(start, name)
    if weights.shape != (problem.entities.n_parameters,):
        raise ValueError(
            f"{name} must have shape ({problem.entities.n_parameters},), one number for each weight, "
            f"got {tuple(weights.shape)}"
        )
    return weights


def _offer_start(search: Search, problem: SparseTrainingProblem, start: Tensor | None) -> None:
    """Search around the support of ``start``, if given."""
    if start is not None:
        W = weights_of(problem, search.design, start)
        support = search.design.mend((W != 0).any(-1).any(-1), W.square().sum((1, 2)))
        _search_around(search, support.nonzero().flatten(), [support])


def _solve(search: Search, batch: int, workers: int, near: Tensor | None) -> None:
    search.mid_round = True
    rules = search.design.rules
    if rules is not None and rules.most is not None:
        shadow = root.multiplier(search.design, search.clock, max(1e-3, search.gap))
        search.design = search.design.with_shadow(shadow)
    node = root.relax(search.design, search.clock, 0.2 * search.gap, near)
    search.evaluated += 1
    search.record(node, -1, CONTINUES)
    search.open(node)
    assert node.score is not None and node.indicator is not None
    promise = node.indicator + 1e-3 * node.score / node.score.abs().amax().clamp(min=1e-300)
    near = promise.argsort(descending=True)[:_CANDIDATES]
    thresholds = (0.9, 0.5, 0.3, 0.2, 0.1, 0.05)
    supports = [search.design.mend(node.indicator > threshold, promise) for threshold in thresholds]
    _search_around(search, near, [s for s in supports if int(s.sum()) <= len(near)])
    search.report()
    if search.stopped:
        return
    search.mid_round = True
    node = search.fix(node)
    search.open(node)
    if not search.heap:
        search.report()
        return
    if len(node.position) == 0:
        search.run(_first_order(search), batch)
        return
    with _threads(workers):  # one large matrix
        search.shrink(node)
    _branch(search, node, batch, workers)


def _search_around(search: Search, near: Tensor, supports: list[Tensor]) -> None:
    """Polish supports and search around the best, within the entities ``near`` and the supports."""
    supports = [*(s for s in supports if search.design.allow(s)), search.best.support]
    inside = torch.stack(supports).any(0)
    inside[near] = True
    inside |= search.design.must()
    at = inside.nonzero().flatten()
    if len(at) == 0:
        return
    whole, search.design = search.design, search.design.restrict(at)
    if whole.loss == "squared":
        search.design = search.design.with_moments()
    try:
        found = incumbents.polish(search.design, [s[at] for s in supports])
        best = min(found, key=lambda x: x.objective)
        search.offer(best)
        search.offer(incumbents.local_search(search.design, best, search.halted))
    finally:
        search.design = whole


def _first_order(search: Search) -> FirstOrderEngine | ColumnEngine:
    """As accurate as the gap asked for needs."""
    tolerance = 0.3 * search.wanted
    if column_nodes.applies(search.design):
        return ColumnEngine(search.design, tolerance)
    return FirstOrderEngine(search.design, tolerance)


def _branch(search: Search, node: Node, batch: int, workers: int) -> None:
    """Search what the root left over, by tighter and dearer relaxations while the tree stays open.

    To find out whether moved curvature pays costs about as much as a number of first-order nodes: these
    have the first try.
    """
    design = search.design
    N, k, q = design.shape
    first = _first_order(search)
    if design.loss != "squared" or design.moments is None or design.signed is not None:
        search.run(first, batch)
        return
    if search.wanted < _SPARE * float(design.moments.c0):
        search.run(
            first, batch
        )  # what rounding does to moved curvature is more than the gap asked for
        return
    mu = 2e-3 * abs(search.best.objective) / max(1, N * k)
    small = max(0.1 * float(design.ridge.min()), 1e-8 * float(design.moments.G.diagonal().amax()))
    split = SplitEngine(design, mu, _NODE_STEPS, small, workers)
    if isinstance(first, ColumnEngine):
        # Its nodes keep the curvature that the root moves: to look for more would cost more than it saves.
        if N <= _SPLIT_COLUMNS:
            whole = _whole_split(search, node, first, first, split, batch)
            if whole is not None and not search.over:
                search.begin_again(whole)
        search.run(first, batch)
        return
    if q > 1:
        _branch_many_outputs(search, node, first, mu, batch, workers)
        return
    own = SplitEngine(design, mu, _NODE_STEPS, small, workers)
    mixed = MixedEngine(first, own, _MIXED_COLUMNS)
    if N * k > _SPLIT_COLUMNS:
        search.run(mixed, batch)
        return
    whole = _whole_split(search, node, first, mixed, split, batch)
    if search.over:
        return
    if whole is None:
        search.run(mixed, batch)
        return
    search.begin_again(whole)
    search.run(split, batch, _SPLIT_TRIAL)
    if not search.over:
        _branch_in_clusters(search, whole, first, mu, workers)
    search.run(split, batch)


def _branch_many_outputs(
    search: Search, node: Node, first: FirstOrderEngine, mu: float, batch: int, workers: int
) -> None:
    """The same for several outputs: curvature that they share is moved from the start, then in clusters."""
    begun = many_outputs.begin(search, node, first)
    if begun is None:
        search.run(first, batch)
        return
    search.run(begun.engine, batch, _SPLIT_TRIAL)
    few = search.design.shape[2] <= _CLUSTER_OUTPUTS
    if not search.over and few and begun.root is not None:
        _branch_in_clusters(search, begun.root, first, mu, workers)
    search.run(begun.engine, batch)


def _whole_split(
    search: Search, node: Node, first: Engine, later: Engine, split: SplitEngine, batch: int
) -> Node | None:
    """Branch by ``first``, then ``later``, from the root ``node`` until the tree has ended, or until the root
    with curvature moved, which is returned, promises a tree that takes less time.  None where it never
    does."""
    whole, before = None, search.evaluated
    for nodes in tree_size.looks(math.prod(search.design.shape), _TRIAL):
        search.run(first if whole is None else later, batch, nodes)
        if search.over:
            return None
        if whole is None:
            search.search_wider()
            d = spare_curvature(search.design, node.position)
            if d is None:
                return None
            whole = _split_root(search, node, split, d)
        done, now, end = search.evaluated - before, search.bound, search.cutoff
        dearer = _DEARER_COLUMNS if first is later else _DEARER
        if tree_size.pays(done, node.own, now, end, whole.own, dearer):
            return whole
    return whole if whole is not None and whole.own > search.bound else None


def _branch_in_clusters(
    search: Search, node: Node, first: FirstOrderEngine, mu: float, workers: int
) -> None:
    """Begin again with curvature moved in clusters of entities, where that bounds the root better than
    the whole tree has; ``node`` is the root with curvature moved entity by entity."""
    assert node.indicator is not None
    members = clusters.partition(search.design, node.indicator)
    if members is None:
        return

    def engine(factor: float, steps: int, workers: int) -> clusters.ClusterEngine:
        return clusters.ClusterEngine(
            search.design, members, first, factor * mu, steps, workers, search.halted
        )

    child = node.keep(torch.ones_like(node.one), node.one)
    engine(1.0, 0, 1).begin(child)
    with _threads(workers):  # one node alone
        best = search.along(
            child, _CLUSTER_PATH, lambda x: _noted(search, engine(x, _CLUSTER_ROOT_STEPS, 1))
        )
    if best.own > search.bound:
        search.begin_again(best)
        search.run(engine(_CLUSTER_PATH[-1], _CLUSTER_NODE_STEPS, workers), workers)


def _split_root(search: Search, node: Node, split: SplitEngine, d: Tensor) -> Node:
    """The root solved again with the best split, beginning with curvature ``d``."""
    child = node.keep(torch.ones_like(node.one), node.one)
    child.d = d

    def engine(factor: float) -> Engine:
        mu = factor * split.mu
        return _noted(search, SplitEngine(split.design, mu, _ROOT_STEPS, split.curvature_one))

    return search.along(child, _PATH, engine)


def _noted(search: Search, engine: Engine) -> Engine:
    """``engine``, with the nodes it solves counted and the progress told."""

    def evaluate(nodes: Sequence[Node], cutoff: float) -> None:
        engine(nodes, cutoff)
        search.evaluated += len(nodes)
        search.report()

    return evaluate


def _certificate(
    problem: SparseTrainingProblem, whole: Design, search: Search, status: str
) -> ProofCertificate:
    if bool((search.best.W.abs() >= whole.M[:, None, None].to(search.best.W)).any()):
        # In a corner of the box the quick polish may have stopped short.
        better = incumbents.in_box(whole, search.best.support.cpu())
        if better.objective < search.best.objective:
            search.best = better
    if not search.proof.records:
        search.record(root.at_zero(search.design), -1, CONTINUES)
    search.proof.repair()
    # What is stated is what the check finds, not what the search believes.
    made, found = _checked(problem, whole, search.best, search.proof)
    if found.objective <= VANISHING * size_at_zero(problem):
        # The quick polish is as good as an objective of ordinary size needs, and may use more than it has to.
        for support in (whole.must(), search.best.support.cpu()):
            if whole.allow(support):
                better = incumbents.towards_zero(whole, support)
                other = _checked(problem, whole, better, search.proof)
                if other[1].vanishes or other[1].objective < found.objective:
                    made, found = other
                    break
    proven = found.bound
    if proven > 0:
        proven = max(0.0, proven - _spare(problem, search.proof, found, search.gap))
    gap = found._replace(bound=proven).gap
    if gap <= search.gap:
        status = "optimal"
    elif status == "time_limit" and not search.heap:
        status = "inexact"  # a leaf without a choice left whose convex problem resists
    made = replace(
        made, status=status, objective=found.objective, bound=proven, seconds=search.clock.seconds
    )
    extra: dict[str, Any] = {"nodes": search.evaluated, "trace": tuple(search.trace)}
    return ProofCertificate(**made.__dict__, problem=problem, proof=search.proof, **extra)


def _checked(
    problem: SparseTrainingProblem, whole: Design, best: incumbents.Incumbent, proof: Proof
) -> tuple[Certificate, ProofCheck]:
    """A solution as a certificate without a bound, and what the check makes of it and of the proof."""
    made = certify(
        problem, Solved("projected", "integer", "branch_and_bound", __version__),
        status="", bound=-math.inf, seconds=0.0, weights=theta_of(problem, whole, best.W),
        indicators=best.support.cpu().double()[: len(problem.entities)],
    )  # fmt: skip
    stated = Stated(
        made.weights.numpy(), made.indicators.numpy(), made.objective, -math.inf, proof.records
    )
    return made, check(problem, stated)


def _spare(problem: SparseTrainingProblem, proof: Proof, found: ProofCheck, gap: float) -> float:
    """What another machine's order of adding may take off a bound.

    Where `_SPARE` is as much as the gap asked for, this is measured with the samples in reverse order.
    """
    size = size_at_zero(problem)
    if _SPARE * size <= 0.1 * gap * found.objective:
        return _SPARE * size
    weight = problem.sample_weight
    reverse = replace(
        problem, X=problem.X.flip(0), y=problem.y.flip(0),
        sample_weight=None if weight is None else weight.flip(0),
    )  # fmt: skip
    taken = abs(found.bound - prove(reverse, proof.records).bound)
    return min(max(_MEASURED * taken, _LEAST_SPARE * size), _SPARE * size)

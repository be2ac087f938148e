r"""Whether any input of a box is classified otherwise, and how large an output can become there.

An input x of the box breaks class t if f_j(x) > f_t(x) for some j.  Classes whose margin f_j - f_t a linear
relaxation proves negative are settled without a search.  For each of the others a mixed-integer program asks
for a point with a margin above -1e-5: that there is none proves the margin negative, beyond the tolerances
of the solver; a point is run through torch, and counts if torch classifies it otherwise.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spr_or.embedding.api import BoundKind, add_cuts, get_bounds
from spr_or.embedding.attacks import climb, inside, margin, strongest_attack
from spr_or.embedding.block import binaries, build_block
from spr_or.embedding.bounds import Bounds
from spr_or.embedding.feed_forward import FeedForward, Form
from spr_or.embedding.lp_bounds import least_values
from spr_or.embedding.solving import Outcome, solve_model
from spr_or.solvers.time_limit import TimeLimit

_CUTOFF = 1e-5  # solvers satisfy rows to 1e-6


class How(NamedTuple):
    """How a question is put to a solver; ``time_limit`` in seconds, for one question."""

    bounds: BoundKind = "lp"
    formulation: str = "bigm"
    solver: str = "highs"
    time_limit: float | None = None
    data: Tensor | None = None


class Answer(NamedTuple):
    """What came out for one box.

    answer : "robust", "broken", "undecided", "interrupted", or "contradicted" where an attack refutes a
        proof; "largest" and "undecided" for the largest output
    value : the largest margin, or output, that torch gave for a point that the solver led to; None
        without one
    bound : what no input of the box exceeds, as far as it was proven; for "robust" at most 0
    root : the bound of the linear relaxation, before any branching
    binaries, width : binaries of the model, and the mean width of the intervals of undecided neurons
    programs, nodes : mixed-integer programs that were solved, and nodes of their searches
    seconds, processor_seconds : for bounds, model and solver
    attack : the largest margin, or output, that 10,000 random and 50 gradient attacks found afterwards;
        None where no proof had to be tried
    point : the input that ``value`` belongs to
    """

    answer: str
    value: float | None
    bound: float
    root: float
    binaries: int
    width: float
    programs: int
    nodes: int
    seconds: float
    processor_seconds: float
    attack: float | None
    point: Tensor | None


class _Stopwatch:
    def __init__(self) -> None:
        self.begun, self.spent = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds of the wall clock and of the processor."""
        return time.perf_counter() - self.begun, time.process_time() - self.spent


def decide_robustness(
    net: nn.Module,
    network: FeedForward,
    label: int,
    lower: Tensor,
    upper: Tensor,
    how: How = How(),  # noqa: B008 (immutable)
) -> Answer:
    """Whether every input of the box lower <= x <= upper is classified as ``label``.

    net : the network in evaluation mode; network : what `read_network` made of it; lower, upper : float64
    tensors of one input's shape.

    >>> from spr_or.embedding.reading import read_network
    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)).eval()
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-1.0]])), net[0].bias.zero_()
    ...     _ = net[2].weight.copy_(torch.eye(2))
    >>> box = torch.tensor([0.1]).double(), torch.tensor([1.0]).double()
    >>> decide_robustness(net, read_network(net, (1,)), 0, *box).answer
    'robust'
    """
    clock, watch = TimeLimit(how.time_limit), _Stopwatch()
    bounds = get_bounds(network, lower, upper, how.bounds, how.data, _half_of(how))
    margins, others = _margins(network.output, label)
    roots = -least_values(network, bounds, margins, clock)
    proven = roots.copy()
    size, root = _size(bounds, network), float(roots.max())
    if root < 0:
        return _robust(net, label, lower, upper, bounds, _Told(root, root, 0, size, 0, 0), watch)
    host, block = _host(network, bounds)
    count, nodes, answer = 0, 0, "robust"
    best: tuple[float, Tensor] | None = None
    for i in np.argsort(-roots):
        if roots[i] < 0:
            break
        if clock.spent:
            answer = "undecided"
            break
        outcomes, point = _ask(host, block, net, label, others[i], lower, upper, how, clock)
        count, nodes = count + len(outcomes), nodes + sum(o.nodes for o in outcomes)
        last = outcomes[-1]
        if last.status == "infeasible":
            proven[i] = -_CUTOFF
        elif last.bound is not None:
            proven[i] = min(proven[i], last.bound)
        if point is not None and (best is None or point[0] > best[0]):
            best = point
        if best is not None and best[0] > 0:
            answer = "broken"
            break
        if last.status == "interrupted":
            answer = "interrupted"
            break
        if proven[i] >= 0:
            answer = "undecided"
    told = _Told(root, float(proven.max()), binaries(block), size, count, nodes)
    if answer == "robust":
        return _robust(net, label, lower, upper, bounds, told, watch)
    return _told(answer, best, told, watch.read(), None)


def largest_output(
    net: nn.Module,
    network: FeedForward,
    output: int,
    lower: Tensor,
    upper: Tensor,
    how: How = How(),  # noqa: B008 (immutable)
) -> Answer:
    """The largest value of one output in the box; "largest" where the solver proves it, else "undecided".

    The parameters are those of `decide_robustness`.
    """
    import pyomo.environ as pyo

    clock, watch = TimeLimit(how.time_limit), _Stopwatch()
    bounds = get_bounds(network, lower, upper, how.bounds, how.data, _half_of(how))
    row = _row(network.output, output, -1.0)
    root = -float(least_values(network, bounds, row, clock)[0])
    host, block = _host(network, bounds)
    host.goal = pyo.Objective(expr=block.outputs[output], sense=pyo.maximize)
    if how.formulation == "cuts":
        add_cuts(host, block)
    found = solve_model(host, how.solver, _left_of(how, clock))
    used = watch.read()
    best = None
    if found.value is not None:
        x = _point(block, lower, upper, net)
        with torch.no_grad():
            best = float(net(x[None])[0, output]), x
    bound = min(root, root if found.bound is None else found.bound)
    told = _Told(root, bound, binaries(block), _size(bounds, network), 1, found.nodes)
    if found.status != "optimal":
        answer = "interrupted" if found.status == "interrupted" else "undecided"
        return _told(answer, best, told, used, None)
    attack, _ = strongest_attack(net, lambda y: y[:, output], lower, upper)
    allowed = 1e-5 * max(1.0, abs(bound))  # float32 beside the solver's tolerance
    refuted = bounds.safe and attack > bound + allowed
    return _told("contradicted" if refuted else "largest", best, told, used, attack)


class _Told(NamedTuple):
    """The figures of an `Answer` that the search collects."""

    root: float
    bound: float
    binaries: int
    width: float
    programs: int
    nodes: int


def _told(
    answer: str,
    best: tuple[float, Tensor] | None,
    told: _Told,
    used: tuple[float, float],
    attack: float | None,
) -> Answer:
    value, point = best if best is not None else (None, None)
    return Answer(
        answer, value, told.bound, told.root, told.binaries, told.width, told.programs, told.nodes,
        *used, attack, point,
    )  # fmt: skip


def _robust(
    net: nn.Module,
    label: int,
    lower: Tensor,
    upper: Tensor,
    bounds: Bounds,
    told: _Told,
    watch: _Stopwatch,
) -> Answer:
    """A proof, after attacks have tried it; with bounds from data it proves nothing of the box."""
    used = watch.read()
    attack, point = strongest_attack(net, partial(margin, label=label), lower, upper)
    if attack > 0:
        answer = "contradicted" if bounds.safe else "broken"
        return _told(answer, (attack, point), told, used, attack)
    return _told("robust" if bounds.safe else "undecided", None, told, used, attack)


def _ask(
    host: Any,
    block: Any,
    net: nn.Module,
    label: int,
    other: int,
    lower: Tensor,
    upper: Tensor,
    how: How,
    clock: TimeLimit,
) -> tuple[list[Outcome], tuple[float, Tensor] | None]:
    """The programs for one other class, and the best point with its margin in torch."""
    import pyomo.environ as pyo

    gap = block.outputs[other] - block.outputs[label]
    for name in ("goal", "cutoff"):
        host.del_component(name)
    host.goal = pyo.Objective(expr=gap, sense=pyo.maximize)
    host.cutoff = pyo.Constraint(expr=gap >= -_CUTOFF)
    if how.formulation == "cuts":
        add_cuts(host, block)
    best: tuple[float, Tensor] | None = None
    outcomes: list[Outcome] = []
    # A first point nearly always breaks the class. One whose margin is a rounding error does not.
    for first in (True, False):
        outcomes.append(solve_model(host, how.solver, _left_of(how, clock), first))
        if outcomes[-1].value is None:
            break
        x, score = _point(block, lower, upper, net), partial(margin, label=label)
        with torch.no_grad():
            point = float(score(net(x[None]))), x
        if point[0] <= 0:  # on the edge: the gradient leads over it, if anything lies behind
            point = climb(net, score, x[None], *inside(lower, upper, x.dtype))
        if best is None or point[0] > best[0]:
            best = point
        if best[0] > 0 or outcomes[-1].status != "stopped":
            break
    return outcomes, best


def _margins(output: Form, label: int) -> tuple[Form, list[int]]:
    """f_label - f_j for each other class j, as a form, and the classes."""
    from scipy import sparse

    others = [j for j in range(len(output)) if j != label]
    rows = np.arange(len(others))
    D = sparse.csr_array(
        (
            np.concatenate([np.ones(len(others)), -np.ones(len(others))]),
            (np.concatenate([rows, rows]), np.array([label] * len(others) + others)),
        ),
        shape=(len(others), len(output)),
    )
    return _times(D, output), others


def _row(output: Form, row: int, factor: float) -> Form:
    from scipy import sparse

    D = sparse.csr_array(([factor], ([0], [row])), shape=(1, len(output)))
    return _times(D, output)


def _times(D: Any, form: Form) -> Form:
    """D z, for a difference of two rows: one more rounding."""
    return Form(
        (D @ form.matrix).tocsr(), D @ form.offset, (abs(D) @ form.reach).tocsr(),
        abs(D) @ form.reach_offset, form.roundings + 1,
    )  # fmt: skip


def _host(network: FeedForward, bounds: Bounds) -> tuple[Any, Any]:
    import pyomo.environ as pyo

    host = pyo.ConcreteModel()
    host.net = build_block(network, bounds)
    return host, host.net


def _point(block: Any, lower: Tensor, upper: Tensor, net: nn.Module) -> Tensor:
    """The inputs of the solution, in the network's dtype and inside the box."""
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    values = [v.value or 0.0 for v in block.inputs.values()]
    low, high = inside(lower, upper, dtype)
    x = torch.tensor(values, dtype=torch.float64).view(lower.shape).to(dtype)
    return torch.minimum(torch.maximum(x, low), high)


def _size(bounds: Bounds, network: FeedForward) -> float:
    """The mean width of the intervals of ReLUs that can be on and off; 0 without any."""
    widths = [
        (high - low)[bounds.undecided(k)]
        for k, (low, high) in enumerate(bounds.before)
        if network.activations[k].windows is None
    ]
    flat = np.concatenate([np.zeros(0), *widths])
    return float(flat.mean()) if len(flat) else 0.0


def _half_of(how: How) -> TimeLimit:
    """The time for bounds; the solver has the rest."""
    return TimeLimit(None if how.time_limit is None else how.time_limit / 2)


def _left_of(how: How, clock: TimeLimit) -> float | None:
    return None if how.time_limit is None else max(clock.left(), 1e-3)

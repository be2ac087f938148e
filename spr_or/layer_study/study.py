"""One layer: its problem, solved to a proven gap, and the loss of other ways to choose channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from spr_or.certified_solver.incumbents import SupportSolution, best_on_supports
from spr_or.certified_solver.many_outputs import perspective_bound
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.layer_study.activations import Patches
from spr_or.layer_study.kept import Kept
from spr_or.layer_study.layer_problem import LayerProblem, layer_problem
from spr_or.layer_study.standard import standardise
from spr_or.layer_study.subsets import largest
from spr_or.proof.certificate import ProofCertificate, SearchProgress
from spr_or.solvers.time_limit import TimeLimit

_NODE_BATCH = 4  # few and large: a batch is finished even when the time is over


@dataclass(frozen=True)
class ChannelChoice:
    """A set of input channels, each with its best weights.

    objective : of the integer problem; lost : the share of the output's variance that is not
    reproduced; above_bound : objective / bound - 1, how far from the best it can be at most
    """

    channels: list[int]
    objective: float
    lost: float
    above_bound: float | None


@dataclass(frozen=True)
class Study:
    """What is known of a layer afterwards; ``choices`` holds "best", "magnitude" and,
    where SPR kept some channels and not all, "spr".

    inputs, outputs : channels; dead : input channels that are constant in the dense network
    size : the number of channels asked for; from_mask : whether it is what SPR kept
    mask : in words, what SPR kept; kept : how many of the channels that vary
    samples : positions; columns : of the regression; lam, alpha : of the problem
    relaxation : optimum of the projected relaxation, a bound; root : the same with moved curvature
    least_lost : no choice of as many channels as SPR kept loses less than this share
    """

    layer: str
    inputs: int
    outputs: int
    dead: list[int]
    size: int
    from_mask: bool
    mask: str
    kept: int
    samples: int
    columns: int
    lam: float
    alpha: float
    status: str
    objective: float
    bound: float
    gap: float
    relaxation: float
    root: float
    least_lost: float | None
    nodes: int
    seconds: float
    m_active: bool
    choices: dict[str, ChannelChoice] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def study_layer(
    name: str,
    patches: Patches,
    inputs: int,
    kept: Kept,
    *,
    keep: float,
    gap: float,
    time_limit: float,
    progress: Callable[[SearchProgress], None] | None = None,
) -> tuple[Study, ProofCertificate]:
    """Solve one layer, from patches of its ``inputs`` channels; the certificate carries the problem.

    The size asked for is what SPR kept of the channels that vary; where that is all or nothing it is
    the share ``keep`` of them.  Ctrl-C and the time limit as in `branch_and_bound`.  Raises
    ``ValueError`` for a layer that leaves no choice.
    """
    clock = TimeLimit(time_limit)
    standard = standardise(patches, inputs)
    alive = standard.channels
    N = len(alive)
    if N < 2:
        raise ValueError(f"only {N} of its {inputs} input channels varies: nothing to choose")
    spr = torch.isin(alive, torch.tensor(kept.channels, dtype=torch.int64))
    count = int(spr.sum())
    from_mask = 0 < count < N
    size = count if from_mask else min(N - 1, max(1, round(keep * N)))
    made = layer_problem(name, standard, size)
    rivals = {"spr": spr} if from_mask else {}
    rivals["magnitude"] = largest(standard.norms, alive, size)
    found = dict(zip(rivals, best_on_supports(made.problem, list(rivals.values())), strict=True))
    start = min([made.first, *found.values()], key=lambda x: x.objective)
    certificate = branch_and_bound(
        made.problem, gap, clock.left(), _NODE_BATCH, start=start.weights, progress=progress
    )
    price = made.problem.lam * (1 - made.problem.alpha)
    study = Study(
        layer=name, inputs=inputs, outputs=made.problem.n_outputs,
        dead=sorted(set(range(inputs)) - set(alive.tolist())),
        size=size, from_mask=from_mask, mask=_in_words(kept, count, N), kept=count,
        samples=standard.samples, columns=made.problem.X.shape[1], lam=made.problem.lam,
        alpha=made.problem.alpha, status=certificate.status, objective=certificate.objective,
        bound=certificate.bound, gap=certificate.gap,
        relaxation=perspective_bound(made.problem, 1e-3 * made.first.objective),
        root=_root(certificate),
        least_lost=max(0.0, certificate.bound - price * count) if from_mask else None,
        nodes=certificate.nodes, seconds=clock.seconds,
        m_active=bool(certificate.m_active.any()), choices=_choices(made, certificate, found),
    )  # fmt: skip
    return study, certificate


def _choices(
    made: LayerProblem, certificate: ProofCertificate, rivals: dict[str, SupportSolution]
) -> dict[str, ChannelChoice]:
    """The best channels and those of the rivals, by name."""
    best = SupportSolution(certificate.objective, certificate.indicators > 0, certificate.weights)
    return {
        way: _choice(made, found, certificate.bound)
        for way, found in {"best": best, **rivals}.items()
    }


def _in_words(kept: Kept, count: int, alive: int) -> str:
    if kept.gone:
        return "layer removed"
    if count == alive:
        return "keeps all"
    return f"keeps {count}" if count else "keeps none"


def _choice(made: LayerProblem, found: SupportSolution, bound: float) -> ChannelChoice:
    above = found.objective / bound - 1 if bound > 0 else None
    lost = float(made.problem.loss_value(found.weights))
    channels = made.standard.channels[found.support].tolist()
    return ChannelChoice(channels, found.objective, lost, above)


def _root(certificate: ProofCertificate) -> float:
    """The bound before anything was branched on."""
    return max((p.bound for p in certificate.trace if p.nodes <= 2), default=certificate.bound)

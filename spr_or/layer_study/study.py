"""One layer: its problem, solved to a proven gap, and what other ways of choosing channels leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from spr_or.certified_solver.design import design_of, theta_of
from spr_or.certified_solver.incumbents import polisher
from spr_or.certified_solver.many_outputs import SharedCurvatureEngine
from spr_or.certified_solver.nodes import FirstOrderEngine, Node
from spr_or.certified_solver.proof_certificate import ProofCertificate
from spr_or.certified_solver.search import SearchProgress
from spr_or.certified_solver.solver import branch_and_bound
from spr_or.layer_study.activations import Patches
from spr_or.layer_study.kept import Kept
from spr_or.layer_study.layer_problem import LayerProblem, layer_problem
from spr_or.layer_study.standard import standardise
from spr_or.layer_study.subsets import largest
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

    @classmethod
    def of(cls, values: dict[str, Any]) -> Study:
        """The inverse of `as_dict`."""
        choices = {name: ChannelChoice(**choice) for name, choice in values["choices"].items()}
        return cls(**{**values, "choices": choices})


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
    ``ValueError`` for a layer of which there is nothing to choose.
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
    problem = made.problem
    design = design_of(problem).with_moments()
    polish = polisher(design)
    found = {"spr": polish([spr])[0]} if from_mask else {}
    found["magnitude"] = polish([largest(standard.norms, alive, size)])[0]
    start = min([made.first, *found.values()], key=lambda x: x.objective)
    certificate = branch_and_bound(
        problem, gap, clock.left(), _NODE_BATCH, start=theta_of(problem, design, start.W),
        progress=progress,
    )  # fmt: skip
    weights = certificate.weights.view(-1, design.shape[2])
    bound = certificate.bound
    support = certificate.indicators > 0
    choices = {"best": _choice(made, support, certificate.objective, certificate.weights, bound)}
    for way, (objective, support, W) in found.items():
        theta = theta_of(problem, design, W)
        choices[way] = _choice(made, support, objective, theta, bound)
    price = problem.lam * (1 - problem.alpha)
    study = Study(
        layer=name, inputs=inputs, outputs=weights.shape[1],
        dead=sorted(set(range(inputs)) - set(alive.tolist())),
        size=size, from_mask=from_mask, mask=_in_words(kept, count, N), kept=count,
        samples=standard.samples, columns=problem.X.shape[1], lam=problem.lam, alpha=problem.alpha,
        status=certificate.status, objective=certificate.objective, bound=bound,
        gap=certificate.gap, relaxation=_relaxation(made), root=_root(certificate),
        least_lost=max(0.0, bound - price * count) if from_mask else None,
        nodes=certificate.nodes, seconds=clock.seconds,
        m_active=bool(certificate.m_active.any()), choices=choices,
    )  # fmt: skip
    return study, certificate


def _in_words(kept: Kept, count: int, alive: int) -> str:
    if kept.gone:
        return "layer removed"
    if count == alive:
        return "keeps all"
    return f"keeps {count}" if count else "keeps none"


def _choice(
    made: LayerProblem, support: Tensor, objective: float, theta: Tensor, bound: float
) -> ChannelChoice:
    above = objective / bound - 1 if bound > 0 else None
    lost = float(made.problem.loss_value(theta))
    return ChannelChoice(made.standard.channels[support].tolist(), objective, lost, above)


def _relaxation(made: LayerProblem) -> float:
    """The projected relaxation (D = lambda alpha, nothing moved), to a thousandth of the optimum."""
    design = design_of(made.problem).with_moments()
    N, k, q = design.shape
    first = FirstOrderEngine(design, 1e-3 * made.first.objective)
    node = Node(
        torch.arange(N), torch.zeros(N, dtype=torch.bool), design.X.new_zeros((N, k, q)),
        design.ridge.unsqueeze(1).expand(N, k),
    )  # fmt: skip
    SharedCurvatureEngine(first, 1e-9, 0, torch.inf)([node], torch.inf)
    return node.own


def _root(certificate: ProofCertificate) -> float:
    """The bound before anything was branched on."""
    return max((p.bound for p in certificate.trace if p.nodes <= 2), default=certificate.bound)

"""Which input channels of a convolution to keep: those of the certified problem, and an order of all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.solver import branch_and_bound
from spr_or.layer_study.activations import Patches
from spr_or.layer_study.layer_problem import layer_problem
from spr_or.layer_study.standard import standardise
from spr_or.layer_study.subsets import elimination

_GAP = 1e-3  # at which a layer counts as solved
_NODE_BATCH = 4  # a batch is finished even when the time is over


class ChannelScores(NamedTuple):
    """``scores`` (channels,): the larger, the longer a channel stays. ``proven``: whether the best
    channels, as many as were asked for, are the optimum of the layer's problem."""

    scores: Tensor
    proven: bool


def channel_scores(
    name: str, patches: Patches, channels: int, size: int, seconds: float
) -> ChannelScores:
    """Scores of the input channels of a convolution, where about ``size`` shall stay.

    Those of the best set found have at least 1, the others less; channels that never vary have 0. Within
    both, the longer a channel stays in greedy elimination the higher. ``seconds`` limits the search.
    Raises ``ValueError`` where the output never varies.

    >>> X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    >>> W = torch.tensor([[5.0], [0.1], [3.0]]).double()
    >>> found = channel_scores("conv", Patches(X, W), 3, 2, seconds=5.0)
    >>> found.scores.argsort().tolist(), found.proven
    ([1, 2, 0], True)
    """
    standard = standardise(patches, channels)
    alive = standard.channels
    scores = torch.zeros(channels, dtype=torch.float64)
    count = len(alive)
    if count == 1:
        scores[alive] = 1.0
        return ChannelScores(scores, size == 1)
    made = layer_problem(name, standard, min(count - 1, max(1, size)))
    certificate = branch_and_bound(
        made.problem, _GAP, seconds, _NODE_BATCH, start=made.first.weights
    )
    if certificate.status == "interrupted":
        raise KeyboardInterrupt
    chosen = certificate.indicators > 0
    dropped = elimination(made.standard, made.problem.lam * made.problem.alpha).order
    place = torch.empty(count, dtype=torch.float64)
    place[dropped] = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)
    scores[alive] = place + chosen
    return ChannelScores(scores, certificate.status == "optimal" and int(chosen.sum()) == size)

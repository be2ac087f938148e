"""Scores of input channels: the best set of a small layer against trying all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from spr_or.layer_study.activations import Patches
from spr_or.layer_study.channel_scores import channel_scores


def best_subset(X: np.ndarray, W: np.ndarray, size: int) -> tuple[int, ...]:
    """The columns from which X W is reproduced best, each column one channel."""
    X = X - X.mean(0)

    def lost(columns: tuple[int, ...]) -> float:
        part = X[:, columns]
        V = np.linalg.lstsq(part, X @ W, rcond=None)[0]
        return float(((X @ W - part @ V) ** 2).sum())

    return min(itertools.combinations(range(X.shape[1]), size), key=lost)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_set_is_that_of_enumeration(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(7, 7, generator=generator).double()
    X = torch.randn(300, 7, generator=generator).double() @ mixed
    W = torch.randn(7, 3, generator=generator).double()
    scores, proven = channel_scores("conv", Patches(X, W), 7, 3, seconds=20.0)
    best = {i for i, score in enumerate(scores.tolist()) if score >= 1}
    assert best == set(best_subset(X.numpy(), W.numpy(), len(best)))
    assert 2 <= len(best) <= 4 and proven == (len(best) == 3)
    assert len(set(scores.tolist())) == 7


def test_channels_that_never_vary_go_first() -> None:
    X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    X[:, 2] = 0.7
    patches = Patches(X, torch.ones(4, 2).double())
    scores = channel_scores("conv", patches, 4, 2, 5.0).scores
    assert scores.argmin() == 2 and scores[2] == 0

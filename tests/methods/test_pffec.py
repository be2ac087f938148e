"""PFFEC's ranking is that of Σ|w| written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_task import cut_and_finish, small_task

from models.resnet_cifar import resnet20
from spr_or.methods import pffec
from spr_or.pruning.layer_entities import layer_entities


def test_the_ranking_is_the_formula_on_resnet20() -> None:
    torch.manual_seed(3)
    net = resnet20()
    scores = pffec.l1_norms(layer_entities(net))
    convolutions = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert scores.keys() == convolutions.keys()
    for name, module in convolutions.items():
        by_hand = np.abs(module.weight.detach().numpy().astype(np.float64)).sum((1, 2, 3))
        assert scores[name].numpy() == pytest.approx(by_hand, rel=1e-5)
        assert scores[name].argsort().tolist() == by_hand.argsort().tolist()


def test_all_layers_lose_the_same_share() -> None:
    task = small_task(target_pct=60)
    choice = cut_and_finish(task, pffec.plan(task, pffec.METHOD.keys()))
    shares = [float(keep.float().mean()) for keep in choice.masks.values()]
    assert max(shares) - min(shares) < 0.2
    for name, keep in choice.masks.items():
        norms = task.model.get_submodule(name).weight.abs().sum((1, 2, 3))
        assert norms[keep].min() > norms[~keep].max()

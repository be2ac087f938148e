"""Random scores follow from the seed, and cut every layer alike."""

from __future__ import annotations

import importlib

import numpy as np
import torch
from small_task import cut_and_finish, small_task

from spr_or.training.method import find_method


def test_scores_follow_from_the_seed() -> None:
    method = find_method("random")
    one, same, other = (method.plan(small_task(seed=s), method.keys()).scores() for s in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv2"], other["conv2"])
    drawn = torch.cat(list(one.values()))
    assert len(drawn.unique()) == len(drawn) and drawn.min() >= 0 and drawn.max() < 1


def test_the_lowest_of_each_layer_go() -> None:
    method = find_method("random")
    task = small_task(target_pct=60)
    plan = method.plan(task, method.keys())
    masks = cut_and_finish(task, plan).masks
    for name, score in plan.scores().items():
        gone = int((~masks[name]).sum())
        assert (~masks[name]).nonzero().flatten().tolist() == sorted(
            np.argsort(score.numpy())[:gone].tolist()
        )


def test_the_module_of_that_name_in_the_standard_library_is_still_found() -> None:
    importlib.import_module("spr_or.methods.random")
    assert hasattr(importlib.import_module("random"), "Random")

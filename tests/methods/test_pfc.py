"""Pruning from Scratch: frozen random weights, gates between zero and one, a penalty on their mean."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_task import cut_and_finish, small_net, small_task, train
from torch import nn

from spr_or.methods.pfc import METHOD, Keys, new_weights_, ratio_penalty


def test_the_penalty_is_that_of_the_paper():
    gates = np.array([0.1, 0.9, 0.8, 0.0])
    assert float(ratio_penalty(torch.tensor(gates), 0.3)) == pytest.approx(
        (gates.mean() - 0.3) ** 2
    )


def test_only_gates_move():
    task = small_task(small_net(3), epochs=3)
    trained = copy.deepcopy(task.model.state_dict())
    plan = METHOD.plan(task, Keys(lr=0.05))
    plan.before_epoch(0)
    random = copy.deepcopy(dict(task.model.named_parameters()))
    assert not torch.equal(random["conv1.weight"], trained["conv1.weight"])
    train(task, plan)
    for name, parameter in task.model.named_parameters():
        assert torch.equal(parameter, random[name])
    gates = torch.cat(list(plan.scores().values()))
    assert ((gates >= 0) & (gates <= 1)).all() and gates.std() > 0.01
    cut_and_finish(task, plan)
    assert plan.restart
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in task.model.modules())


def test_the_mean_gate_goes_to_the_ratio():
    task = small_task(epochs=15)
    plan = METHOD.plan(task, Keys(lr=0.02, beta=1000.0, ratio=0.4))
    train(task, plan)
    assert float(torch.cat(list(plan.scores().values())).mean()) == pytest.approx(0.4, abs=0.05)


def test_new_weights_follow_from_the_seed_and_leave_the_dice_alone():
    class WithToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))
            self.body = small_net()

    first, second = WithToken(), WithToken()
    before = torch.random.get_rng_state()
    new_weights_(first, 5)
    new_weights_(second, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.token.abs().sum() > 0
    new_weights_(second, 6)
    assert not torch.equal(first.body.conv1.weight, second.body.conv1.weight)


def test_a_stopped_search_goes_on_as_if_it_had_not_been():
    def fresh():
        task = small_task(epochs=4)
        return task, METHOD.plan(task, Keys())

    task, plan = fresh()
    train(task, plan, epochs=2)
    state, weights = copy.deepcopy(plan.state()), copy.deepcopy(task.model.state_dict())

    def go_on(task, plan):  # epoch 0 would draw new weights
        later = replace(plan, before_epoch=lambda epoch: plan.before_epoch(epoch + 2))
        train(task, later, epochs=2)

    go_on(task, plan)
    again, resumed = fresh()
    again.model.load_state_dict(weights)
    resumed.load(state)
    go_on(again, resumed)
    for name, score in plan.scores().items():
        assert torch.equal(score, resumed.scores()[name])

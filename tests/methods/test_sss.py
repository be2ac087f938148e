"""Sparse Structure Selection: the step against NumPy, zeros where the budget asks for them, resuming."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_task import cut_and_finish, small_task, train

from spr_or.methods.sss import METHOD, Keys, apg_step


def test_steps_are_those_of_the_paper():
    dice = np.random.default_rng(0)
    factors, velocity = np.ones(5), np.zeros(5)
    ours = torch.tensor(factors), torch.tensor(velocity)
    for _ in range(20):
        gradient = dice.normal(size=5)
        ours = apg_step(ours[0], torch.tensor(gradient), ours[1], 0.1, 0.3)
        z = factors - 0.1 * gradient  # equations 10 to 12, as printed
        z = np.sign(z) * np.maximum(np.abs(z) - 0.1 * 0.3, 0)
        velocity = z - factors + 0.9 * velocity
        factors = np.maximum(z + 0.9 * velocity, 0)
        np.testing.assert_allclose(ours[0].numpy(), factors, atol=1e-12)
    assert (factors == 0).any() and (factors > 0).any()


def test_the_l1_norm_makes_factors_zero_and_rests_at_the_budget():
    task = small_task(epochs=12, target_pct=40.0)
    plan = METHOD.plan(task, Keys())
    losses = train(task, plan)
    assert np.isfinite(losses).all()
    scores = torch.cat(list(plan.scores().values()))
    zero = float((scores <= 0).float().mean())
    assert 0.1 < zero < 0.6
    choice = cut_and_finish(task, plan)
    assert choice.removed_pct == pytest.approx(40, abs=5)
    gone = torch.cat([~choice.masks[layer.name] for layer in task.layers])
    assert scores[gone].mean() < scores[~gone].mean()


def test_without_a_norm_nothing_becomes_zero():
    task = small_task(epochs=2)
    plan = METHOD.plan(task, Keys(gamma=1e-9))
    train(task, plan)
    assert all((score > 0.2).all() for score in plan.scores().values())


def test_a_stopped_run_goes_on_as_if_it_had_not_been():
    def fresh():
        task = small_task(epochs=4)
        return task, METHOD.plan(task, Keys(reach=0.2))

    task, plan = fresh()
    train(task, plan, epochs=2)
    state, weights = copy.deepcopy(plan.state()), copy.deepcopy(task.model.state_dict())
    train(task, plan, epochs=2)
    again, resumed = fresh()
    again.model.load_state_dict(weights)
    resumed.load(state)
    train(again, resumed, epochs=2)
    for name, score in plan.scores().items():
        assert torch.equal(score, resumed.scores()[name])

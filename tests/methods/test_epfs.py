"""EPFS: FISTA and centres against NumPy, sparse masks on filters and branches, resuming."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_task import cut_and_finish, small_task, train
from torch import nn

from spr_or.methods.epfs import METHOD, Keys, center_loss, fista_step, moved_centers


def test_masks_take_fista():
    """On a quadratic, against the steps as Beck and Teboulle write them (momentum up to 0.9)."""
    dice = np.random.default_rng(0)
    target, rate, price = dice.normal(size=6) + 1, 0.2, 0.7
    y = before = np.ones(6)
    t = 1.0
    ours = torch.tensor(y), torch.tensor(y), torch.tensor(1.0, dtype=torch.float64)
    for _ in range(40):
        ours = fista_step(ours[0], ours[0] - torch.tensor(target), ours[1], ours[2], rate, price)
        masks = np.maximum(y - rate * (y - target) - rate * price, 0)
        later = (1 + np.sqrt(1 + 4 * t * t)) / 2
        y = np.maximum(masks + min(0.9, (t - 1) / later) * (masks - before), 0)
        before, t = masks, later
        np.testing.assert_allclose(ours[0].numpy(), y, atol=1e-12)
        np.testing.assert_allclose(ours[1].numpy(), masks, atol=1e-12)
    solution = np.maximum(target - price, 0)
    np.testing.assert_allclose(masks, solution, atol=0.02)


def test_the_loss_and_the_centres_are_those_of_wen_et_al():
    dice = np.random.default_rng(1)
    f, y, c = dice.normal(size=(7, 3)), dice.integers(0, 3, 7), dice.normal(size=(4, 3))
    loss = np.mean([0.5 * np.sum((f[b] - c[y[b]]) ** 2) for b in range(7)])
    tensors = torch.tensor(f), torch.tensor(y), torch.tensor(c)
    assert float(center_loss(*tensors)) == pytest.approx(loss)
    seen = torch.tensor([True, True, False, True])
    moved = c.copy()
    for j in range(4):
        mine = f[y == j]
        if j == 2:
            moved[j] = mine.mean(0)
        else:
            moved[j] -= 0.5 * np.sum(c[j] - mine, axis=0) / (1 + len(mine))
    ours = moved_centers(tensors[2].float(), seen, tensors[0].float(), tensors[1])
    np.testing.assert_allclose(ours.numpy(), moved, atol=1e-6)


@pytest.mark.parametrize("entities", ["filters", "channels"])
def test_masks_become_zero_and_the_budget_is_met(entities):
    task = small_task(entities=entities, epochs=12, target_pct=40.0)
    plan = METHOD.plan(task, Keys())
    assert np.isfinite(train(task, plan)).all()
    zero = float((torch.cat(list(plan.scores().values())) <= 0).float().mean())
    assert 0.05 < zero < 0.6
    assert cut_and_finish(task, plan).removed_pct == pytest.approx(40, abs=6)
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in task.model.modules()]
    assert not any(hooks)


def test_filters_of_a_branch_without_a_mask_go_first():
    task = small_task(target_pct=40.0)
    plan = METHOD.plan(task, Keys(combined=True))
    state = plan.state()
    assert len(state["masks"]) == 22 + 1  # the branch of conv3
    masks = torch.linspace(0.2, 1.0, 23)
    masks[3], masks[-1] = 0, 0.5
    plan.load({**state, "masks": masks})
    np.testing.assert_allclose(plan.scores()["conv3"], 0.5 * masks[14:22])
    np.testing.assert_allclose(plan.scores()["conv2"], masks[6:14])
    masks[-1] = 0
    plan.load({**state, "masks": masks})
    others = torch.cat([plan.scores()["conv1"], plan.scores()["conv2"]])
    assert plan.scores()["conv3"].max() < others.min()
    order = plan.scores()["conv3"].argsort()
    assert torch.equal(order, torch.arange(8))
    scale = task.model.bn3.weight.detach().clone()
    plan.finish({layer.name: torch.ones(layer.count, dtype=torch.bool) for layer in task.layers})
    torch.testing.assert_close(task.model.bn3.weight.detach(), scale * masks[14:22])


def test_features_are_drawn_to_their_centres():
    def spread(center):
        task = small_task(epochs=6)
        plan = METHOD.plan(task, Keys(gamma=1e-9, center=center))
        train(task, plan)
        features, labels = [], []
        hook = task.model.fc.register_forward_pre_hook(lambda _, x: features.append(x[0].detach()))
        for images, of in task.batches(77):
            task.model(images)
            labels.append(of)
        hook.remove()
        x, y = torch.cat(features), torch.cat(labels)
        return sum(float((x[y == j] - x[y == j].mean(0)).square().sum()) for j in range(3)) / len(x)

    assert spread(0.5) < 0.5 * spread(0.0)


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
    for name, tensor in plan.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_what_epfs_needs_is_told():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 6), nn.Flatten())
    with pytest.raises(ValueError, match="one linear layer at its end, not 2"):
        METHOD.plan(small_task(net, entities={"0": "filters"}), Keys())
    with pytest.raises(ValueError, match=r"spr\.entities"):
        METHOD.plan(small_task(entities="channels"), Keys(combined=True))


def test_a_batch_is_measured_against_the_centres_before_it():
    task = small_task()
    plan = METHOD.plan(task, Keys(center=1.0))
    (images, labels), (more, others) = list(task.batches(0))[:2]
    task.model(images)
    read = []
    task.model.fc.register_forward_pre_hook(lambda _, x: read.append(x[0].detach()))
    plan.term(images, task.model(images), labels)
    means = torch.stack([read[0][labels == j].mean(0) for j in range(3)])
    torch.testing.assert_close(plan.state()["centers"], means)
    loss = plan.term(more, task.model(more), others)
    torch.testing.assert_close(loss.detach(), center_loss(read[1], others, means))
    assert not torch.allclose(plan.state()["centers"], means)  # then they moved

"""Group lasso: its proximal step in NumPy, lambda's start, and what a phase leaves."""

import numpy as np
import pytest
import torch
from small_task import small_net, small_task, train
from torch import nn

from spr_or.methods.common.emptying_lams import emptying_lams
from spr_or.methods.common.entity_rows import entity_rows
from spr_or.methods.group_lasso import METHOD, Keys
from spr_or.pruning.lam_course import LamCourse


@pytest.mark.parametrize("entities", ["filters", "channels"])
def test_the_step_is_the_proximal_operator(entities: str) -> None:
    task = small_task(entities=entities, lr=0.05)
    plan = METHOD.plan(task, Keys(lam=0.2))
    before = {name: rows.clone().numpy() for name, rows in entity_rows(task.layers).items()}
    plan.before_epoch(0)
    plan.after_step()
    zeros = 0
    for name, rows in entity_rows(task.layers).items():
        for row, old in zip(rows.numpy(), before[name], strict=True):
            threshold = 0.05 / (1 - 0.9) * 0.2 * np.sqrt(len(old))
            length = np.sqrt((old.astype(np.float64) ** 2).sum())
            expected = max(0.0, 1 - threshold / length) * old
            np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
            zeros += not expected.any()
    assert zeros < sum(layer.count for layer in task.layers)


def test_scores_are_lengths_over_the_root_of_the_size() -> None:
    task = small_task()
    scores = METHOD.plan(task, Keys()).scores()
    for name, rows in entity_rows(task.layers).items():
        by_hand = [np.sqrt(sum(x * x for x in row) / len(row)) for row in rows.tolist()]
        np.testing.assert_allclose(scores[name], by_hand, rtol=1e-5)


def test_a_large_lambda_empties_all_and_a_dead_entity_is_no_nan() -> None:
    task = small_task()
    with torch.no_grad():
        task.model.conv2.weight[0] = 0
    plan = METHOD.plan(task, Keys(lam=0.1))
    train(task, plan, 1)
    assert all(p.isfinite().all() for p in task.model.parameters())
    plan = METHOD.plan(task, Keys(lam=1e3))
    train(task, plan, 1)
    assert not any(score.any() for score in plan.scores().values())


def test_the_budget_moves_lambda_until_entities_are_zero() -> None:
    task = small_task(epochs=12)
    plan = METHOD.plan(task, Keys())
    first = plan.state()["lam"]
    train(task, plan)
    state = plan.state()
    assert len(state["shares"]) == 12 and state["lam"] != first > 0
    assert max(state["shares"]) > 5
    choice = task.cut(plan.scores(), plan.across)
    assert choice.removed_pct == pytest.approx(40, abs=3)


def test_a_number_for_lambda_stays() -> None:
    task = small_task(epochs=2)
    plan = METHOD.plan(task, Keys(lam=1e-4))
    train(task, plan)
    assert plan.state()["lam"] == 1e-4


def test_state_is_restored() -> None:
    task = small_task(epochs=4)
    plan = METHOD.plan(task, Keys())
    train(task, plan, 2)
    other = METHOD.plan(task, Keys())
    other.load(plan.state())
    assert other.state() == plan.state() and len(other.state()["shares"]) == 2


def test_lambda_that_empties_a_layer_without_a_norm_is_by_distance() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    task = small_task(net, epochs=2, lr=0.01)
    (lam,) = emptying_lams(task, [torch.full((4,), 3.0)], scale=10.0)
    total = 2 * task.steps * 0.01 * 10
    longest = np.sqrt((net[0].weight.detach().numpy() ** 2).sum((1, 2, 3))).max()
    assert lam == pytest.approx(longest / total / 3.0, rel=1e-5)


def test_noise_in_front_of_a_norm_raises_lambda_and_the_network_stays() -> None:
    task = small_task(small_net(), epochs=50)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    prices = [torch.ones(layer.count) for layer in task.layers]
    lams = emptying_lams(task, prices, scale=10.0)
    total = 50 * task.steps * 0.05 * 10
    for lam, rows in zip(lams, entity_rows(task.layers).values(), strict=True):
        assert lam > 2 * float(rows.norm(dim=1).max()) / total
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert all(p.grad is None for p in task.model.parameters())


def test_nothing_to_shrink_is_an_error() -> None:
    task = small_task()
    with torch.no_grad():
        for layer in task.layers:
            layer.parameters[0].zero_()
    with pytest.raises(ValueError, match="zero at the start"):
        METHOD.plan(task, Keys())
    with pytest.raises(ValueError, match="no steps"):
        METHOD.plan(small_task(epochs=0), Keys())


def test_lambda_rises_while_too_little_is_zero_and_falls_when_too_much_is() -> None:
    course = LamCourse(1.0, 10, target=50.0)
    course.read(0.0)
    raised = course.lam
    course.read(90.0)
    assert raised > 1.0 and course.lam < raised

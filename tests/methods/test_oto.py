"""OTO: its two formulas in NumPy, a projected step, and a phase that ends at the budget."""

import numpy as np
import pytest
import torch
from small_task import SIDE, small_data, small_task, train

from spr_or.methods.common.entity_rows import entity_rows
from spr_or.methods.common.with_norms import with_norms
from spr_or.methods.oto import METHOD, Keys, advance, subgradient, within_budget


def test_subgradient_and_half_space_in_numpy() -> None:
    rng = np.random.default_rng(0)
    present, trial = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    present[2] = 0
    slopes = subgradient(torch.from_numpy(present), 0.3).numpy()
    ratios = advance(torch.from_numpy(trial), torch.from_numpy(present)).numpy()
    for i in range(5):
        length = np.linalg.norm(present[i])
        expected = 0.3 * present[i] / length if length else np.zeros(7)
        np.testing.assert_allclose(slopes[i], expected)
        assert ratios[i] == pytest.approx(trial[i] @ present[i] / length**2 if length else 0.0)


@pytest.mark.parametrize("entities", ["filters", "channels"])
def test_one_projected_step_by_hand(entities: str) -> None:
    """With a budget that is out of reach only the half-space decides."""
    task = small_task(entities=entities, target_pct=99.0, lr=0.2)
    plan = METHOD.plan(task, Keys(lam=1.5, epsilon=0.85, switch=0))
    groups = with_norms(task.model, task.layers)
    old = {name: rows.clone().numpy() for name, rows in entity_rows(groups).items()}
    plan.before_epoch(0)
    task.model.zero_grad()
    images, labels = small_data(0)[0]
    torch.nn.functional.cross_entropy(task.model(images), labels).backward()
    gradients = {p: p.grad.clone() for p in task.model.parameters()}
    plan.after_backward()
    weight = task.model.conv2.weight
    if entities == "filters":
        norm = np.sqrt((old["conv2"] ** 2).sum(1)).reshape(-1, 1, 1, 1)
        expected = gradients[weight].numpy() + 1.5 * weight.detach().numpy() / norm
        np.testing.assert_allclose(weight.grad, expected, rtol=1e-4, atol=1e-6)
    plan.optimizer.param_groups[0]["lr"] = 0.2
    plan.optimizer.step()
    trial = {name: rows.clone().numpy() for name, rows in entity_rows(groups).items()}
    plan.after_step()
    gone = 0
    for name, rows in entity_rows(groups).items():
        by_ratio = []
        for new, was, tried in zip(rows.numpy(), old[name], trial[name], strict=True):
            inside = float(tried @ was) < 0.85 * float(was @ was)
            by_ratio.append(inside)
            if new.any() or not inside:
                np.testing.assert_array_equal(new, tried)  # the last of a layer is spared
            gone += not new.any()
        zero = [not row.any() for row in rows.numpy()]
        assert sum(zero) == min(sum(by_ratio), len(zero) - 1)
    assert gone > 0


def test_a_zero_group_is_a_zero_channel_and_stays_zero() -> None:
    task = small_task(epochs=6, target_pct=40.0)
    plan = METHOD.plan(task, Keys(lam=0.3, switch=0))
    train(task, plan, 4)
    zero = {name: score == 0 for name, score in plan.scores().items()}
    assert sum(int(z.sum()) for z in zero.values()) > 0
    net = task.model.eval()
    first = net.bn1(net.conv1(torch.randn(2, 1, SIDE, SIDE)))
    assert not first[:, zero["conv1"]].any()
    train(task, plan)
    for name, score in plan.scores().items():
        assert not score[zero[name]].any()


def test_the_budget_is_not_passed_and_no_layer_dies() -> None:
    task = small_task(epochs=6, target_pct=30.0)
    plan = METHOD.plan(task, Keys(lam=0.5, switch=0))
    train(task, plan)
    masks = {name: score > 0 for name, score in plan.scores().items()}
    assert 20 < task.removed_pct(masks) <= 30.0
    assert all(keep.any() for keep in masks.values())
    assert plan.state() == {"lam": 0.5, "full": True}
    other = METHOD.plan(task, Keys())
    other.load(plan.state())
    assert other.state() == plan.state()


def test_before_the_switch_nothing_is_zero() -> None:
    task = small_task(epochs=4)
    plan = METHOD.plan(task, Keys(lam=0.05, switch=1.0))
    before = {name: score.clone() for name, score in plan.scores().items()}
    train(task, plan)
    after = plan.scores()
    assert all(score.all() for score in after.values())
    assert sum(float(s.sum()) for s in after.values()) < sum(
        float(s.sum()) for s in before.values()
    )


def test_the_default_lambda_would_just_empty_the_network() -> None:
    task = small_task(epochs=3)
    lam = METHOD.plan(task, Keys()).state()["lam"]
    longest = max(
        float(rows.norm(dim=1).max())
        for rows in entity_rows(with_norms(task.model, task.layers)).values()
    )
    assert lam == pytest.approx(longest / (3 * task.steps * 0.05 * 10), rel=1e-4)


def test_the_smallest_ratios_go_first() -> None:
    task = small_task(target_pct=100.0)
    alive = {layer.name: torch.ones(layer.count, dtype=torch.bool) for layer in task.layers}
    ratio = {layer.name: torch.linspace(0.9, 0.1, layer.count) for layer in task.layers}
    left, full = within_budget(task, alive, alive, ratio)
    assert not full  # the layers' limits spared the last of each, not the budget
    assert {name: keep.nonzero().flatten().tolist() for name, keep in left.items()} == {
        name: [0] for name in alive
    }


def test_a_layer_at_its_limit_does_not_end_the_projections() -> None:
    """One layer goes down to its last group at once; the others still go on to a high target."""
    task = small_task(epochs=6, target_pct=70.0)
    alive = {layer.name: torch.ones(layer.count, dtype=torch.bool) for layer in task.layers}
    goes = {name: torch.full_like(keep, name == "conv3") for name, keep in alive.items()}
    ratio = {name: torch.zeros(len(keep)) for name, keep in alive.items()}
    left, full = within_budget(task, alive, goes, ratio)
    assert {name: int(keep.sum()) for name, keep in left.items()}["conv3"] == 1 and not full
    assert task.removed_pct(left) < 70
    assert within_budget(task, left, goes, ratio) == (left, False)  # nothing more may go
    assert within_budget(task, left, left, ratio)[1]  # now the budget stops it

    with torch.no_grad():  # conv3 is so short that its groups leave the half-space first
        for parameter in (*task.model.conv3.parameters(), *task.model.bn3.parameters()):
            parameter.mul_(0.01)
    plan = METHOD.plan(task, Keys(lam=0.2, switch=0))
    train(task, plan)
    zero = {name: score > 0 for name, score in plan.scores().items()}
    assert int(zero["conv3"].sum()) == 1
    assert 60 < task.removed_pct(zero) <= 70

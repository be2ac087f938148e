"""L2PF: ranks in NumPy, what the agent sees, and that episodes lead it to a larger reward."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_task import small_net, small_task, train
from torch import nn

from spr_or.methods import l2pf
from spr_or.methods.common.entity_rows import entity_rows
from spr_or.methods.l2pf import METHOD, Keys, best_scores, features, ranked, tried
from spr_or.training.method import PruningTask


def counted_by_entities() -> PruningTask:
    """A task whose budget is cheap to count: the share of all entities."""
    task = small_task()
    total = sum(layer.count for layer in task.layers)

    def removed(masks: dict[str, torch.Tensor]) -> float:
        return 100 * sum(int((~keep).sum()) for keep in masks.values()) / total

    return replace(task, removed_pct=removed)


def test_ranks_in_numpy() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 4))
    lengths = np.sqrt((rows**2).sum(1))
    by_hand = [(lengths <= length).sum() / 9 * np.exp(-0.3) for length in lengths]
    np.testing.assert_allclose(ranked(torch.from_numpy(rows), 0.3), by_hand)


def test_features_are_standardised_and_equal_ones_are_zero() -> None:
    task = small_task()
    seen = features(task.layers)
    assert seen.shape == (3, 5) and (seen[:, 0] == 1).all()
    np.testing.assert_allclose(seen[:, 1:].mean(0), 0, atol=1e-9)
    sizes = [np.log(9), np.log(54), np.log(72)]  # k of 1x3x3, 6x3x3, 8x3x3
    np.testing.assert_allclose(seen[:, 3], (sizes - np.mean(sizes)) / np.std(sizes), rtol=1e-6)
    single = small_task(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten(), nn.Linear(4, 3)))
    assert features(single.layers).tolist() == [[1, 0, 0, 0, 0]]


def test_a_larger_action_takes_more_of_the_layer() -> None:
    task = small_task()
    rows = entity_rows(task.layers)
    kept = []
    for action in (-1.0, 0.0, 1.0):
        actions = {"conv1": 0.0, "conv2": action, "conv3": 0.0}
        masks = task.cut({name: ranked(r, actions[name]) for name, r in rows.items()}).masks
        kept.append(int(masks["conv2"].sum()))
        assert task.removed_pct(masks) == pytest.approx(40, abs=6)
    assert kept[0] > kept[1] > kept[2]


def test_the_same_seed_gives_the_same_structure_and_the_network_stays() -> None:
    keys = Keys(episodes=3, steps=2, batches=1)
    task = counted_by_entities()
    before = copy.deepcopy(task.model.state_dict())
    dice = torch.get_rng_state()
    first = METHOD.plan(task, keys).scores()
    again = METHOD.plan(counted_by_entities(), keys).scores()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())
    assert all(p.grad is None for p in task.model.parameters())
    assert torch.equal(dice, torch.get_rng_state())


def test_a_trial_is_cut_to_the_budget_and_trained() -> None:
    task = small_task(small_net())
    scores = {name: ranked(rows, 0.0) for name, rows in entity_rows(task.layers).items()}
    model = tried(task, scores, steps=3, episode=0)
    masks = task.cut(scores).masks
    for name, keep in masks.items():
        weight = model.get_submodule(name).weight
        assert not weight[~keep].any()
        assert (weight[keep] != task.model.get_submodule(name).weight[keep]).any()


def test_the_best_reward_wins_and_the_policy_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that is only the filters kept in conv3: the agent finds a structure that keeps more."""
    task = counted_by_entities()
    kept: list[int] = []

    def keeps(_: object, scores: dict[str, torch.Tensor], steps: int, episode: int) -> nn.Module:
        kept.append(int(task.cut(scores).masks["conv3"].sum()))
        return nn.Identity()

    monkeypatch.setattr(l2pf, "tried", keeps)
    monkeypatch.setattr(l2pf, "_accuracy", lambda model, batches: float(kept[-1]))
    best = best_scores(task, Keys(episodes=40, price=0.0))
    assert int(task.cut(best).masks["conv3"].sum()) == max(kept) > kept[0]
    assert np.mean(kept[-10:]) > np.mean(kept[:10])


def test_a_price_shortens_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def notes(task: object, scores: object, steps: int, episode: int) -> nn.Module:
        taken.append(steps)
        return nn.Identity()

    monkeypatch.setattr(l2pf, "tried", notes)
    monkeypatch.setattr(l2pf, "_accuracy", lambda model, batches: 50.0)
    best_scores(counted_by_entities(), Keys(episodes=60, steps=100, price=10.0))
    assert taken[0] == 50 and np.mean(taken[-10:]) < np.mean(taken[:10]) - 10


def test_groups_are_served() -> None:
    task = small_task(entities="channels")
    plan = METHOD.plan(task, Keys(episodes=2, steps=1, batches=1))
    assert not plan.trains
    choice = task.cut(plan.scores(), plan.across)
    assert choice.removed_pct == pytest.approx(40, abs=8)
    train(task, plan, 0)

"""DNR: shares by momentum, the regulariser, the attack, and masks that move within the budget."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_task import small_data, small_net, small_task, train

from spr_or.methods.common.entity_rows import entity_rows
from spr_or.methods.common.entity_writes import gradient_rows
from spr_or.methods.dnr import METHOD, Keys, Rewiring, attacked_loss, layer_momentum, places


def test_normalised_momentum_in_numpy() -> None:
    rng = np.random.default_rng(1)
    momentum = {name: rng.random(n) for name, n in (("a", 5), ("b", 3), ("dead", 2))}
    alive = {"a": rng.random(5) > 0.4, "b": np.ones(3, bool), "dead": np.zeros(2, bool)}
    shares = layer_momentum(
        {name: torch.from_numpy(m) for name, m in momentum.items()},
        {name: torch.from_numpy(keep) for name, keep in alive.items()},
    )
    means = {name: momentum[name][alive[name]].mean() for name in ("a", "b")}
    for name in ("a", "b"):
        assert shares[name] == pytest.approx(means[name] / sum(means.values()))
    assert shares["dead"] == 0
    nothing = {name: torch.zeros(2) for name in "ab"}
    both = {name: torch.ones(2, dtype=torch.bool) for name in "ab"}
    assert layer_momentum(nothing, both) == {"a": 0.5, "b": 0.5}


def test_places_are_shared_out_in_proportion() -> None:
    dead, zeros = torch.ones(30, dtype=torch.bool), torch.zeros(30)
    early = torch.cat([places(share, dead, zeros, zeros) for share in (0.6, 0.3, 0.1)])
    first = early.argsort(descending=True)[:20] // 30
    assert torch.bincount(first).tolist() == [12, 6, 2]


def test_at_equal_momentum_the_longest_returns_first() -> None:
    dead = torch.tensor([True, True, True])
    early = places(1.0, dead, torch.tensor([0.0, 0.0, 5.0]), torch.tensor([1.0, 2.0, 0.1]))
    assert early.argsort(descending=True).tolist() == [2, 1, 0]


@pytest.mark.parametrize("entities", ["filters", "channels"])
def test_the_budget_holds_after_every_epoch_and_entities_move(entities: str) -> None:
    task = small_task(entities=entities, epochs=5)
    plan = METHOD.plan(task, Keys(rate=0.5))
    moved = 0
    masks = []
    after_epoch = plan.after_epoch

    def watch(epoch: int) -> dict[str, int]:
        nonlocal moved
        record = after_epoch(epoch)
        moved += record["returned"]
        keep = {name: score > 0 for name, score in plan.scores().items()}
        masks.append(keep)
        for name, rows in entity_rows(task.layers).items():
            assert not rows[~keep[name]].any() and rows[keep[name]].any(1).all()
        return record

    train(task, replace(plan, after_epoch=watch))
    for keep in masks:
        assert task.removed_pct(keep) == pytest.approx(40, abs=6)
    assert moved > 0
    assert all(torch.equal(masks[-1][n], masks[-2][n]) for n in masks[-1])  # the last are trained
    choice = task.cut(plan.scores(), plan.across)
    kept = {name: score > 0 for name, score in plan.scores().items()}
    differing = sum(int((choice.masks[n] != kept[n]).sum()) for n in kept)
    assert differing <= 1


def test_the_regulariser_pulls_to_the_target_by_hand() -> None:
    task = small_task(epochs=3)
    rho = 0.7
    wires = Rewiring(task, Keys(rate=0.5, rho=rho))
    wires.hold()
    rows = {name: r.clone() for name, r in entity_rows(wires.layers).items()}
    for p in task.model.parameters():
        p.grad = torch.zeros_like(p)
    wires.after_backward()
    pulled = 0
    for layer in wires.layers:
        gradient, alive = gradient_rows(layer).numpy(), wires.alive[layer.name].numpy()
        w = rows[layer.name].numpy()
        lengths = np.where(alive, np.sqrt((w**2).sum(1)), np.inf)
        going = np.argsort(lengths, kind="stable")[: int(0.5 * alive.sum())]
        for i in range(len(w)):
            # Z = 0 and U = W for those that go next: rho (W - Z + U). Z = W, U = 0 for others.
            expected = 2 * rho * w[i] if i in going else 0 * w[i]
            np.testing.assert_allclose(gradient[i], expected, rtol=1e-5, atol=1e-7)
            pulled += i in going
    assert pulled > 0


def test_dead_entities_give_momentum_but_no_step() -> None:
    task = small_task(epochs=3)
    with torch.no_grad():
        task.model.bn2.bias[:3] = torch.tensor([0.5, 0.5, -0.5])  # behind it is a ReLU
    wires = Rewiring(task, Keys())
    wires.alive["conv2"].fill_(True)
    wires.alive["conv2"][:3] = False
    wires.hold()
    before = wires.momentum["conv2"].clone()
    images, labels = small_data(3)[0]
    task.model.zero_grad()
    F.cross_entropy(task.model(images), labels).backward()
    gradient = gradient_rows(task.layers[1])
    assert gradient[:2].any(1).all() and not gradient[2].any()
    wires.after_backward()
    after = wires.momentum["conv2"]
    torch.testing.assert_close(after[0], 0.9 * before[0] + 0.1 * gradient[0])
    assert torch.equal(after[2], before[2]) and before[2].any()
    assert not gradient_rows(task.layers[1])[:3].any()


def test_a_returning_entity_has_the_weights_it_died_with() -> None:
    task = small_task(epochs=6, target_pct=60.0)
    wires = Rewiring(task, Keys(rate=0.6))
    for layer, momentum in wires.momentum.items():  # the dead have more
        momentum.copy_((~wires.alive[layer]).float().unsqueeze(1).expand_as(momentum))
    dense = {name: r.clone() for name, r in entity_rows(wires.layers).items()}
    wires.hold()
    dead = {name: ~keep.clone() for name, keep in wires.alive.items()}
    wires.after_epoch(0)
    returned = 0
    for name, rows in entity_rows(wires.layers).items():
        back = dead[name] & wires.alive[name]
        returned += int(back.sum())
        assert torch.equal(rows[back], dense[name][back])
    assert returned > 0


def test_the_attack_is_fgsm() -> None:
    net = small_net().eval()
    images, labels = small_data(0)[0]
    probe = images.clone().requires_grad_()
    F.cross_entropy(net(probe), labels).backward()
    moved = torch.from_numpy(images.numpy() + 0.1 * np.sign(probe.grad.numpy()))
    net.zero_grad()
    expected = F.cross_entropy(net(moved), labels)
    torch.testing.assert_close(attacked_loss(net, images, labels, 0.1), expected)
    assert expected > F.cross_entropy(net(images), labels)
    attacked_loss(net, images, labels, 0.1).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_hybrid_loss_is_the_mean_of_clean_and_attacked() -> None:
    task = small_task()
    plan = METHOD.plan(task, Keys(adversarial=0.1))
    net = task.model.eval()
    images, labels = small_data(0)[0]
    clean = F.cross_entropy(net(images), labels)
    attacked = attacked_loss(net, images, labels, 0.1)
    total = clean + plan.term(images, net(images), labels)
    torch.testing.assert_close(total, (clean + attacked) / 2)
    assert METHOD.plan(task, Keys()).term is None


def test_state_is_restored() -> None:
    task = small_task(epochs=4)
    plan = METHOD.plan(task, Keys(rate=0.5))
    train(task, plan, 2)
    saved = copy.deepcopy(plan.state())
    model = copy.deepcopy(task.model.state_dict())
    other_task = small_task(epochs=4)
    other = METHOD.plan(other_task, Keys(rate=0.5))
    other_task.model.load_state_dict(model)
    other.load(saved)
    assert plan.after_epoch(2) == other.after_epoch(2)
    for key, tensors in plan.state().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.state()[key][name]), (key, name)
    for a, b in zip(task.model.parameters(), other_task.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_dead_network_gives_no_nan() -> None:
    net = small_net()
    with torch.no_grad():
        net.conv2.weight.zero_()
    task = small_task(net, epochs=3)
    plan = METHOD.plan(task, Keys())
    train(task, plan)
    assert all(score.isfinite().all() for score in plan.scores().values())

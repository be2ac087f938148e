"""Network slimming: the subgradient is added, masks are a sort of |γ| over the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_task import SmallNet, cut_and_finish, small_net, small_task, train
from torch import nn

from models.resnet_cifar import resnet20
from spr_or.methods import bn_gamma
from spr_or.pruning.layer_entities import layer_entities

NORM_OF = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}


def gammas(net: nn.Module) -> dict[str, np.ndarray]:
    return {
        conv: np.abs(net.get_submodule(norm).weight.detach().numpy())
        for conv, norm in NORM_OF.items()
    }


def test_masks_are_a_sort_of_gamma_over_the_network() -> None:
    task = small_task(target_pct=50)
    plan = bn_gamma.plan(task, bn_gamma.Keys())
    by_hand = gammas(task.model)
    assert {n: s.numpy().tolist() for n, s in plan.scores().items()} == {
        n: g.tolist() for n, g in by_hand.items()
    }
    masks = cut_and_finish(task, plan).masks
    gone = sum(int((~keep).sum()) for keep in masks.values())
    threshold = np.sort(np.concatenate(list(by_hand.values())))[gone]
    assert gone > 3
    for name, keep in masks.items():
        assert keep.tolist() == (by_hand[name] >= threshold).tolist()


def test_on_resnet20_the_norm_of_each_filter_is_found() -> None:
    torch.manual_seed(0)
    net = resnet20()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    task = small_task(
        net, batches=lambda seed: [(torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))]
    )
    scores = bn_gamma.plan(task, bn_gamma.Keys()).scores()
    assert scores.keys() == {layer.name for layer in layer_entities(net)}
    for name, score in scores.items():
        assert torch.equal(score, net.get_submodule(name.replace("conv", "bn")).weight.abs())


def test_a_step_adds_the_sign_of_gamma() -> None:
    one, other = (small_task(small_net(), epochs=1) for _ in range(2))
    train(one, bn_gamma.plan(one, bn_gamma.Keys(l1=0.0)))
    plan = bn_gamma.plan(other, bn_gamma.Keys(l1=0.25))
    other.model.zero_grad()
    for parameter in other.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    plan.after_backward()
    for name, parameter in other.model.named_parameters():
        norm = name in ("bn1.weight", "bn2.weight", "bn3.weight")
        assert torch.equal(parameter.grad, 0.25 * parameter.sign() if norm else 0 * parameter), name


def test_the_penalty_makes_scales_smaller() -> None:
    sizes = []
    for l1 in (0.0, 0.2):
        task = small_task(small_net(), epochs=3)
        train(task, bn_gamma.plan(task, bn_gamma.Keys(l1=l1)))
        sizes.append(sum(g.sum() for g in gammas(task.model).values()))
    assert sizes[1] < 0.8 * sizes[0]


class WithoutOne(SmallNet):
    """The second convolution has no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.bn2 = nn.Identity()


def test_filters_without_a_norm_stay() -> None:
    task = small_task(WithoutOne(), target_pct=30)
    plan = bn_gamma.plan(task, bn_gamma.Keys())
    scores = plan.scores()
    assert scores["conv2"].min() > max(scores["conv1"].max(), scores["conv3"].max())
    assert cut_and_finish(task, plan).masks["conv2"].all()


def test_a_channel_has_the_mean_of_its_norms() -> None:
    task = small_task(entities="channels")
    scores = bn_gamma.plan(task, bn_gamma.Keys()).scores()
    sizes = gammas(task.model)
    assert scores["conv1"].numpy() == pytest.approx(sizes["conv1"])
    assert scores["conv2"].numpy() == pytest.approx((sizes["conv2"] + sizes["conv3"]) / 2)


def test_a_network_without_norms_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(ValueError, match="no norm follows any of 0"):
        bn_gamma.plan(small_task(net), bn_gamma.Keys())

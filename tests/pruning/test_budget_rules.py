"""The controller of lambda, the limits of layers, and the final cut."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from spr_or.pruning.budget import (
    Limits,
    Masks,
    choose,
    layer_limits,
    next_lam,
    reachable_pct,
    scheduled_pct,
)
from spr_or.pruning.prox_sgd import ProxSGD
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.steering import Steering, decide_masks

# --- the controller -------------------------------------------------------------------------


def simulated(
    target: float, start: float, epochs: int, lag: float, sticky: bool
) -> tuple[float, list[float]]:
    """A network that answers to lambda as a first-order lag; sticky: what is gone stays gone."""
    lam, share, lams = start, 0.0, []
    shares: list[float] = []
    for _ in range(epochs):
        lams.append(lam)
        wants = 100 / (1 + (20 / lam) ** 1.2)  # half of it goes at lambda = 20
        change = (wants - share) * (1 - math.exp(-1 / (lag * epochs)))
        share += max(change, 0.0) if sticky else change
        shares.append(share)
        lam = next_lam(lam, start, shares, target, epochs)
    return share, lams


# From 60, four fifths may be gone after an epoch, and what is sticky cannot return.
@pytest.mark.parametrize(
    ("start", "sticky"), [(2.0, False), (2.0, True), (20.0, False), (20.0, True), (60.0, False)]
)
@pytest.mark.parametrize("lag", [0.03, 0.15, 0.4])
@pytest.mark.parametrize("epochs", [30, 300])
@pytest.mark.parametrize("target", [40.0, 60.0, 80.0])
def test_the_controller_steers_a_simulated_network(
    target: float, start: float, epochs: int, lag: float, sticky: bool
) -> None:
    share, lams = simulated(target, start, epochs, lag, sticky)
    assert share == pytest.approx(target, abs=6.0)
    steps = [abs(math.log(b / a)) for a, b in zip(lams, lams[1:], strict=False)]
    assert max(steps) <= math.log(4) / max(1, round(epochs / 10)) + 1e-9
    assert all(start / 10_000 <= lam <= start * 10_000 for lam in lams)


def test_the_schedule_rises_to_the_target_and_stays() -> None:
    course = [scheduled_pct(60.0, epoch, 40) for epoch in range(40)]
    assert all(a < b for a, b in zip(course[:29], course[1:30], strict=True))
    assert course[29:] == [60.0] * 11


def test_lambda_falls_where_too_much_could_go_and_rises_where_too_little() -> None:
    assert next_lam(10, 10, [80.0, 80.0], target=50, epochs=20) < 10
    assert next_lam(10, 10, [5.0, 5.0], target=50, epochs=20) > 10
    # As long as hardly anything could go, it rises faster.
    assert next_lam(10, 10, [0.0, 0.0], target=50, epochs=20) == pytest.approx(10 * 3**0.5)
    assert next_lam(10, 10, [0.0, 0.5], target=50, epochs=20) == pytest.approx(10 * 3**0.5)
    assert next_lam(10, 10, [0.0, 1.5], target=50, epochs=20) == pytest.approx(10 * 2**0.5)
    # On its way at twice the pace of the schedule: it slows down before it is there.
    assert next_lam(10, 10, [0.0, 15.0, 30.0, 45.0], target=50, epochs=20) < 10


# --- the cut --------------------------------------------------------------------------------


def test_the_cut_takes_what_a_larger_lambda_would_take_next() -> None:
    """Found by raising lambda: one proximal step of a network whose loss holds nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = 5.0  # one large weight, of a filter that costs little
    spr = SPR(net, lam=1.0, alpha=0.2, M=SPR.bounds_from(net))
    settings = SimpleNamespace(
        lam=1.0, lam_warmup=0, epochs=1, target_removed_pct=40.0, bounds="layer", bounds_every=0,
        method="prox", zero_below=0.0, share=1.0,
    )  # fmt: skip

    def count(masks: Masks) -> float:
        return 100 * sum(int((~keep).sum()) for keep in masks.values()) / 18

    steering = Steering(settings, net, spr, count)
    masks = steering.cut().masks
    went = {(name, i) for name, keep in masks.items() for i in range(len(keep)) if not keep[i]}
    assert len(went) == 7
    before = [p.detach().clone() for p in net.parameters()]
    gone: list[tuple[str, int]] = []
    for lam in torch.logspace(-3, 4, 2000).tolist():
        with torch.no_grad():
            for parameter, old in zip(net.parameters(), before, strict=True):
                parameter.copy_(old)
        spr.lam = lam
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        ProxSGD(net, spr, lr=1.0).step()
        for name, keep in decide_masks(net, spr, settings).items():
            gone += [(name, i) for i in range(len(keep)) if not keep[i] and (name, i) not in gone]
        if len(gone) >= 7:
            break
    assert set(gone[:7]) == went


def random_choice(seed: int, target: float) -> tuple[Any, ...]:
    torch.manual_seed(seed)
    sizes = {"a": 4, "b": 3, "c": 5}
    cost = {name: torch.rand(n) for name, n in sizes.items()}
    total = float(sum(c.sum() for c in cost.values()))

    def count(masks: dict[str, torch.Tensor]) -> float:
        return 100 * sum(float(cost[n][~masks[n]].sum()) for n in masks) / total

    indicators = {n: torch.rand(k).round(decimals=1) for n, k in sizes.items()}
    gone = {n: value > 0.2 for n, value in indicators.items()}
    indicators = {n: value * gone[n] for n, value in indicators.items()}
    age = {n: torch.rand(k) for n, k in sizes.items()}
    return count, gone, indicators, age, target, choose(count, gone, indicators, age, target)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("target", [5.0, 30.0, 70.0])
def test_the_cut_is_at_least_as_near_as_any_prefix_of_the_ranking(seed: int, target: float) -> None:
    count, gone, indicators, age, target, choice = random_choice(seed, target)
    assert choice.removed_pct == pytest.approx(count(choice.masks))
    entities = [
        (bool(gone[n][i]), float(indicators[n][i]), float(age[n][i]), n, i)
        for n in gone
        for i in range(len(gone[n]))
    ]
    last = {n: max(entity for entity in entities if entity[3] == n)[4] for n in gone}
    order = sorted(e for e in entities if not (e[0] and e[4] == last[e[3]]))
    prefixes = []
    for length in range(len(order) + 1):
        masks = {n: torch.ones_like(keep) for n, keep in gone.items()}
        for *_, n, i in order[:length]:
            masks[n][i] = False
        prefixes.append(count(masks))
    nearest = min(abs(share - target) for share in prefixes)
    assert abs(choice.removed_pct - target) <= nearest + 1e-9
    zero = sum(int((~keep).sum()) for keep in gone.values())
    went = sum(int((~keep).sum()) for keep in choice.masks.values())
    assert choice.cut == went - zero
    for name, keep in choice.masks.items():
        if gone[name].any():
            assert keep.any(), f"the cut took the last entity of {name}"


def test_a_step_far_past_the_target_is_taken_only_where_smaller_ones_come_no_nearer() -> None:
    """One entity of ``large`` is worth 12 points, those of ``small`` 3 each, and there are few."""
    rank = {"large": torch.tensor([0.2, 9.0]), "small": torch.arange(1.0, 6.0)}
    gone = {name: torch.ones(len(t), dtype=torch.bool) for name, t in rank.items()}

    def removed(masks: Masks) -> float:
        return 12.0 * int((~masks["large"]).sum()) + 3.0 * int((~masks["small"]).sum())

    # 12 is 5.5 off, nothing is 6.5 off.
    near = choose(removed, gone, rank, rank, 6.5, give_back=True)
    assert near.removed_pct == 6.0 and near.masks["large"].all()
    few = {"large": rank["large"], "small": torch.tensor([1.0, 2.0])}
    gone = {name: torch.ones(len(t), dtype=torch.bool) for name, t in few.items()}
    # One of small goes at most: 3 is further off than 12.
    far = choose(removed, gone, few, few, 8.5, give_back=True)
    assert far.removed_pct == 12.0 and not far.masks["large"].all()


def test_what_is_given_back_went_last() -> None:
    gone = {"a": torch.tensor([False, False, False, True])}
    indicators = {"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    age = {"a": torch.tensor([3.0, 9.0, 5.0, 9.5])}
    choice = choose(lambda m: 25.0 * int((~m["a"]).sum()), gone, indicators, age, 50.0)
    assert choice.masks["a"].tolist() == [False, True, False, True]
    assert (choice.cut, choice.threshold) == (-1, 0.0)


def brute_force(
    gone: Any, indicators: Any, age: Any, limits: dict[str, Limits], count: Any, target: float
) -> float:
    """The nearest share among all masks that fit the limits and drop a layer's lowest entities."""
    choices = []
    for name, keep in gone.items():
        rows = sorted(
            zip(keep.tolist(), indicators[name].tolist(), age[name].tolist(), range(len(keep)), strict=True)
        )  # fmt: skip
        layer = []
        for kept in limits[name].allowed(len(keep)):
            if kept <= (limits[name].most or len(keep)):
                mask = torch.ones_like(keep)
                mask[[row[3] for row in rows[: len(rows) - kept]]] = False
                layer.append((name, mask))
        choices.append(layer)
    return min(abs(count(dict(masks)) - target) for masks in itertools.product(*choices))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("round_to", [1, 2, 4])
@pytest.mark.parametrize("target", [30.0, 60.0])
def test_the_cut_keeps_the_limits_and_the_largest_indicators(
    seed: int, round_to: int, target: float
) -> None:
    torch.manual_seed(seed)
    sizes = {"a": 12, "b": 7, "c": 16}
    weight = {"a": 1.0, "b": 3.0, "c": 0.5}
    total = sum(weight[n] * sizes[n] for n in sizes)

    def count(masks: dict[str, torch.Tensor]) -> float:
        return 100 * sum(weight[n] * int((~masks[n]).sum()) for n in masks) / total

    indicators = {n: torch.rand(k) for n, k in sizes.items()}
    gone = {n: value > 0.3 for n, value in indicators.items()}
    limits = layer_limits(sizes, {"a": 0.25, "b": 2}, {"c": 0.75}, round_to)
    choice = choose(count, gone, indicators, indicators, target, limits)
    assert choice.removed_pct == pytest.approx(count(choice.masks))
    for name, keep in choice.masks.items():
        kept = int(keep.sum())
        assert kept % round_to == 0 or kept == sizes[name]
        assert kept >= {"a": 3, "b": 2, "c": 1}[name]
        assert name != "c" or kept <= 12
        if not keep.all():
            assert indicators[name][keep].min() >= indicators[name][~keep].max()
    best = brute_force(gone, indicators, indicators, limits, count, target)
    # One entity of the costliest layer, or one step of it, is as near as the order can miss.
    assert abs(choice.removed_pct - target) <= best + 100 * 3.0 * round_to / total


def test_a_multiple_takes_zero_entities_back_rather_than_good_ones() -> None:
    gone = {"a": torch.arange(16) >= 9}  # nine are zero: eight go, the one that went last returns
    indicators = {"a": torch.where(gone["a"], 1.0, 0.0)}
    age = {"a": torch.arange(16.0)}
    limits = {"a": Limits(step=8)}
    choice = choose(lambda m: 100 * float((~m["a"]).sum()) / 16, gone, indicators, age, 60, limits)
    assert choice.masks["a"].tolist() == [False] * 8 + [True] * 8
    assert (choice.cut, choice.removed_pct) == (-1, 50.0)


def test_a_layer_goes_only_where_it_is_zero_and_may() -> None:
    for zero, least, left in ((True, 0, 0), (True, 1, 1), (False, 0, 1)):
        gone = {"a": torch.full((3,), not zero)}
        numbers = {"a": torch.arange(3.0)}
        limits = {"a": Limits(least=least)}
        choice = choose(lambda m: 30.0 * int((~m["a"]).sum()), gone, numbers, numbers, 95, limits)
        assert int(choice.masks["a"].sum()) == left


def test_limits_by_pattern_the_first_that_fits() -> None:
    sizes = {"block1.conv": 10, "block2.conv": 10, "fc": 4}
    limits = layer_limits(sizes, {"block2.*": 5, "*.conv": 0.3}, {"fc": 2}, 1)
    assert {n: limit[:2] for n, limit in limits.items()} == {
        "block1.conv": (3, 10), "block2.conv": (5, 10), "fc": (1, 2),
    }  # fmt: skip
    assert Limits(step=8).allowed(6) == [6] and Limits(least=0, step=8).allowed(16) == [16, 8, 0]


@pytest.mark.parametrize("target", [20.0, 55.5, 90.0])
def test_a_large_network_is_counted_a_few_times(target: float) -> None:
    calls = 0
    sizes = {f"layer{i}": 256 for i in range(16)}
    cost = {name: float(i + 1) for i, name in enumerate(sizes)}
    total = sum(256 * c for c in cost.values())

    def count(masks: dict[str, torch.Tensor]) -> float:
        nonlocal calls
        calls += 1
        left = sum(cost[n] * int(keep.sum()) for n, keep in masks.items()) / total
        return 100 * (1 - left**2)  # both sides of a weight shrink

    indicators = {n: torch.rand(k) for n, k in sizes.items()}
    keep = {n: torch.ones(k, dtype=torch.bool) for n, k in sizes.items()}
    choice = choose(count, keep, indicators, indicators, target)
    assert choice.removed_pct == pytest.approx(target, abs=0.1)
    assert calls <= 12


def test_a_branch_goes_whole_and_a_layer_keeps_one() -> None:
    sizes = {"branch": 1, "layer": 1}
    limits = layer_limits(sizes, min_keep=1, round_to=8, branches=["branch"])
    alive = {name: torch.tensor([True]) for name in sizes}
    indicators = {"branch": torch.tensor([0.9]), "layer": torch.tensor([0.1])}

    def count(masks: dict[str, torch.Tensor]) -> float:
        return 40.0 * sum(int((~keep).sum()) for keep in masks.values())

    assert reachable_pct(count, sizes, limits) == 40.0
    masks = choose(count, alive, indicators, indicators, 80.0, limits).masks
    assert [bool(masks[name]) for name in sizes] == [False, True]


def test_a_step_past_the_target_gives_smaller_ones_back():
    """Six of 1 % and one of 10 % for a target of 13: 6, then 16, and two of them come back, to within a
    point."""
    rank = {"small": torch.arange(6.0), "large": torch.tensor([6.0, 99.0])}
    gone = {name: torch.ones(len(numbers), dtype=torch.bool) for name, numbers in rank.items()}

    def removed(masks):
        return 1.0 * int((~masks["small"]).sum()) + 10.0 * int((~masks["large"]).sum())

    choice = choose(removed, gone, rank, rank, 13.0, give_back=True)
    assert choice.removed_pct == 14.0
    assert choice.masks["small"].tolist() == [False] * 4 + [True] * 2
    assert choice.masks["large"].tolist() == [False, True]

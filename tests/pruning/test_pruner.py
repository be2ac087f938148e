"""Pruner: a training loop of one's own that ends at its target."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.toy import convnet, digits_resnet, mlp
from spr_or.pruning import budget, steering
from spr_or.pruning.budget import next_lam, reading_steps
from spr_or.pruning.chosen_entities import chosen_entities
from spr_or.pruning.compaction.api import compact
from spr_or.pruning.counts import count_macs, count_parameters
from spr_or.pruning.groups import EntityGroup, Member
from spr_or.pruning.largest_lam import Pulls
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.pruner import CollapseWarning, Pruner
from spr_or.pruning.pruning_report import pruning_report
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.spares import Spares


def batches(
    shape: tuple[int, ...], count: int = 4, classes: int = 10
) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    labels = [torch.randint(classes, (32,), generator=generator) for _ in range(count)]
    means = torch.randn(classes, *shape, generator=generator)
    return [(means[y] + torch.randn(32, *shape, generator=generator), y) for y in labels]


def train(pruner: Pruner, model: nn.Module, data: Any, epochs: int) -> list[dict[str, Any]]:
    records = []
    model.train()
    for _ in range(epochs):
        for x, y in data:
            pruner.optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            pruner.step()
        records.append(pruner.epoch_end())
    return records


IMAGE = (1, 8, 8)
CASES = {
    "filters": (digits_resnet, IMAGE, {"entities": "filters"}),
    "both": (convnet, IMAGE, {"entities": ["filters", "neurons"], "include_norm": True}),
    "neurons": (mlp, (64,), {"entities": "neurons", "lam": 1.0}),
}


@pytest.mark.parametrize("measure", ["params", "macs"])
@pytest.mark.parametrize("case", CASES)
def test_a_loop_of_ones_own_lands_at_its_target(case: str, measure: str) -> None:
    build, shape, options = CASES[case]
    model, example = build(), torch.zeros(2, *shape)
    dense = count_parameters(model), count_macs(model, example.shape)
    pruner = Pruner(model, example, {measure: 0.5}, epochs=4, lr=0.05, **options)
    records = train(pruner, model, batches(shape), 6)
    assert [bool(record) for record in records] == [True] * 4 + [False] * 2
    small = pruner.compact()
    left = count_parameters(small), count_macs(small, example.shape)
    removed = {"params": 1 - left[0] / dense[0], "macs": 1 - left[1] / dense[1]}
    assert removed[measure] == pytest.approx(0.5, abs=0.03)
    report = pruner.report()
    assert report["removed"] == pytest.approx(removed)
    assert report["parameters"] == (dense[0], left[0]) and report["macs"] == (dense[1], left[1])
    x = torch.randn(3, *shape)
    torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_lambda_is_steered_as_in_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "distances_to_go", lambda *_: (1.0, 1.0))  # nothing comes nearer
    model = mlp()
    pruner = Pruner(
        model, torch.zeros(1, 64), {"params": 0.6}, 5, entities="neurons", lam=2.0, lr=0.05
    )
    records = train(pruner, model, batches((64,)), 5)
    lam, shares = 2.0, []
    for record in records:
        assert record["lam"] == pytest.approx(lam)
        shares.append(record["removable_pct"])
        lam = next_lam(lam, 2.0, shares, 60.0, 5)


@pytest.mark.filterwarnings("ignore::spr_or.pruning.pruner.CollapseWarning")
@pytest.mark.parametrize("lam", [2.0, "auto"])
def test_long_epochs_move_lambda_within(lam: float | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_LEAST_STEPS", 1)
    monkeypatch.setattr(steering, "distances_to_go", lambda *_: (1.0, 1.0))  # nothing comes nearer
    model = mlp()
    data = batches((64,))
    options: dict[str, Any] = {"epochs": 5, "entities": "neurons", "lam": lam, "lr": 0.05}
    twin = copy.deepcopy(model)
    pruner, other = (
        Pruner(m, torch.zeros(1, 64), {"params": 0.6}, **options) for m in (model, twin)
    )
    train(pruner, model, data, 3)
    state = pruner.state_dict()
    readings = len(reading_steps(5, len(data))) + 1
    shares = state["steering"]["shares"]
    assert readings > 1 and len(shares) == 3 * readings and len(set(shares[:readings])) == 1
    start = state["start"]
    begun = start if lam == "auto" else next_lam(2.0, 2.0, shares[:1], 60.0, 5)
    for k in range(readings, 3 * readings):
        begun = next_lam(begun, start, shares[: k + 1], 60.0, 5, readings)
    assert float(pruner.spr.lam) == pytest.approx(begun)

    # Stopped within an epoch, and gone on with: the same.
    half = len(data) // 2 + 1
    steps(pruner, model, data[:half])
    twin.load_state_dict(model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(pruner.optimizer.state_dict()))
    other.load_state_dict(copy.deepcopy(pruner.state_dict()))
    for one, network in ((pruner, model), (other, twin)):
        steps(one, network, data[half:])
        one.epoch_end()
    assert float(pruner.spr.lam) == float(other.spr.lam)


def steps(pruner: Pruner, model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for x, y in data:
        pruner.optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        pruner.step()


def test_the_first_epoch_without_lam_is_plain_training() -> None:
    model = mlp()
    twin = copy.deepcopy(model)
    pruner = Pruner(model, torch.zeros(1, 64), {"params": 0.5}, 3, entities="neurons", lr=0.01)
    records = train(pruner, model, batches((64,)), 1)
    assert records[0]["lam"] == 0.0 and float(pruner.spr.lam) > 0
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    bound = float(SPR.bounds_from(twin, "neurons")["1"])
    for x, y in batches((64,)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.step()
    # lambda = 0 leaves the projection on |w| <= M, which few weights feel.
    inside = twin.get_parameter("1.weight").abs() < 0.9 * bound
    assert inside.double().mean() > 0.8
    torch.testing.assert_close(
        model.get_parameter("1.weight")[inside], twin.get_parameter("1.weight")[inside],
        rtol=0.05, atol=2e-3,
    )  # fmt: skip


def test_after_the_cut_the_optimiser_is_sgd_that_holds_the_masks() -> None:
    model = mlp()
    pruner = Pruner(model, torch.zeros(1, 64), {"params": 0.5}, 2, entities="neurons", lr=0.05)
    data = batches((64,))
    train(pruner, model, data, 2)
    masks = pruner.masks
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    optimizer.load_state_dict(copy.deepcopy(pruner.optimizer.state_dict()))
    train(pruner, model, data, 1)
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, keep in masks.items():
                for key in ("weight", "bias"):
                    twin.get_parameter(f"{name}.{key}")[~keep] = 0
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("round_to", [4, 8])
def test_what_stays_is_a_multiple_and_is_compacted_exactly(round_to: int) -> None:
    model = digits_resnet()
    pruner = Pruner(model, torch.zeros(2, *IMAGE), {"params": 0.6}, 3, round_to=round_to, lr=0.05)
    train(pruner, model, batches(IMAGE), 4)
    assert pruner.choice is not None
    kept = {name: int(keep.sum()) for name, keep in pruner.choice.masks.items()}
    assert all(n % round_to == 0 and n > 0 for n in kept.values())
    assert any(n < len(pruner.choice.masks[name]) for name, n in kept.items())
    small = pruner.compact()
    # Inside a block only one layer writes, so its width is what the mask keeps.
    for stage in (1, 2, 3):
        name = f"layer{stage}.0.conv1"
        assert small.get_submodule(name).weight.shape[0] == kept[name]  # type: ignore[union-attr,index]


def test_ignored_layers_limits_and_outputs_are_kept() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    pruner = Pruner(
        model, torch.zeros(2, *IMAGE), {"params": 0.4}, 2,
        ignored=["0"], min_keep={"2": 6}, max_keep={"4": 0.5}, lr=0.05,
    )  # fmt: skip
    assert [layer.name for layer in pruner.spr.layers] == ["2", "4"]
    train(pruner, model, batches(IMAGE), 2)
    assert int(pruner.masks["2"].sum()) >= 6 and 1 <= int(pruner.masks["4"].sum()) <= 8


def test_a_layer_is_not_emptied_unless_asked() -> None:
    for least, expected in ((1, 1), (0, 0)):
        torch.manual_seed(0)
        model = mlp(hidden=(16, 16))
        pruner = Pruner(
            model, torch.zeros(1, 64), {"params": 0.7}, 2,
            entities="neurons", min_keep=least, lam=1.0,
        )  # fmt: skip
        with torch.no_grad():  # as a lambda that is far too large would leave it
            for key in ("3.weight", "3.bias"):
                model.get_parameter(key).zero_()
        choice = pruner.cut()
        assert int(choice.masks["3"].any()) == expected
        notes = " ".join(pruner.report()["notes"])
        assert ("layer 3 died: none of its 16 entities is left" in notes) == (expected == 0)


def grouped() -> tuple[nn.Module, EntityGroup]:
    """Two layers that add up to one stream: its channels are entities."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 16), nn.Linear(64, 16)
            self.c = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(nn.functional.relu(self.a(x) + self.b(x)))

    rows = torch.arange(16).view(16, 1)
    keys = ("a.weight", "a.bias", "b.weight", "b.bias")
    return Sum(), EntityGroup("a", tuple(Member(key, 0, rows) for key in keys), "channels")


def test_entities_that_cross_layers_go_together() -> None:
    model, group = grouped()
    pruner = Pruner(model, torch.zeros(2, 64), {"params": 0.5}, 3, entities=[group], round_to=4)
    train(pruner, model, batches((64,)), 4)
    assert torch.equal(pruner.masks["a"], pruner.masks["b"])
    assert int(pruner.masks["a"].sum()) == 8
    assert pruner.compact().get_submodule("c").weight.shape == (10, 8)


def test_spares_of_a_group_come_back_with_their_weights() -> None:
    model, group = grouped()
    pruner = Pruner(model, torch.zeros(2, 64), {"params": 0.5}, 3, entities=[group], lam=1.0)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("c"):
                parameter.zero_()
    choice = pruner.cut()
    keep = choice.masks["a"]
    assert choice.cut < 0 and 0 < int(keep.sum()) < 16
    for key in ("a.weight", "a.bias", "b.weight", "b.bias"):
        assert torch.equal(model.get_parameter(key)[keep], before[key][keep])
        assert not model.get_parameter(key)[~keep].any()


def test_spares_hold_the_statistics_of_norms_too() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model(torch.randn(8, *IMAGE))  # statistics that are not those of the start
    index = torch.arange(4).view(4, 1)
    keys = ("0.weight", "0.bias", "1.weight", "1.bias")
    group = EntityGroup("0", tuple(Member(key, 0, index) for key in keys), "channels")
    spr = SPR(model, 1.0, 0.1, 5.0, entities=[group])
    spares = Spares(model, spr)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for key in (*keys, "1.running_mean", "1.running_var"):
            model.state_dict()[key][1:3] = 0
    spares.keep(0)  # what is zero now keeps its older copy
    spares.give_back_({"0": torch.tensor([True, True, False, True])})
    for key in (*keys, "1.running_mean", "1.running_var"):
        now = model.state_dict()[key]
        assert torch.equal(now[[0, 1, 3]], before[key][[0, 1, 3]]) and not now[2].any()
    assert spares.age["0"][1] == -1 and spares.age["0"][0] > 0


def test_it_continues_from_its_state() -> None:
    torch.manual_seed(3)
    whole = mlp()
    models = [copy.deepcopy(whole) for _ in range(3)]
    pruners = [
        Pruner(m, torch.zeros(1, 64), {"params": 0.5}, 4, entities="neurons") for m in models
    ]
    data = batches((64,))
    train(pruners[0], models[0], data, 5)
    train(pruners[1], models[1], data, 2)
    models[2].load_state_dict(models[1].state_dict())
    pruners[2].optimizer.load_state_dict(pruners[1].optimizer.state_dict())
    pruners[2].load_state_dict(pruners[1].state_dict())
    train(pruners[2], models[2], data, 3)
    for one, other in zip(models[0].parameters(), models[2].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stop", [(0, 3), (1, 2)])
def test_it_continues_in_the_middle_of_an_epoch_on_any_network_of_that_shape(
    stop: tuple[int, int],
) -> None:
    """In the first epoch, which looks at gradients, M must not be that of the new network."""
    torch.manual_seed(3)
    whole, other = mlp(), mlp()
    first, second = (
        Pruner(m, torch.zeros(1, 64), {"params": 0.5}, 3, entities="neurons")
        for m in (whole, other)
    )
    now, model = first, whole
    for epoch in range(3):
        for step, (x, y) in enumerate(batches((64,))):
            if (epoch, step) == stop:
                reference = copy.deepcopy(whole)
                kept = copy.deepcopy(first.state_dict())
                steps = copy.deepcopy(first.optimizer.state_dict())
            now.optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            now.step()
        now.epoch_end()
    other.load_state_dict(reference.state_dict())
    second.optimizer.load_state_dict(steps)
    second.load_state_dict(kept)
    for epoch in range(stop[0], 3):
        for step, (x, y) in enumerate(batches((64,))):
            if (epoch, step) >= stop:
                second.optimizer.zero_grad()
                F.cross_entropy(other(x), y).backward()
                second.step()
        second.epoch_end()
    for one, twin in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, twin)


def test_a_share_far_ahead_of_the_schedule_is_told() -> None:
    model = mlp()
    pruner = Pruner(model, torch.zeros(1, 64), {"params": 0.1}, 4, entities="neurons", lam=1e6)
    with pytest.warns(CollapseWarning, match=r"could go after epoch 0 with lambda .* should"):
        train(pruner, model, batches((64,)), 1)


def test_an_exact_cut_meets_all_budgets_and_continues_from_its_state() -> None:
    torch.manual_seed(0)
    model, example = convnet(), torch.zeros(2, *IMAGE)
    dense = count_parameters(model), count_macs(model, example.shape)
    options: dict[str, Any] = {"entities": ["filters", "neurons"], "cut": "exact", "epochs": 1}
    target = {"params": 0.5, "macs": 0.7}
    pruner = Pruner(model, example, target, **options)
    train(pruner, model, batches(IMAGE), 1)
    assert pruner.choice is not None and pruner.choice.exact.choice.gap <= 1e-4
    small = pruner.compact()
    assert count_parameters(small) <= 0.501 * dense[0]
    assert count_macs(small, example.shape) <= 0.301 * dense[1]
    report = pruner.report()
    assert report["target"] == target and report["removed"]["macs"] >= 0.699
    other = copy.deepcopy(model)
    again = Pruner(other, example, target, **options)
    again.load_state_dict(pruner.state_dict())
    assert all(torch.equal(again.masks[name], keep) for name, keep in pruner.masks.items())


def test_filters_of_a_residual_network_have_no_exact_cut() -> None:
    with pytest.raises(ValueError, match='write one feature together: use entities = "channels"'):
        Pruner(digits_resnet(), torch.zeros(2, *IMAGE), {"params": 0.5}, cut="exact")


def test_a_report_before_the_cut_says_so_and_that_nothing_was_removed() -> None:
    pruner = Pruner(mlp(), torch.zeros(1, 64), {"params": 0.5}, 3, entities="neurons")
    shown = str(pruner.report())
    assert (
        "nothing was removed" in shown and "the cut comes after 3 epochs, 0 are finished" in shown
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": {"params": 1.2}}, "must lie between 0 and 1, got 1.2"),
        ({"target": {"weights": 0.5}}, "one of params, macs, latency"),
        ({"target": {"params": 0.5, "macs": 0.5}}, "one of params, macs, latency, for the cut by"),
        (
            {"target": {"params": 0.5, "macs": 0.0}, "cut": "exact"},
            "share of macs must lie between",
        ),
        ({"target": {"params": 0.5, "macs": 0.99}, "cut": "exact"}, "of macs cannot be removed"),
        ({"cut": "best"}, 'cut must be "rank" or "exact", got \'best\''),
        (
            {"target": {"params": 0.9}, "min_keep": 0.5},
            "cannot be reached: .* [0-9.]+ % of the parameters are rem",
        ),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"epochs": 2.5}, "epochs must be a whole number of at least 1, got 2.5"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": math.nan}, "lr must be positive and finite, got nan"),
        ({"momentum": 2.0}, "momentum must be at least 0 and below 1, got 2.0"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0 and finite, got nan"),
        ({"alpha": 1.0}, "alpha must be at least 0 and below 1: with 1 nothing goes"),
        ({"target": {"params": "0.6"}}, "must lie between 0 and 1, got '0.6'"),
        ({"min_keep": math.nan}, "a float from 0 to 1.*got nan"),
        ({"lam": 0.0}, "lam must be positive"),
        ({"lam": -1.0}, "lam must be a finite number"),
        ({"lam": 1e300}, "lam must be a finite number"),
        ({"lam": "much"}, 'lam must be a number, "auto" or a share'),
        ({"round_to": 0}, "round_to must be a whole number"),
        ({"min_keep": {"9*": 2}}, "min_keep names '9\\*', which fits no regularised layer: 1, 3"),
        ({"min_keep": 1.5}, "a float from 0 to 1"),
        ({"min_keep": 8, "max_keep": 4}, "at least 8 and at most 4 of its"),
        ({"ignored": ["1", "3"]}, "besides those ignored"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"target": {"params": 0.5}, "entities": "neurons", **options}
    with pytest.raises(ValueError, match=message):
        Pruner(mlp(), torch.zeros(1, 64), **arguments)


def test_lambda_starts_at_a_share_of_the_largest_one() -> None:
    lams = {}
    for lam in ("auto", "0.02 max", "0.1 max", None):
        torch.manual_seed(0)
        model = mlp()
        torch.optim.SGD(
            model.parameters()
        )  # as after a dense training: steps count once all the same
        pruner = Pruner(
            model, torch.zeros(1, 64), {"params": 0.5}, 3, entities="neurons", lr=0.01, lam=lam
        )
        train(pruner, model, batches((64,)), 1)
        lams[lam] = float(pruner.spr.lam)
        # 3 epochs of 4 steps; without a norm only the distance counts.
        total = 12 * 0.01 / (1 - 0.9)
        pulls = Pulls(pruner.spr)
        expected = pulls.starting_lam(0.1, total, 50.0)
        if lam not in ("auto", None):
            expected = float(lam.partition(" ")[0]) * pulls.largest_lam(0.1, total)
        assert lams[lam] == pytest.approx(expected, rel=1e-5)
    # The rows of random weights are about equally far from zero, so that a fiftieth would be hopeless.
    assert lams["0.02 max"] < lams["auto"] == lams[None] < lams["0.1 max"] * 10


def test_a_layer_that_dies_on_the_way_is_warned_of_with_a_smaller_start() -> None:
    model = mlp()
    pruner = Pruner(
        model, torch.zeros(1, 64), {"params": 0.3}, 3, entities="neurons", lam=1e4, lr=0.05
    )
    with pytest.warns(CollapseWarning, match=r"nothing is left of 1, 3 .* Pruner\(lam=1e\+03\)"):
        train(pruner, model, batches((64,)), 1)


def test_a_residual_branch_may_die_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    model = digits_resnet()
    pruner = Pruner(
        model, torch.zeros(2, *IMAGE), {"params": 0.3}, 3, entities="blocks", lam=1e4, lr=0.05
    )
    train(pruner, model, batches(IMAGE), 1)
    assert not [w for w in recwarn if "nothing is left" in str(w.message)]


@pytest.mark.parametrize("outputs", [4, 10])
def test_a_filter_of_a_transposed_convolution_comes_back_with_its_weights(outputs: int) -> None:
    """They lie along dimension 1 of the weight; more and fewer of them than inputs."""
    model = nn.Sequential(nn.ConvTranspose2d(6, outputs, 3), nn.ReLU(), nn.Conv2d(outputs, 2, 1))
    spares = Spares(model, SPR(model, 0.0, 0.1, 1.0, entities="filters", ignored=["2"]))
    spares.keep(0)
    first = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[0].weight[:, 3], model[0].bias[3] = 0.0, 0.0
    spares.keep(1)
    now = model[0].weight.detach().clone()
    spares.give_back_({"0": torch.ones(outputs, dtype=torch.bool)})
    now[:, 3] = first[:, 3]
    assert torch.equal(model[0].weight, now)


def test_what_is_told_is_what_leaves_behind_norms_without_a_scale() -> None:
    """Their mean is zero before any training, which is no scale of zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )
    pruner = Pruner(model, torch.zeros(2, 1, 8, 8), {"params": 0.5}, 1, entities="filters")
    share = pruner.cut().removed_pct
    small = sum(p.numel() for p in pruner.compact().parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert share == pytest.approx(100 * (1 - small / whole)) and small < whole


class WithHelp(nn.Module):
    """A layer that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.help = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        return self.last(x) + (self.help(x).mean() if self.training else 0)


def test_what_evaluation_does_not_use_is_told_before_anything_is_trained() -> None:
    model, example = WithHelp(), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"86\.\d % of the parameters are not used in evaluation"):
        Pruner(model, example, {"params": 0.5}, 1, entities="neurons", ignored=["help"])
    with pytest.raises(ValueError, match="evaluation does not use 360 of the parameters"):
        Pruner(
            model, example, {"params": 0.9}, 1, entities="neurons", ignored=["help"], cut="exact"
        )
    share = Pruner(model, example, {"params": 0.9}, 1, entities="neurons", ignored=["help"]).cut()
    assert share.removed_pct == pytest.approx(90, abs=2)


class Tied(nn.Module):
    """Two branches with one projection, which counts at the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q, self.h = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 3)
        self.q.weight = self.p.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.cat([self.p(x).relu(), self.q(-x).relu()], 1))


@pytest.mark.parametrize("entities", ["channels", ["filters", "neurons"]])
def test_a_report_shows_a_shared_weight_where_it_stands_first(entities: Any) -> None:
    net, x = Tied(), torch.zeros(1, 6)
    chosen = chosen_entities(net, x, entities)
    masks = {layer.name: torch.arange(layer.count) < 5 for layer in chosen.of(net)}
    smaller = compact(net, module_masks(net, chosen.of(net), masks), x)
    report = pruning_report(net, smaller, x, masks, chosen.of(net))
    rows = {row["layer"]: row for row in report["layers"]}
    for name, inputs in (("p", 6), ("q", 0)):  # and a bias each
        width = smaller.get_parameter(f"{name}.bias").numel()
        assert (rows[name]["kept"], rows[name]["total"]) == (5, 8)
        assert rows[name]["params_after"] == width * (inputs + 1) <= rows[name]["params_before"]
        assert rows[name]["macs_after"] == 2 * width * inputs
    assert sum(row["params_after"] for row in rows.values()) == report["parameters"][1]
    assert sum(row["macs_after"] for row in rows.values()) == report["macs"][1]

"""The phases of a run: what each leaves behind, and that a seed repeats it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from image_files import encoded, picture, write_split
from safetensors.torch import load_file
from tiny_runs import no_pictures_in, tiny_recipe
from torch import nn

from models.toy import convnet
from spr_or.pruning.compaction.api import load_compact
from spr_or.pruning.regularizer import SPR
from spr_or.training import checkpoint
from spr_or.training.data.load import load_data
from spr_or.training.loop import NonFiniteLoss, evaluate, train_epoch
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import RecipeError
from spr_or.training.run_progress import RunDisplay
from spr_or.training.runner import run_recipe
from spr_or.training.seed_run import epoch_seed
from spr_or.training.setup import reproducible
from spr_or.training.step import captured, make_step


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


# --- one step -------------------------------------------------------------------------------


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 10


def test_a_step_is_sgd_on_the_loss_plus_the_regularizer() -> None:
    torch.manual_seed(0)
    ours, plain = convnet(), convnet()
    plain.load_state_dict(ours.state_dict())
    images, labels = batch()
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    spr = SPR(ours, 5.0, 0.3, 1.0)
    step = make_step(ours, torch.optim.SGD(ours.parameters(), **settings),
                     add_gradient=spr.add_gradient_, label_smoothing=0.1)  # fmt: skip
    reference = SPR(plain, 5.0, 0.3, 1.0)
    optimizer = torch.optim.SGD(plain.parameters(), **settings)
    for _ in range(3):
        loss, correct = step(images, labels)
        logits = plain(images)
        data_loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        optimizer.zero_grad()
        (data_loss + reference()).backward()
        optimizer.step()
        assert loss.item() == pytest.approx(data_loss.item(), rel=1e-5)
        assert int(correct) == int((logits.argmax(1) == labels).sum())
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_bf16_changes_the_arithmetic_and_little_else() -> None:
    losses = {}
    for bf16 in (False, True):
        torch.manual_seed(0)
        model = convnet()
        step = make_step(model, torch.optim.SGD(model.parameters(), lr=0.01), bf16=bf16)
        losses[bf16] = [float(step(*batch())[0]) for _ in range(5)]
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


def test_an_epoch_finds_the_first_loss_that_is_not_finite() -> None:
    losses = iter([1.0, 2.0, float("nan"), float("inf")])

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(next(losses)), torch.tensor(1)

    with pytest.raises(NonFiniteLoss) as caught:
        train_epoch(step, [batch()] * 4)
    assert caught.value.step == 2
    with pytest.raises(ValueError, match="no batch"):
        train_epoch(step, [])


def test_evaluation_is_the_mean_over_all_images_and_leaves_the_model_as_it_was() -> None:
    model = convnet().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    images, labels = batch()
    scores = evaluate(model, [(images[:10], labels[:10]), (images[10:], labels[10:])])
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    logits = model.eval()(images)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    right = (logits.argmax(1) == labels).double().mean().item()
    assert scores.accuracy == pytest.approx(100 * right)


def test_a_captured_step_refuses_the_cpu() -> None:
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="speed.cuda_graph needs a CUDA device, not cpu"):
        captured(make_step(model, optimizer), optimizer)(*batch())


# --- whole runs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spr",
    [
        {"method": "prox", "start": "dense"},
        {"method": "gradient", "lam": 3.0, "zero_below": 0.01, "share": 0.2},
        {"method": "gradient", "variant": "printed", "bounds": "entity", "include_norm": True,
         "lam": 1.0, "zero_below": 0.01, "share": 0.15},
        {"method": "prox", "entities": ["filters", "neurons"], "weights": "uniform", "lam": 0.1},
    ],
    ids=["prox", "gradient", "printed", "neurons"],
)  # fmt: skip
def test_masked_filters_stay_silent_and_the_compact_network_is_the_masked_one(
    spr: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tiny_recipe(spr=spr)
    summary = run_recipe(recipe, tmp_path)
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert (state["phase"], state["epoch"]) == ("finetune", 2)
    masks, weights = state["masks"], state["model"]
    left = torch.cat(list(masks.values()))
    assert left.any() and not left.all()  # otherwise the rest says nothing
    count = 0
    for name, keep in masks.items():
        assert weights[f"{name}.weight"][~keep].abs().sum() == 0
        assert (weights[f"{name}.weight"][keep].flatten(1).abs().sum(1) > 0).all()
        assert weights[f"{name}.bias"][~keep].abs().sum() == 0
        count += int((~keep).sum()) * weights[f"{name}.weight"][0].numel()
    for conv, norm in (("0", "1"), ("4", "5")):  # a filter's BatchNorm goes with it
        assert weights[f"{norm}.weight"][~masks[conv]].abs().sum() == 0
        assert weights[f"{norm}.bias"][~masks[conv]].abs().sum() == 0
    assert summary["masked_filter_weights"] == count

    masked = convnet()
    masked.load_state_dict(weights)
    small = load_compact(tmp_path / "compact.safetensors")
    data = load_data(recipe.data, torch.device("cpu"))
    images, labels = next(data.evaluate(0))
    with torch.no_grad():
        expected, found = masked.eval()(images), small(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert summary["max_abs_logit_diff"] < 1e-4
    accuracy = 100 * (found.argmax(1) == labels).double().mean().item()
    assert summary["accuracy"] == pytest.approx(accuracy)
    parameters = [sum(p.numel() for p in model.parameters()) for model in (convnet(), small)]
    assert summary["removed_params"] == parameters[0] - parameters[1] > 0


def test_a_recipe_and_a_seed_give_one_result(tmp_path: Path) -> None:
    def trained(name: str, seed: int) -> tuple[bytes, list[dict[str, Any]]]:
        run_recipe(tiny_recipe(seeds=[seed]), tmp_path / name)
        records = read_metrics(tmp_path / name / "metrics.jsonl")
        without_time = [
            {k: v for k, v in r.items() if k not in ("seconds", "data_wait_share")} for r in records
        ]
        return (tmp_path / name / "compact.safetensors").read_bytes(), without_time

    first = trained("first", 5)
    torch.rand(10)  # the state of the global generator is none of a run's business
    assert trained("again", 5) == first
    assert trained("other", 6)[1] != first[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by the tiny recipe as it is; tests only read it."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        no_pictures_in(patch)
        run_recipe(tiny_recipe(), folder)
    return folder


@pytest.mark.parametrize("speed", [{"channels_last": True}, {"amp": "bf16"}])
def test_speed_options_change_little(speed: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    run_recipe(tiny_recipe(speed=speed), tmp_path)
    slow, fast = (read_metrics(folder / "metrics.jsonl") for folder in (plain, tmp_path))
    for one, two in zip(slow[:2], fast[:2], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=0.05)


def test_a_streamed_set_is_trained_on_and_resumed_like_any_other(tmp_path: Path) -> None:
    images = [encoded(picture(i, (8, 8))) for i in range(48)]
    for name in ("train", "test"):
        write_split(tmp_path / "set" / f"{name}.parquet", images, [i % 3 for i in range(48)])
    data = {"source": str(tmp_path / "set"), "memory": "stream", "workers": 0, "batch_size": 16,
            "flip": True, "train_rows": None, "eval_rows": None}  # fmt: skip
    recipe = tiny_recipe(model_kwargs={"in_channels": 3}, data=data)
    summary = run_recipe(recipe, tmp_path / "whole")
    assert summary["train_images"] == 48 and summary["max_abs_logit_diff"] < 1e-4

    def stop_at_epoch(self: RunDisplay, record: dict[str, Any]) -> None:
        if record["phase"] == "spr" and record["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDisplay, "epoch", stop_at_epoch)
        run_recipe(recipe, tmp_path / "broken")
    run_recipe(recipe, tmp_path / "broken", resume=True)
    compacts = [(tmp_path / n / "compact.safetensors").read_bytes() for n in ("whole", "broken")]
    assert compacts[0] == compacts[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spr_or.training.speed.LONG", 0)  # else so few steps are not compiled
    compile = torch.compile
    seen: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda m, **keys: seen.append(m) or compile(m, **keys))
    losses = []
    for compiled in (False, True):
        recipe = tiny_recipe(spr={"epochs": 1}, finetune={"epochs": 1}, speed={"compile": compiled})
        run_recipe(recipe, tmp_path / str(compiled))
        records = read_metrics(tmp_path / str(compiled) / "metrics.jsonl")
        losses.append([record["loss"] for record in records])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert len(seen) == 2 * 3  # each phase's network, after a copy of it


def test_the_rate_runs_on_from_spr_through_finetuning(tmp_path: Path) -> None:
    run_recipe(tiny_recipe(spr={"milestones": [1, 4], "lr": 0.1}), tmp_path)
    rates = [r["lr"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["phase"] != "dense"]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.01, 0.001])


def test_records_count_every_entity_in_one_regime(plain: Path) -> None:
    records = [r for r in read_metrics(plain / "metrics.jsonl") if r["phase"] == "spr"]
    assert len(records) == 3
    for record in records:
        assert set(record["regimes"]) == {"zero", "norm", "bound", "full"}
        assert sum(record["regimes"].values()) == 8 + 16
        assert record["spr"] >= 0


def test_a_dense_network_can_be_given(tmp_path: Path) -> None:
    run_recipe(tiny_recipe(), tmp_path / "first")
    file = tmp_path / "first" / "dense.safetensors"
    dense = {"weights": str(file), "epochs": 0}
    given = run_recipe(tiny_recipe(dense=dense), tmp_path / "second")
    again = load_file(tmp_path / "second" / "dense.safetensors")
    assert all(torch.equal(t, again[name]) for name, t in load_file(file).items())
    assert given["dense_accuracy"] > 20
    # The same bounds, the same fresh start: from here on the two runs are one.
    compacts = [(tmp_path / n / "compact.safetensors").read_bytes() for n in ("first", "second")]
    assert compacts[0] == compacts[1]
    torch.save(load_file(file), tmp_path / "dense.pt")
    from_pt = tiny_recipe(dense={"weights": str(tmp_path / "dense.pt"), "epochs": 0})
    assert run_recipe(from_pt, tmp_path / "third")["dense_accuracy"] == given["dense_accuracy"]
    file.write_bytes(b"nothing")
    with pytest.raises(RecipeError, match=r"weights .*dense\.safetensors cannot be loaded"):
        run_recipe(tiny_recipe(dense=dense), tmp_path / "fourth")


def test_a_layer_that_collapses_is_warned_of_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(RunDisplay, "warn", lambda self, message: warnings.append(message))
    summary = run_recipe(tiny_recipe(spr={"lam": 1e5}), tmp_path, judge=False)
    assert summary["collapsed_layers"] == ["0", "4"]
    assert warnings[:2] == [
        "layer 0 collapsed: none of its 8 entities is left",
        "layer 4 collapsed: none of its 16 entities is left",
    ]
    assert [w.partition(":")[0] for w in warnings[2:]] == ["nothing is left of 0, 4"]


def test_without_regularizer_nothing_is_removed(tmp_path: Path) -> None:
    summary = run_recipe(tiny_recipe(spr={"lam": 0.0}), tmp_path)
    assert summary["removed_params"] == summary["masked_filter_weights"] == 0
    assert summary["macs_dense"] == summary["macs_compact"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": "models.resnet_cifar:resnet20"}, r"does not take images of shape \(1, 8, 8\)"),
        ({"model_kwargs": {"num_classes": 4}}, r"digits has 10 classes: --set .*num_classes=10"),
        ({"model": "test_train:untraceable"}, "test_train:untraceable cannot be compacted"),
        ({"model": "models.toy:mlp"}, r"\[spr\] does not fit models.toy:mlp: .*no layer"),
        ({"speed": {"cuda_graph": True}}, "speed.cuda_graph = true needs a CUDA device"),
        ({"speed": {"device": "no-device"}}, "speed.device = 'no-device' cannot be used"),
    ],
)
def test_what_cannot_end_well_does_not_start(
    sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        run_recipe(tiny_recipe(**sections), tmp_path)
    assert not list(tmp_path.iterdir())


class _DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if x.sum() > 0:
            x = -x
        return self.fc(x.flatten(1))


def untraceable() -> nn.Module:
    """A network whose forward pass depends on its data."""
    return _DataDependent()


def test_reproducible_arithmetic_is_undone() -> None:
    threads = torch.get_num_threads()
    with reproducible(1):
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads


def test_seeds_of_epochs_differ() -> None:
    seeds = {
        epoch_seed(seed, phase, epoch)
        for seed in range(3)
        for phase in ("dense", "spr", "finetune")
        for epoch in range(1000)
    }
    assert len(seeds) == 9000

"""Options of [spr] and [finetune] against independent arithmetic: warm-up, M, teacher, start."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import log_softmax, softmax
from tiny_runs import Listening, no_pictures_in, tiny_recipe
from torch import Tensor, nn

from models.toy import convnet
from spr_or.pruning.regularizer import SPR
from spr_or.pruning.steering import Steering, renew_bounds_
from spr_or.training import checkpoint, phases
from spr_or.training.distill import distillation_loss, distilling
from spr_or.training.metrics import read_metrics
from spr_or.training.outcome import failure
from spr_or.training.pruning import make_spr
from spr_or.training.recipe import RecipeError
from spr_or.training.runner import run_recipe
from spr_or.training.setup import load_weights
from spr_or.training.step import make_step


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


# --- distillation ---------------------------------------------------------------------------


def by_numpy(
    student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, weight: float, T: float
) -> float:
    hard = -log_softmax(student, 1)[np.arange(len(labels)), labels].mean()
    p = softmax(teacher / T, 1)
    soft = (p * (np.log(p) - log_softmax(student / T, 1))).sum(1).mean()
    return float((1 - weight) * hard + weight * T * T * soft)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_distillation_loss_is_hintons(weight: float, temperature: float) -> None:
    rng = np.random.default_rng(7)
    student, teacher = 3 * rng.standard_normal((2, 9, 5))
    labels = rng.integers(0, 5, 9)
    logits = torch.tensor(student, requires_grad=True)

    def loss(s: Tensor) -> Tensor:
        return distillation_loss(
            s, torch.tensor(teacher), torch.tensor(labels), weight, temperature
        )

    expected = by_numpy(student, teacher, labels, weight, temperature)
    assert loss(logits).item() == pytest.approx(expected, rel=1e-9)
    assert torch.autograd.gradcheck(loss, logits)


def test_a_step_with_a_teacher_trains_the_student_alone() -> None:
    torch.manual_seed(0)
    student, teacher = convnet(), convnet()
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    taught = teacher.eval()(images).detach().double().numpy()
    found = student.train()(images).detach().double().numpy()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    objective = distilling([teacher.train()], 0.7, 2.0, label_smoothing=0.0, bf16=False)
    loss, _ = make_step(student, optimizer, objective=objective)(images, labels)
    assert loss.item() == pytest.approx(by_numpy(found, taught, labels.numpy(), 0.7, 2.0), rel=1e-5)
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_run_distils_from_its_dense_network(tmp_path: Path) -> None:
    changed = {}
    for weight in (0.0, 0.8):
        folder = tmp_path / str(weight)
        run_recipe(tiny_recipe(finetune={"distill": weight}), folder)
        changed[weight] = read_metrics(folder / "metrics.jsonl")
    pairs = list(zip(changed[0.0], changed[0.8], strict=True))
    same = [a["loss"] == b["loss"] for a, b in pairs]
    assert same == [record["phase"] != "finetune" for record, _ in pairs]


def test_each_teacher_teaches_its_share_of_a_batch() -> None:
    torch.manual_seed(0)
    student, *teachers = (convnet() for _ in range(3))
    images, labels = torch.randn(7, 1, 8, 8), torch.arange(7)
    shares = [t.eval()(x) for t, x in zip(teachers, (images[:4], images[4:]), strict=True)]
    taught = torch.cat(shares).detach().double().numpy()
    logits = student(images)
    objective = distilling(teachers, 0.7, 2.0, label_smoothing=0.0, bf16=False)
    loss = objective(images, logits, labels)
    found = logits.detach().double().numpy()
    assert loss.item() == pytest.approx(by_numpy(found, taught, labels.numpy(), 0.7, 2.0), rel=1e-5)
    alone = objective(images[:1], logits[:1], labels[:1])  # an image for the first teacher only
    one = by_numpy(found[:1], taught[:1], labels[:1].numpy(), 0.7, 2.0)
    assert alone.item() == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(("images", "teachers"), [(64, 9), (8, 5), (32, 7), (3, 4)])
def test_no_teacher_is_left_without_images_while_there_are_any(images: int, teachers: int) -> None:
    seen: dict[int, int] = {}

    class Teacher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen[id(self)] = len(x)
            return torch.zeros(len(x), 10)

    objective = distilling([Teacher() for _ in range(teachers)], 0.5, 1.0, 0.0, bf16=False)
    objective(torch.zeros(images, 1), torch.zeros(images, 10), torch.zeros(images).long())
    assert len(seen) == min(images, teachers) and sum(seen.values()) == images
    assert max(seen.values()) - min(seen.values()) <= 1


def test_teachers_who_share_images_pull_towards_their_mean_probabilities() -> None:
    torch.manual_seed(0)
    teachers, image = [convnet().eval() for _ in range(2)], torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        mean = sum(teacher(image).div(2.0).softmax(1) for teacher in teachers) / 2
    logits = torch.randn(1, 10, requires_grad=True)
    objective = distilling(teachers, 1.0, 2.0, label_smoothing=0.0, bf16=False)
    twice = objective(image.expand(2, -1, -1, -1), logits.expand(2, -1), torch.zeros(2).long())
    (found,) = torch.autograd.grad(twice, logits)
    cross_entropy = -4.0 * (mean * logits.div(2.0).log_softmax(1)).sum()
    (expected,) = torch.autograd.grad(cross_entropy, logits)
    torch.testing.assert_close(found, expected)


def test_a_run_has_other_teachers_beside_its_dense_network(tmp_path: Path) -> None:
    run_recipe(tiny_recipe(), tmp_path / "other")
    (file,) = (tmp_path / "other").rglob("dense.safetensors")
    changed = {}
    for name, teachers in {"alone": [], "two": [str(file)] * 2}.items():
        recipe = tiny_recipe(seeds=(1,), finetune={"distill": 0.8, "teachers": teachers})
        run_recipe(recipe, tmp_path / name)
        changed[name] = read_metrics(tmp_path / name / "metrics.jsonl")
    pairs = list(zip(changed["alone"], changed["two"], strict=True))
    same = [a["loss"] == b["loss"] for a, b in pairs]
    assert same == [record["phase"] != "finetune" for record, _ in pairs]


def test_a_teacher_that_does_not_fit_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, file)
    recipe = tiny_recipe(finetune={"distill": 0.8, "teachers": [str(file)]})
    with pytest.raises(
        RecipeError,
        match=r"weights .*other.safetensors cannot be loaded: .* missing \(0.weight, .*, …\); 1 not in the "
        r"network \(weight\)\nWanted is a state dict",
    ):
        run_recipe(recipe, tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []


def test_a_teacher_whose_weights_are_not_finite_is_told_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    file = tmp_path / "nan.safetensors"
    broken = {
        k: t * float("nan") for k, t in convnet().state_dict().items() if t.is_floating_point()
    }
    save_file(convnet().state_dict() | broken, file)
    recipe = tiny_recipe(finetune={"distill": 0.8, "teachers": [str(file)]})
    with pytest.raises(
        RecipeError, match=r"finetune.teachers: weights .*nan.safetensors: .*not finite"
    ):
        run_recipe(recipe, tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []


def test_what_is_no_state_dict_of_the_network_is_told_as_that(tmp_path: Path) -> None:
    state = convnet().state_dict()
    first = next(iter(state))
    for other, told in (
        ({"phase": "dense", "epoch": 3}, "it holds no tensors by name; a checkpoint has"),
        (state | {first: torch.zeros(2)}, rf"1 of another shape \({first} \(2,\) for "),
        (
            state | {first: state[first].to(torch.complex64)},
            rf"1 not of real numbers \({first} complex64",
        ),
        (state | {first: state[first].long()}, rf"1 not of real numbers \({first} int64\)"),
    ):
        torch.save(other, tmp_path / "weights.pt")
        with pytest.raises(RecipeError, match=told):
            load_weights(convnet(), tmp_path / "weights.pt")


def test_a_teacher_that_guesses_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    file, display = tmp_path / "other.safetensors", Listening()
    save_file(convnet().state_dict(), file)
    recipe = tiny_recipe(finetune={"distill": 0.8, "teachers": [str(file)]})
    run_recipe(recipe, tmp_path / "run", display=display, judge=False)
    (told,) = (line for line in display.warnings if line.startswith("finetune.teachers: "))
    assert "other.safetensors has hardly learnt anything" in told


def test_a_list_is_asked_for_as_toml_writes_it() -> None:
    with pytest.raises(RecipeError, match=r'finetune.teachers: a list is needed, as in \["one"\]'):
        tiny_recipe(finetune={"distill": 0.8, "teachers": "x.pt"})


def test_a_network_that_fine_tuning_lost_is_blamed_on_it() -> None:
    summary = {
        "seed": 0, "classes": 10, "dense_accuracy": 98.0, "accuracy": 12.0, "removed_params": 5,
        "recipe": {"spr": {"lam": "auto", "target_removed_pct": 60, "epochs": 4},
                   "finetune": {"distill": 0.7}},
    }  # fmt: skip
    after = failure([summary | {"accuracy_before_finetune": 60.0}])
    assert after is not None and "lower finetune.lr, or look at finetune.distill" in after
    before = failure([summary | {"accuracy_before_finetune": 12.0}])
    assert before is not None and "Lower spr.lam (it was 'auto')" in before


def test_a_run_goes_on_with_the_teachers_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    save_file(convnet().state_dict(), file)
    recipe = tiny_recipe(finetune={"distill": 0.8, "teachers": [str(file)]})

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(phases, "finetune_phase", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "run")
    first = file.read_bytes()
    save_file(convnet().state_dict(), file)
    with pytest.raises(RecipeError, match=r"other.safetensors is another file than the one"):
        run_recipe(recipe, tmp_path / "run", resume=True)
    file.write_bytes(first)
    run_recipe(recipe, tmp_path / "run", resume=True)


def test_a_dense_network_that_guesses_is_told_before_anything_is_pruned(tmp_path: Path) -> None:
    for lr, told in ((1e-6, True), (0.1, False)):
        display = Listening()
        recipe = tiny_recipe(
            dense={"lr": lr, "epochs": 6}, data={"train_rows": 1024}, finetune={"epochs": 0}
        )
        run_recipe(recipe, tmp_path / str(lr), display=display, judge=False)
        assert any("hardly learnt anything" in line for line in display.warnings) == told


def test_teachers_without_a_weight_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"teachers teach nothing with distill = 0"):
        tiny_recipe(finetune={"teachers": ["x.pt"]})


# --- how fine-tuning begins -----------------------------------------------------------------


@pytest.mark.parametrize(
    "pruned_by",
    [
        {"spr": {"shrink": True}},
        {
            "method": {"name": "pffec"},
            "spr": {"target_removed_pct": 50.0, "start": "dense"},
        },
    ],
    ids=["spr", "pffec"],
)
def test_what_is_kept_gets_the_dense_networks_weights_again(
    pruned_by: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    def look(run: Any, teachers: Any, model: Any, kept: Any, masks: Any, *rest: Any) -> None:
        assert not all(bool(keep.all()) for keep in masks.values())
        for name, keep in masks.items():
            own, first = (net.get_submodule(name).weight for net in (model, teachers[0]))
            assert torch.equal(own[keep], first[keep]) and not own[~keep].any()
        raise Seen

    monkeypatch.setattr(phases, "finetune_phase", look)
    with pytest.raises(Seen):
        run_recipe(tiny_recipe(finetune={"start": "dense"}, **pruned_by), tmp_path)


def test_fine_tuning_has_a_rate_of_its_own(tmp_path: Path) -> None:
    rates = {}
    for lr in (None, 0.04):
        folder = tmp_path / str(lr)
        run_recipe(tiny_recipe(finetune={"epochs": 3, "lr": lr}), folder)
        records = read_metrics(folder / "metrics.jsonl")
        rates[lr] = {p: [r["lr"] for r in records if r["phase"] == p] for p in ("spr", "finetune")}
    assert rates[0.04]["finetune"] == pytest.approx([0.04, 0.04 * 0.75, 0.04 * 0.25])
    assert rates[None]["finetune"] != rates[0.04]["finetune"]
    assert rates[None]["spr"] == rates[0.04]["spr"]


# --- lambda's warm-up -----------------------------------------------------------------------


def test_lambda_rises_linearly_then_stays(tmp_path: Path) -> None:
    run_recipe(tiny_recipe(spr={"epochs": 5, "lam": 8.0, "lam_warmup": 3}), tmp_path)
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["phase"] == "spr"]
    assert [r["lam"] for r in records] == [2.0, 4.0, 6.0, 8.0, 8.0]


def test_a_warm_up_weighs_the_regulariser_less() -> None:
    torch.manual_seed(0)
    model = convnet()
    recipe = tiny_recipe(spr={"method": "gradient", "lam": 8.0, "lam_warmup": 1}).spr
    spr = make_spr(recipe, model, 1.0)
    whole = spr().item()
    steering = Steering(recipe, model, spr)
    steering.begin(0)
    assert spr().item() == pytest.approx(whole / 2)
    steering.begin(1)
    assert spr().item() == pytest.approx(whole)


# --- M read anew ----------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["layer", "entity"])
def test_renewed_bounds_are_the_largest_weights_of_today(per: str) -> None:
    torch.manual_seed(0)
    model = convnet()
    recipe = tiny_recipe(spr={"bounds": per, "entities": ["filters", "neurons"]}).spr
    spr = make_spr(recipe, model, SPR.bounds_from(model, entities=recipe.entities, per=per))
    old = {name: value.bound.clone() for name, value in spr.entity_values().items()}
    with torch.no_grad():
        for key in ("4.weight", "4.bias"):
            model.get_parameter(key).mul_(0.25)
            model.get_parameter(key)[3] = 0  # an entity that is gone
        for key in ("0.weight", "0.bias"):
            model.get_parameter(key).zero_()  # and a layer
    renew_bounds_(spr, recipe.bounds)
    new = {name: value.bound for name, value in spr.entity_values().items()}
    torch.testing.assert_close(new["0"], old["0"], rtol=0, atol=0)
    parts = [model.get_parameter(key).detach().reshape(16, -1) for key in ("4.weight", "4.bias")]
    rows = np.abs(torch.cat(parts, 1).numpy()).max(1)
    if per == "layer":
        expected = np.full(16, rows.max())
    else:
        expected = np.where(rows > 0, np.maximum(rows, 1e-3 * rows.max()), old["4"].numpy())
    np.testing.assert_allclose(new["4"].numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(new["9"], old["9"])  # its weights are as they were


def test_bounds_are_renewed_when_it_is_time(tmp_path: Path) -> None:
    def bounds(every: int) -> Tensor:
        folder = tmp_path / str(every)
        spr: dict[str, Any] = {"epochs": 4, "bounds_every": every, "start": "dense"}
        run_recipe(tiny_recipe(spr=spr, finetune={"epochs": 0}), folder)
        return checkpoint.load(folder / "checkpoints" / "last.pt")["steering"]["bound"]

    never, at_two, at_four = bounds(0), bounds(2), bounds(4)
    assert torch.equal(never, at_four)  # there is no fifth epoch
    assert (at_two <= never).all() and (at_two < never).any()  # |w| <= M after a proximal step

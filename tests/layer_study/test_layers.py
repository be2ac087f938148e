"""Layers of a network as exact problems: against least squares, enumeration and a conic solver."""

import io
import itertools
import json
import os
import shutil

import numpy as np
import pytest
import torch
from damaged import NASTY, damaged, within
from rich.console import Console
from tiny_runs import no_pictures_in, tiny_recipe
from torch import nn
from typer.testing import CliRunner

from models.toy import digits_resnet
from spr_or.cli import app
from spr_or.layer_study import layer_figures
from spr_or.layer_study import study_run as layers_run
from spr_or.layer_study.activations import Patches, refusal, sample_patches
from spr_or.layer_study.basis import perspective_basis
from spr_or.layer_study.kept import Kept, kept_inputs
from spr_or.layer_study.layer_problem import layer_problem
from spr_or.layer_study.layer_report import COLUMNS, row, table
from spr_or.layer_study.standard import standardise
from spr_or.layer_study.study import ChannelChoice, Study, study_layer
from spr_or.layer_study.study_run import LayersError, Settings, load_problem, study_run
from spr_or.layer_study.subsets import elimination, price_for
from spr_or.proof.certificate import load
from spr_or.proof.data import data_of
from spr_or.proof.storage import indicators, point
from spr_or.pruning.compaction.api import compact, load_compact, save_compact
from spr_or.solvers import conic
from spr_or.training.runner import run_recipe


def patches_of(seed: int, channels: int, k: int, q: int, n: int = 200) -> Patches:
    """Correlated channels, as those of a network are."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 3)) @ rng.normal(size=(3, channels * k))
    X = torch.from_numpy(common + rng.normal(size=(n, channels * k)) + 1.0)
    return Patches(X, torch.from_numpy(rng.normal(size=(channels * k, q))))


def least_squares(X, Y, ridge=0.0):
    """min ||X V - Y||^2 + ridge ||V||^2, by numpy's own least squares."""
    rows = np.vstack([X, np.sqrt(ridge) * np.eye(X.shape[1])])
    right = np.vstack([Y, np.zeros((X.shape[1], Y.shape[1]))])
    V = np.linalg.lstsq(rows, right, rcond=None)[0]
    return float(((rows @ V - right) ** 2).sum())


def every_support(problem):
    """The objective and the loss with ridge of each of the 2^N supports, by least squares."""
    X, Y = problem.X.numpy() / np.sqrt(problem.n), problem.y.numpy() / np.sqrt(problem.n)
    columns = [sorted({j // problem.n_outputs for j in g}) for g in problem.entities.groups]
    ridge, price = problem.lam * problem.alpha, problem.lam * (1 - problem.alpha)
    found = {}
    for bits in itertools.product((False, True), repeat=len(columns)):
        used = [j for group, bit in zip(columns, bits, strict=True) if bit for j in group]
        rest = least_squares(X[:, used], Y, ridge) if used else float((Y**2).sum())
        found[bits] = (rest + price * sum(bits), rest)
    return found


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, (3, 2), stride=2, padding=(0, 1), dilation=(2, 1)),
        nn.Conv2d(2, 5, 1, stride=2, bias=False),
    ],
)
def test_patches_times_weights_are_the_layer(layer):
    images = torch.randn(6, layer.in_channels, 9, 8)
    X, W = sample_patches(nn.Sequential(layer), ["0"], [(images, torch.zeros(6))])["0"]
    with torch.no_grad():
        output = nn.functional.conv2d(
            images, layer.weight, None, layer.stride, layer.padding, layer.dilation
        )
    expected = output.movedim(1, -1).flatten(0, 2).double()
    got = X @ W
    distance = torch.cdist(got, expected)
    torch.testing.assert_close(distance.amin(1), torch.zeros(len(got)).double(), rtol=0, atol=1e-5)
    assert len(distance.argmin(1).unique()) == len(got) > 20  # no position twice


def test_patches_leave_the_model_as_it_was():
    model = digits_resnet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(8, 1, 8, 8)
    sample_patches(model, ["layer1.0.conv1"], [(images, torch.zeros(8))])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())


def test_the_positions_of_a_layer_do_not_depend_on_the_others():
    model, batches = digits_resnet(), [(torch.randn(8, 1, 8, 8), torch.zeros(8))]
    name = "layer2.0.conv1"
    alone = sample_patches(model, [name], batches)[name]
    among = sample_patches(model, ["layer1.0.conv1", name], batches)[name]
    torch.testing.assert_close(alone.X, among.X)


def test_layers_without_a_choice_are_refused_with_a_reason():
    assert "one input channel" in refusal(nn.Conv2d(1, 4, 3))
    assert "groups" in refusal(nn.Conv2d(4, 4, 3, groups=4))
    assert "padding" in refusal(nn.Conv2d(4, 4, 3, padding="same"))
    assert "padding" in refusal(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    assert refusal(nn.Conv2d(2, 4, 3)) == ""


def test_the_standard_form_loses_what_the_layer_loses():
    """For every set of channels: centred least squares on the raw patches, over the output's energy."""
    X, W = patches_of(0, channels=4, k=3, q=2)
    X[:, 3:6] = 7.0  # a dead channel
    X[:, 8] = X[:, 7] - 2 * X[:, 6]  # a channel with two directions instead of three
    standard = standardise(Patches(X, W), 4)
    assert standard.channels.tolist() == [0, 2, 3]
    assert [len(group) for group in standard.groups] == [3, 2, 3]
    assert len(standard.U) <= 12 < len(X)
    raw = (X - X.mean(0)).numpy()
    Y = raw @ W.numpy()
    for size in range(4):
        for chosen in itertools.combinations(range(3), size):
            columns = [3 * int(standard.channels[i]) + j for i in chosen for j in range(3)]
            expected = least_squares(raw[:, columns], Y) / (Y**2).sum()
            inside = [j for i in chosen for j in standard.groups[i]]
            got = least_squares(standard.U.numpy()[:, inside], standard.Y.numpy())
            assert got == pytest.approx(expected, abs=1e-9)


def test_a_constant_output_is_refused():
    X, W = patches_of(1, channels=2, k=2, q=2)
    with pytest.raises(ValueError, match="same at every position"):
        standardise(Patches(X, 0 * W), 2)


def test_elimination_follows_least_squares():
    standard = standardise(patches_of(2, channels=5, k=2, q=3), 5)
    path = elimination(standard, ridge=0.01)
    for size in range(6):
        chosen = path.support(size).nonzero().flatten().tolist()
        columns = [j for i in chosen for j in standard.groups[i]]
        expected = least_squares(standard.U.numpy()[:, columns], standard.Y.numpy(), 0.01)
        assert path.curve[size] == pytest.approx(expected, abs=1e-10)


def test_the_price_makes_its_size_the_best():
    rng = np.random.default_rng(0)
    curve = np.cumsum(np.sort(rng.random(9)))[::-1].tolist()  # convex
    for size in range(1, 8):
        price = price_for(curve, size)
        assert min(range(9), key=lambda s: curve[s] + price * s) == size


def test_a_layer_with_few_channels_agrees_with_enumeration():
    for seed in range(3):
        patches = patches_of(seed, channels=7, k=3, q=4)
        kept = Kept((0, 1, 5, 6), gone=False)
        study, certificate = study_layer(
            "layer", patches, 7, kept, keep=0.5, gap=1e-4, time_limit=60.0
        )
        truth = every_support(certificate.problem)
        best = min(objective for objective, _ in truth.values())
        assert certificate.objective == pytest.approx(best, rel=1e-4)
        assert certificate.bound <= best * (1 + 1e-10)
        assert study.status == "optimal" and certificate.check().ok and not study.m_active
        assert study.relaxation <= study.root * (1 + 1e-9) <= best * (1 + 1e-9)
        for way, size in (("best", None), ("spr", 4), ("magnitude", 4)):
            choice = study.choices[way]
            bits = tuple(i in choice.channels for i in range(7))
            assert choice.objective == pytest.approx(truth[bits][0], rel=1e-8)
            assert choice.objective >= certificate.bound
            assert choice.above_bound == pytest.approx(choice.objective / study.bound - 1)
            assert size is None or len(choice.channels) == size
        assert study.choices["spr"].channels == [0, 1, 5, 6]
        norms = patches.W.view(7, -1).norm(dim=1)
        assert study.choices["magnitude"].channels == sorted(norms.topk(4).indices.tolist())
        least = min(rest for bits, (_, rest) in truth.items() if sum(bits) == 4)
        assert study.least_lost is not None and study.least_lost <= least


def test_a_mask_that_says_nothing_is_said_so():
    patches = patches_of(4, channels=4, k=2, q=2)
    for kept, words in (
        (Kept((0, 1, 2, 3), gone=False), "keeps all"),
        (Kept((), gone=False), "keeps none"),
        (Kept((), gone=True), "layer removed"),
    ):
        study, _ = study_layer("layer", patches, 4, kept, keep=0.5, gap=0.01, time_limit=60.0)
        assert study.mask == words and not study.from_mask and study.size == 2
        assert "spr" not in study.choices and study.least_lost is None


def test_the_relaxation_is_that_of_a_conic_solver():
    patches = patches_of(5, channels=4, k=2, q=2)
    study, certificate = study_layer(
        "layer", patches, 4, Kept((0,), gone=False), keep=0.5, gap=1e-3, time_limit=60.0
    )
    truth = conic.solve(certificate.problem, "perspective")
    assert study.relaxation == pytest.approx(truth.objective, abs=2e-3 * study.objective)
    assert study.relaxation <= truth.objective * (1 + 1e-6)


def test_the_basis_is_orthogonal_and_helps():
    standard = standardise(patches_of(6, channels=6, k=3, q=3), 6)
    made = layer_problem("layer", standard, 3)
    for block in perspective_basis(made.problem, made.standard):
        torch.testing.assert_close(block @ block.mT, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(made.standard.U @ made.standard.V0, made.standard.Y)
    torch.testing.assert_close(
        torch.linalg.svdvals(made.standard.U), torch.linalg.svdvals(standard.U)
    )


def test_points_come_back_from_their_indicators():
    study, certificate = study_layer(
        "layer", patches_of(7, channels=6, k=3, q=4), 6, Kept((0, 3), gone=False),
        keep=0.5, gap=1e-3, time_limit=60.0,
    )  # fmt: skip
    data = data_of(certificate.problem)
    split = [record for record in certificate.proof.records if record.d is not None]
    assert split
    for record in split:
        y = indicators(data, record.entities, record.W, record.d)
        assert ((y >= -1e-9) & (y <= 1 + 1e-9)).all()
        again = point(data, record.entities, record.d, y)
        np.testing.assert_allclose(again, record.W, rtol=1e-6, atol=1e-9)


def test_kept_inputs_are_those_the_compacted_network_reads(tmp_path):
    torch.manual_seed(0)
    model = digits_resnet().eval()
    masks = {
        name: torch.rand(m.out_channels) > 0.4
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d)
    }
    masks["layer2.0.conv1"][:] = False
    smaller = compact(model, masks, torch.zeros(1, 1, 8, 8))
    save_compact(tmp_path / "compact.safetensors", smaller, "models.toy:digits_resnet")
    kept = kept_inputs(model, tmp_path / "compact.safetensors")
    small = dict(load_compact(tmp_path / "compact.safetensors").named_modules())
    assert set(kept) == set(masks)
    for name, (channels, gone) in kept.items():
        assert gone == (name not in small)
        if not gone:
            rows = masks[name] if small[name].out_channels == int(masks[name].sum()) else None
            assert small[name].in_channels == len(channels)
            if rows is not None:
                expected = model.get_submodule(name).weight[rows][:, list(channels)]
                torch.testing.assert_close(small[name].weight, expected)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the tiny convolutional network: one layer of one channel, one of eight."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        no_pictures_in(patch)
        run_recipe(tiny_recipe(spr={"start": "dense", "lam": 20.0}), folder)
    return folder


def test_a_run_is_studied_stored_and_read_back(finished, monkeypatch):
    shown = CliRunner().invoke(app, ["layers", str(finished), "--gap", "0.001"])
    assert shown.exit_code == 0, shown.output
    assert "one input channel" in shown.output and "layers.png" in shown.output
    content = json.loads((finished / "layers.json").read_text())
    (layer,) = content["layers"]
    assert layer["layer"] == "4" and layer["inputs"] == 8 and layer["gap"] <= 0.001
    assert set(content["skipped"]) == {"0"} and content["left"] == []
    header, line = (finished / "layers.csv").read_text().splitlines()
    assert header.split(",") == list(COLUMNS) and line.startswith("4,8,")
    assert (finished / "layers.png").stat().st_size > 10_000
    kept = load_compact(finished / "compact.safetensors").get_submodule("4").in_channels
    assert layer["mask"] == ("keeps all" if kept == 8 else f"keeps {kept}")

    problem = load_problem(finished / "layers" / "4.problem.npz")
    certificate = load(finished / "layers" / "4.certificate.json", problem)
    assert certificate.check().ok
    truth = min(objective for objective, _ in every_support(problem).values())
    assert certificate.bound <= truth * (1 + 1e-10)
    assert certificate.objective <= truth * 1.001

    monkeypatch.setattr(layers_run, "study_layer", None)  # must not be called again
    again = CliRunner().invoke(app, ["layers", str(finished), "--gap", "0.001", "--resume"])
    assert again.exit_code == 0 and json.loads((finished / "layers.json").read_text()) == content


def study_of(layer: str, status: str, objective: float, bound: float) -> Study:
    """What could be found of a layer of four channels."""
    choices = {
        way: ChannelChoice([0, 1], objective, 0.01, objective / bound - 1 if bound > 0 else None)
        for way in ("best", "magnitude", "spr")
    }
    return Study(
        layer, 4, 3, [], 2, True, "keeps 2", 2, 100, 8, 0.1, 0.1, status, objective, bound,
        1 - bound / objective, 0.1, 0.2, 0.0, 3, 1.0, False, choices,
    )  # fmt: skip


def test_what_is_not_proven_is_called_best_found():
    studies = [study_of("sure", "optimal", 1.0, 0.995), study_of("open", "time_limit", 1.0, 0.75)]
    assert [row(study)["proven"] for study in studies] == [True, False]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(studies))
    text = console.export_text()
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["sure"][4] == "yes" and lines["open"][4] == "25.0"
    assert "found" in text and "provably" not in text and "…" not in text


def test_one_large_gap_leaves_the_others_visible(tmp_path, monkeypatch):
    studies = [
        study_of("a", "optimal", 1.0, 0.98),
        study_of("b", "time_limit", 1.0, 0.25),  # 300 % above its bound
        study_of("c", "time_limit", 1.0, -1.0),
    ]
    drawn = []
    monkeypatch.setattr(layer_figures.plt, "close", drawn.append)
    layer_figures.draw(studies, tmp_path / "layers.png")
    monkeypatch.undo()
    (figure,) = drawn
    top = figure.axes[0]
    heights = [bar.get_height() for bar in top.patches]
    assert heights[:2] == pytest.approx([100 * (1 / 0.98 - 1), 300.0])
    on_screen = [top.transData.transform((0, h))[1] for h in (0.0, *heights[:2])]
    assert (on_screen[1] - on_screen[0]) / (on_screen[2] - on_screen[0]) > 0.2
    assert [text.get_text() for text in top.texts] == ["no bound"]
    layer_figures.plt.close(figure)


def test_a_mask_from_another_start_is_called_that(finished, tmp_path):
    assert study_run(finished, only=["0"]).notes == []
    folder = tmp_path / "scratch"
    shutil.copytree(finished, folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["spr"]["start"] = "scratch"
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (note,) = study_run(folder, only=["0"]).notes
    assert "started from scratch" in note


def test_layers_that_are_too_wide_are_listed(finished):
    found = study_run(finished, Settings(max_channels=4))
    assert found.studies == [] and "more than --max-channels 4" in found.skipped["4"]


def test_an_interrupted_layer_is_kept_and_solved_again(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "layers", ignore_errors=True)

    def interrupted(*arguments, progress, **rest):
        def stop(now):
            raise KeyboardInterrupt

        return study_layer(*arguments, progress=stop, **rest)

    monkeypatch.setattr(layers_run, "study_layer", interrupted)
    shown = CliRunner().invoke(app, ["layers", str(folder), "--gap", "0.0001"])
    assert shown.exit_code == 130 and "goes on" in shown.output
    (layer,) = json.loads((folder / "layers.json").read_text())["layers"]
    assert layer["status"] == "interrupted" and layer["gap"] > 0
    monkeypatch.undo()
    (study,) = study_run(folder, Settings(gap=0.0001)).studies
    assert study.status == "optimal" and study.objective <= layer["objective"]


def test_an_open_gap_is_said_and_taken_up_again(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "layers", ignore_errors=True)

    def without_time(*arguments, time_limit, **rest):
        return study_layer(*arguments, time_limit=0.0, **rest)

    monkeypatch.setattr(layers_run, "study_layer", without_time)
    arguments = ["layers", str(folder), "--gap", "0.0001"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 1 and "not proven to the gap: 4; --resume" in shown.output
    monkeypatch.undo()
    assert CliRunner().invoke(app, arguments).exit_code == 1  # stored, and read back
    assert CliRunner().invoke(app, [*arguments, "--resume"]).exit_code == 0


def test_what_cannot_be_studied_says_why(finished, tmp_path):
    def message(folder, *options):
        shown = CliRunner().invoke(app, ["layers", str(folder), *options])
        assert shown.exit_code == 2 and "Traceback" not in shown.output
        return " ".join(shown.output.split())

    assert "there is no run at" in message(tmp_path / "nowhere")
    assert "no recipe.json" in message(tmp_path)
    assert "there is no convolution 'conv9'" in message(finished, "--layer", "conv9")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished, unfinished)
    (unfinished / "compact.safetensors").unlink()
    assert "is not finished, it has no compact.safetensors" in message(unfinished)
    several = tmp_path / "several"
    shutil.copytree(finished, several / "seed-0")
    assert "holds several seeds" in message(several)
    absent = tmp_path / "absent"
    shutil.copytree(finished, absent)
    shutil.rmtree(absent / "layers", ignore_errors=True)
    recipe = json.loads((absent / "recipe.json").read_text())
    recipe["data"]["source"] = str(tmp_path / "no-data")
    (absent / "recipe.json").write_text(json.dumps(recipe))
    assert "no-data" in message(absent)


@pytest.mark.parametrize("name", ["recipe.json", "dense.safetensors", "compact.safetensors"])
def test_cut_files_of_a_run_are_named(finished, tmp_path, name):
    copy = tmp_path / "cut"
    shutil.copytree(finished, copy, ignore=shutil.ignore_patterns("layers*"))
    for content in (b"", b"{", b"[" * 100_000, (finished / name).read_bytes()[:-20]):
        (copy / name).write_bytes(content)
        shown = CliRunner().invoke(app, ["layers", str(copy)], env={"COLUMNS": "300"})
        assert shown.exit_code == 2 and name in shown.output, (shown.output, shown.exception)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with within(20):
        shown = CliRunner().invoke(app, ["layers", str(copy)])
    assert shown.exit_code == 2 and "not a regular file" in shown.output


def test_a_damaged_study_is_not_believed(finished, tmp_path):
    """It counts as not stored; what is read back is a study of that layer, with its choices."""
    study_run(finished, Settings(gap=0.001))
    source, settings = layers_run.open_run(finished), Settings(gap=0.001)
    content = (finished / "layers" / "4.json").read_bytes()
    (tmp_path / "4.json").write_bytes(content)
    assert layers_run._stored(tmp_path, "4", source, settings, False) is not None
    for changed in damaged(content, 300, seed=9):
        (tmp_path / "4.json").write_bytes(changed)
        found = layers_run._stored(tmp_path, "4", source, settings, False)
        if found is not None:
            row(found)
            table([found])


def test_a_damaged_problem_of_a_layer_is_named(finished, tmp_path):
    study_run(finished, Settings(gap=0.001))
    content = (finished / "layers" / "4.problem.npz").read_bytes()
    path = tmp_path / "4.problem.npz"
    with within(60):
        for changed in damaged(content, 200, seed=10):
            path.write_bytes(changed)
            try:
                load_problem(path)
            except LayersError as error:
                assert str(path) in str(error)
    with np.load(io.BytesIO(content)) as stored:
        arrays = dict(stored)
    for wrong in ([8, 0], [-1, 9], [1], [10**12]):
        np.savez(path, **{**arrays, "lengths": np.array(wrong)})
        with pytest.raises(LayersError, match="lengths of the groups"):
            load_problem(path)


@pytest.mark.parametrize("name", NASTY)
def test_strange_names_of_layers_are_shown_as_they_are(tmp_path, name):
    study = study_of(name, "optimal", 1.0, 1.0)
    screen = Console(file=io.StringIO(), width=200)
    screen.print(table([study]))
    shown = screen.file.getvalue()
    assert all(c.isprintable() or c == "\n" for c in shown)
    if name.isprintable():
        assert name in shown
    layer_figures.draw([study], tmp_path / "layers.png")


def test_a_network_without_convolutions_is_refused(tmp_path):
    folder = tmp_path / "mlp"
    recipe = tiny_recipe(
        model="models.toy:mlp", dense={"epochs": 1}, spr={"epochs": 1, "entities": "neurons"},
        finetune={"epochs": 1},
    )  # fmt: skip
    run_recipe(recipe, folder, judge=False)
    with pytest.raises(LayersError, match="no convolutions"):
        study_run(folder)

"""What stands in a run's folder: who is at work there, what may change, what is damaged."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from slow_cases import slow_unless
from tiny_runs import Listening, no_pictures_in, stopped_at, tiny_recipe
from typer.testing import CliRunner

from spr_or.cli import app
from spr_or.training.metrics import read_metrics, what_is_lost
from spr_or.training.recipe import Recipe, RecipeError
from spr_or.training.runner import FolderInUse, run_recipe
from spr_or.utils import folder_lock
from spr_or.utils.folder_lock import alone_in

TINY = tiny_recipe(data={"train_rows": 64, "eval_rows": 32})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


def begun(folder: Path, recipe: Recipe = TINY, at: tuple[str, int] = ("finetune", 0)) -> None:
    """A run that was stopped before the checkpoint of that epoch."""
    with pytest.raises(KeyboardInterrupt), stopped_at(*at):
        run_recipe(recipe, folder)


def resumed(folder: Path, recipe: Recipe = TINY) -> Listening:
    display = Listening()
    run_recipe(recipe, folder, resume=True, display=display)
    return display


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of `TINY` that tests copy: "whole", "half" before fine-tuning, "late" after an epoch of it."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        no_pictures_in(patch)
        run_recipe(TINY, folder / "whole")
    begun(folder / "half")
    begun(folder / "late", at=("finetune", 1))
    return folder


# --- two at once ----------------------------------------------------------------------------


def test_two_runs_in_one_folder_end_with_status_2_for_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "_GRACE", 0.1)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('model = "models.toy:convnet"\n[spr]\nlam = 7.0\nalpha = 0.3\n')
    out = tmp_path / "out"
    with alone_in(out, "run"):
        for more in ([], ["--resume"]):
            second = CliRunner().invoke(app, ["run", str(recipe), "--out", str(out), *more])
            assert second.exit_code == 2
            assert f"another run is at work in {out} (process {os.getpid()} on" in second.output
        assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_run_holds_the_lock_from_before_its_first_file_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "_GRACE", 0.0)
    seen: list[str] = []

    class Intruding(Listening):
        def epoch(self, record: dict[str, Any]) -> None:
            with pytest.raises(FolderInUse, match=rf"at work in {tmp_path}"):
                run_recipe(TINY, tmp_path, resume=True)
            seen.append(record["phase"])

    run_recipe(TINY, tmp_path, display=Intruding())
    assert len(seen) == 7
    assert not (tmp_path / ".lock").exists()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["phase"], r["epoch"]) for r in records] == [
        *(("dense", e) for e in range(2)), *(("spr", e) for e in range(3)),
        *(("finetune", e) for e in range(2)),
    ]  # fmt: skip


def _start(folder: str, answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        run_recipe(TINY, Path(folder))
        answers.put("done")
    except FolderInUse as error:
        answers.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="spawning would import torch again")
@pytest.mark.skipif(torch.version.cuda is not None, reason="autograd's threads survive no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_four_started_at_once_one_runs(tmp_path: Path) -> None:
    """The check of the folder lies behind the lock: none slips in between."""
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()
    processes = [
        context.Process(target=_start, args=(str(tmp_path / "out"), answers)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    told = sorted(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    assert [text == "done" for text in told].count(True) == 1
    refused = [text for text in told if text != "done"]
    assert all("at work" in text or "already holds a run" in text for text in refused)
    assert len(read_metrics(tmp_path / "out" / "metrics.jsonl")) == 7


def test_a_finished_run_is_read_while_another_process_keeps_the_folder(prepared: Path) -> None:
    first = json.loads((prepared / "whole" / "summary.json").read_text())
    with alone_in(prepared / "whole", "run"):
        assert run_recipe(TINY, prepared / "whole", resume=True) == first


@pytest.mark.slow
def test_torchrun_takes_the_lock_once_and_both_processes_end_when_it_is_taken(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "spr_or.cli", "run", "digits", "--out", str(out),
        "--set", "seeds=[0]", "--set", "dense.epochs=1", "--set", "spr.epochs=1",
        "--set", "finetune.epochs=1", "--set", "data.train_rows=128",
        "--set", "spr.target_removed_pct=30",
    ]  # fmt: skip
    with alone_in(out, "run"):
        refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode != 0
    assert f"another run is at work in {out} (process {os.getpid()}" in refused.stderr
    assert not (out / "recipe.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (out / "summary.json").exists() and not (out / ".lock").exists()


# --- what may change ------------------------------------------------------------------------

_OTHER: dict[str, Any] = {  # a value for every key that the tiny recipe does not have
    "model": "models.toy:mlp", "model_kwargs": {"num_classes": 11}, "seeds": (1,),
    "data.source": "other/set", "data.name": "x", "data.revision": "x", "data.train_split": "x",
    "data.eval_split": "x", "data.train_rows": 65, "data.held_out": 0.25, "data.eval_rows": 33,
    "data.size": 9, "data.cutout": 2,
    "data.crop": 2, "data.flip": True, "data.random_resized_crop": True, "data.mean": (0.5,),
    "data.std": (0.5,), "data.batch_size": 16, "data.memory": "stream", "train.momentum": 0.5,
    "train.weight_decay": 0.1, "train.nesterov": True, "train.label_smoothing": 0.1,
    "dense.lr": 0.2, "dense.schedule": "cosine", "dense.milestones": (1,), "dense.gamma": 0.5,
    "dense.warmup": 1, "dense.epochs": 3, "dense.weights": Path("x.pt"), "spr.lr": 0.2,
    "spr.schedule": "cosine", "spr.milestones": (1,), "spr.gamma": 0.5, "spr.warmup": 1,
    "spr.epochs": 4, "spr.method": "gradient", "spr.variant": "printed", "spr.lam": 1.0,
    "spr.alpha": 0.1, "spr.entities": "neurons", "spr.include_norm": True, "spr.u": "uniform",
    "spr.bounds": "entity", "spr.bounds_every": 2, "spr.lam_warmup": 1,
    "spr.target_removed_pct": 50.0, "spr.target_of": "macs", "spr.round_to": 8, "spr.min_keep": 2,
    "spr.ignored": ("0",), "spr.start": "dense", "spr.zero_below": 0.1, "spr.share": 0.5,
    "spr.shrink": True, "spr.shrink_after": 3, "spr.cut": "exact",
    "spr.also_removed_pct": {"macs": 40.0}, "spr.improve": "swaps",
    "method.name": "pffec", "finetune.epochs": 3, "finetune.lr": 0.2, "finetune.start": "dense",
    "finetune.distill": 0.5, "finetune.temperature": 2.0,
    "finetune.teachers": (Path("x.pt"),),
    "speed.amp": "bf16",
}  # fmt: skip
_MAY: dict[str, Any] = {
    "name": "x", "note": "x", "data.cache": Path("x"), "data.workers": 1,
    "data.eval_batch_size": 9, "speed.device": "cpu:0", "speed.auto": False, "speed.threads": 2,
    "speed.channels_last": True, "speed.compile": True, "speed.cuda_graph": True,
}  # fmt: skip


def changed(recipe: Recipe, key: str, value: object) -> Recipe:
    section, _, name = key.rpartition(".")
    if not section:
        return recipe.model_copy(update={name: value})
    part = getattr(recipe, section).model_copy(update={name: value})
    return recipe.model_copy(update={section: part})


def keys_of(recipe: Recipe) -> set[str]:
    found = set()
    for name, value in recipe:
        inner = getattr(type(value), "model_fields", None)
        found |= {name} if inner is None else {f"{name}.{key}" for key in inner}
    return found


def test_every_key_of_a_recipe_is_in_one_of_the_two_lists() -> None:
    """A new key must be thought about: does it change what is computed?"""
    assert _OTHER.keys() | _MAY.keys() == keys_of(TINY) and not _OTHER.keys() & _MAY.keys()


@pytest.mark.parametrize("key", _OTHER)
def test_what_changes_the_meaning_of_a_run_may_not_change(key: str, prepared: Path) -> None:
    name = key.replace(".", r"\.")
    with pytest.raises(FolderInUse, match=rf"another recipe \(.*{name}\S* was .*, now"):
        run_recipe(changed(TINY, key, _OTHER[key]), prepared / "half", resume=True)


@pytest.mark.parametrize("key", [key for key in _MAY if key != "speed.cuda_graph"])
def test_names_and_what_costs_time_may_change(
    key: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PassedTheCheck(Exception):
        pass

    def load(*arguments: Any) -> None:
        raise PassedTheCheck

    monkeypatch.setattr("spr_or.training.runner.load_data", load)
    with pytest.raises(PassedTheCheck):
        run_recipe(changed(TINY, key, _MAY[key]), prepared / "half", resume=True)


# --- metrics --------------------------------------------------------------------------------


def cut_last_line(lines: list[str]) -> str:
    return "".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda lines: "".join(lines), None),
        (lambda lines: "".join(lines) + '{"phase": "finetu', "line 7 is cut or damaged, its epoch"),
        (lambda lines: "".join(lines) + "12", "line 7 is cut or damaged, its epoch is repeated"),
        (lambda lines: "".join(lines[:5]), "no records of finetune 0; reports lack them"),
        (cut_last_line, "line 6 is cut or damaged, no records of finetune 0; reports lack"),
        (lambda lines: "".join(lines[:1]), "no records of dense 1, spr 0, spr 1, spr 2, finetune"),
        (
            lambda lines: "".join([*lines[:2], "\x00\n", *lines[3:]]),
            "line 3 is cut or damaged, no records of spr 0, spr 1, spr 2, finetune 0;",
        ),
        (lambda lines: "", "no records of dense 0, dense 1, spr 0"),
    ],
)
def test_lost_records_are_told(
    damage: Callable[[list[str]], str], told: str | None, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared / "late", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)[:6]  # as the checkpoint knows them
    assert len(lines) == 6
    path.write_text(damage(lines))
    warnings = resumed(tmp_path).warnings
    if told is None:
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.startswith(f"{path}: ") and told in warning
    assert (tmp_path / "summary.json").exists()


def test_a_file_that_is_gone_is_told(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "late", tmp_path, dirs_exist_ok=True)
    (tmp_path / "metrics.jsonl").unlink()
    (warning,) = resumed(tmp_path).warnings
    assert "no records of dense 0, dense 1, spr 0, spr 1, spr 2, finetune 0" in warning


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"phase": "dense", "epoch": 0}\n\xff\xfe\n')
    assert len(read_metrics(path)) == 1
    assert what_is_lost(path, [("dense", 0)]) == (
        f"{path}: line 2 is cut or damaged, its epoch is repeated"
    )


# --- damaged summaries and recipes ----------------------------------------------------------

CONTENTS = ["", "{", "[1]", '{"other": 1}', "\x00", "[" * 100_000]


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_summary_is_made_again(content: str, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "whole", tmp_path, dirs_exist_ok=True)
    first = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(content)
    display = resumed(tmp_path)
    (warning,) = display.warnings
    assert warning.startswith(str(tmp_path / "summary.json")) and "not finished" in warning
    again = json.loads((tmp_path / "summary.json").read_text())
    for clocked in ("epoch_seconds", "latency_ms_dense", "latency_ms_compact", "speedup"):
        first.pop(clocked)
        again.pop(clocked)
    assert again == first


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_recipe_is_named_unless_the_summary_holds_it(
    content: str, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared / "half", tmp_path, dirs_exist_ok=True)
    (tmp_path / "recipe.json").write_text(content)
    named = rf"{tmp_path / 'recipe.json'} is .*remove .*recipe\.json.*--out"
    with pytest.raises(FolderInUse, match=named):
        run_recipe(TINY, tmp_path, resume=True)
    (tmp_path / "recipe.json").unlink()
    run_recipe(TINY, tmp_path, resume=True)
    (tmp_path / "recipe.json").write_text(content)
    assert run_recipe(TINY, tmp_path, resume=True)["recipe"]["spr"]["lam"] == 7.0
    with pytest.raises(FolderInUse, match=r"spr\.lam was 7\.0, now 1\.0"):
        run_recipe(changed(TINY, "spr.lam", 1.0), tmp_path, resume=True)


@pytest.mark.parametrize(("file", "command"), [("summary", "tables"), ("recipe", "layers")])
@pytest.mark.parametrize("content", slow_unless(lambda c: c in CONTENTS[:2], CONTENTS))
def test_other_commands_name_a_damaged_file_in_one_line(
    content: str, file: str, command: str, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    for name in ("metrics.jsonl", "dense.safetensors", "compact.safetensors"):
        (run / name).write_text("")
    (run / f"{file}.json").write_text(content)
    more = ["--out", str(tmp_path / "tables")] if command == "tables" else []
    place = run.parent if command == "tables" else run
    done = CliRunner().invoke(app, [command, str(place), *more])
    assert done.exit_code == (0 if command == "tables" else 2)
    (line,) = [line for line in done.output.splitlines() if f"{file}.json" in line]
    assert str(run / f"{file}.json") in line
    assert "Traceback" not in done.output


# --- what a run says ------------------------------------------------------------------------


def test_a_run_says_where_its_network_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "run_folder_networks.py"
    own.write_text("from models.toy import convnet\n")
    monkeypatch.chdir(tmp_path)
    display = Listening()
    recipe = changed(TINY, "model", "run_folder_networks:convnet")
    run_recipe(recipe, tmp_path / "out", display=display)
    assert f"network: run_folder_networks:convnet from {own}" in display.lines


_NETWORKS = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.f, self.g, self.h = nn.Linear(64, 12), nn.Linear(64, 12), nn.Linear(24, num_classes)
        self.g.weight = self.f.weight

    def forward(self, x):
        x = x.flatten(1)
        return self.h(torch.cat([self.f(x), self.g(-x)], 1).relu())

class Pair(Tied):
    def forward(self, x):
        return super().forward(x), x

class Extra(Tied):
    def get_extra_state(self):
        return {"version": 1}

class Sparse(Tied):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.register_buffer("links", torch.eye(4).to_sparse())

class Expanded(Tied):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.register_buffer("ones", torch.ones(1).expand(4))

def lazy(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(num_classes))
"""


@pytest.fixture
def odd_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_run_networks.py").write_text(_NETWORKS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Pair", "returns a tuple, and a run trains on one tensor of logits"),
        ("Extra", "_extra_state of its state is a dict, and a run stores tensors"),
        ("Expanded", "numbers of ones share memory"),
        ("Sparse", "links is sparse"),
        ("lazy", "1.weight has no shape yet"),
    ],
)
def test_networks_that_a_run_cannot_train_are_refused_at_the_start(
    odd_networks: None, tmp_path: Path, name: str, told: str
) -> None:
    with pytest.raises(RecipeError, match=f"odd_run_networks:{name}.*{told}"):
        run_recipe(changed(TINY, "model", f"odd_run_networks:{name}"), tmp_path / "out")


def test_layers_that_share_a_weight_are_stored_and_reported(
    odd_networks: None, tmp_path: Path
) -> None:
    recipe = changed(TINY, "model", "odd_run_networks:Tied")
    for key, value in {
        "spr.target_removed_pct": 40.0,
        "spr.entities": ("filters", "neurons"),
    }.items():
        recipe = changed(recipe, key, value)
    summary = run_recipe(recipe, tmp_path / "out", judge=False)
    stored = load_file(tmp_path / "out" / "dense.safetensors")
    assert torch.equal(stored["f.weight"], stored["g.weight"])
    rows = {row["layer"]: row for row in summary["layers"]}
    left = summary["parameters"] - summary["removed_params"]
    assert sum(row["params_after"] for row in rows.values()) == left
    assert all(row["params_after"] <= row["params_before"] for row in rows.values())
    assert rows["f"]["filters_after"] == rows["g"]["filters_after"] > 0


def test_a_run_says_which_keys_its_phases_are_too_short_for(tmp_path: Path) -> None:
    display = Listening()
    recipe = TINY
    for key, value in {"finetune.epochs": 0, "finetune.distill": 0.5, "dense.warmup": 9}.items():
        recipe = changed(recipe, key, value)
    run_recipe(recipe, tmp_path / "out", display=display)
    told = "\n".join(display.warnings)
    assert "dense.warmup = 9 is not shorter than dense.epochs" in told
    assert "finetune.distill: with finetune.epochs = 0" in told and "spr.warmup" not in told


@pytest.mark.parametrize(("command", "name"), [("run", "digits"), ("sweep", "table01")])
def test_the_help_says_that_names_will_do(command: str, name: str) -> None:
    text = " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
    assert f"a TOML file, or a shipped name such as {name}" in text


def test_what_a_killed_process_had_not_finished_writing_goes(
    prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared / "half", tmp_path, dirs_exist_ok=True)
    left = [
        tmp_path / ".metrics.123.jsonl",
        tmp_path / "checkpoints" / ".next.123.pt",
        tmp_path / "figures" / ".1-accuracy-and-sparsity.123.png",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / ".mine").touch()
    resumed(tmp_path)
    assert not any(path.exists() for path in left) and (tmp_path / ".mine").exists()

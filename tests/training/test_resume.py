"""Nothing is lost: kill -9, cut files, full disks, and what a resumed run is allowed to be."""

import errno
import itertools
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from forking_server import Server
from tiny_runs import assert_identical, no_pictures_in, stopped_at, tiny_recipe

from spr_or.sweeps.jobs import begin_after, dense_recipe
from spr_or.training import checkpoint, one_phase
from spr_or.training.checkpoint import CheckpointError, load, load_last, save_best, save_last
from spr_or.training.metrics import Metrics, read_metrics
from spr_or.training.run_progress import RunDisplay
from spr_or.training.runner import run_recipe
from spr_or.training.seed_run import RunError
from spr_or.utils.files import DiskFull

EPOCHS = 22  # of the run in kill_worker.py


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker forks")
@pytest.mark.parametrize("enough", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(
    enough: int, tmp_path: Path
) -> None:
    worker = Server("kill_worker.py")
    try:
        started = time.monotonic()
        worker.ask(str(tmp_path / "whole"))
        assert worker.ask("wait") == 0
        an_epoch = (time.monotonic() - started) / EPOCHS
        dice = random.Random(4)
        kills, folder = 0, 0
        moments: set[tuple[Any, ...]] = set()
        while True:
            place = tmp_path / f"killed-{folder}"
            process = worker.ask(str(place))
            if kills < enough:
                # A few epochs further, so that it moves on however slow the machine is now.
                _wait_for_epochs(place, _epochs(place) + dice.randint(0, 4))
                time.sleep(dice.uniform(0, an_epoch))
                os.kill(process, signal.SIGKILL)  # a zombie takes it without complaint
            status = worker.ask("wait")
            if status == -signal.SIGKILL:
                kills += 1
                moments.add((folder, _epochs(place)))
                continue
            assert status == 0
            _assert_same_result(tmp_path / "whole", place)
            if kills >= enough:
                break
            folder += 1
    finally:
        worker.close()
    assert len(moments) >= min(enough - 1, 5), (
        moments
    )  # the kills hit training, at different epochs


def _epochs(folder: Path) -> int:
    return len(read_metrics(folder / "metrics.jsonl"))


def _wait_for_epochs(folder: Path, count: int) -> None:
    until = time.monotonic() + 30
    while _epochs(folder) < min(count, EPOCHS) and time.monotonic() < until:
        time.sleep(0.002)


def _assert_same_result(one: Path, two: Path) -> None:
    for name in ("compact.safetensors", "dense.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert sorted(p.name for p in (two / "checkpoints").iterdir()) == [
        "best.pt",
        "last.pt",
        "previous.pt",
    ]
    states = [load(folder / "checkpoints" / "last.pt") for folder in (one, two)]
    assert_identical(states[0], states[1], "last.pt")
    records = [read_metrics(folder / "metrics.jsonl") for folder in (one, two)]
    for record in (*records[0], *records[1]):
        del record["seconds"], record["data_wait_share"]
    assert records[0] == records[1] and len(records[0]) == EPOCHS


def test_a_cut_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_last(tmp_path, {"phase": "spr", "epoch": epoch, "model": {"w": torch.ones(1000)}})
    last = tmp_path / "last.pt"
    content = last.read_bytes()
    for damaged in (content[: len(content) // 2], b"", _flipped(content)):
        last.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt is (truncated|damaged)"):
            load(last)
        state, warning = load_last(tmp_path)
        assert state is not None and state["epoch"] == 1
        assert warning is not None and "last.pt" in warning and "previous.pt" in warning
    last.unlink()  # killed between the two renames
    state, warning = load_last(tmp_path)
    assert state is not None and state["epoch"] == 1 and warning is None
    (tmp_path / "previous.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"previous\.pt is truncated.*remove"):
        load_last(tmp_path)
    assert load_last(tmp_path / "nothing") == (None, None)


def _flipped(content: bytes) -> bytes:
    place = content.index(torch.ones(8).numpy().tobytes())
    return content[:place] + b"\xff" + content[place + 1 :]


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": 1, "model": Trap()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        load(tmp_path / "last.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_keeps_the_checkpoints_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe()
    run_recipe(recipe, tmp_path / "whole")
    saved, calls = torch.save, 0

    def full_after_three(state: object, stream: BinaryIO) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            with open("/dev/full", "wb") as full:
                saved(state, full)
        saved(state, stream)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", full_after_three)
        with pytest.raises(DiskFull, match="the disk is full.*--resume"):
            run_recipe(recipe, tmp_path / "full")
    state, warning = load_last(tmp_path / "full" / "checkpoints")
    assert state is not None and warning is None
    assert not list((tmp_path / "full" / "checkpoints").glob(".*"))  # nothing half-written
    run_recipe(recipe, tmp_path / "full", resume=True)
    whole = (tmp_path / "whole" / "compact.safetensors").read_bytes()
    assert (tmp_path / "full" / "compact.safetensors").read_bytes() == whole


def test_not_finite_says_where_what_to_change_and_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(
        RunError,
        match=r"became nan at step \d+ of epoch 0 of phase spr, .*1e\+30.*spr\.lr and spr\.lam.*"
        r"last good checkpoint: .*last\.pt",
    ):
        run_recipe(tiny_recipe(spr={"lr": 1e30, "method": "gradient"}), tmp_path)
    state = load(tmp_path / "checkpoints" / "last.pt")
    assert (state["phase"], state["epoch"]) == ("dense", 2)
    assert all(t.isfinite().all() for t in state["model"].values())


def test_weights_of_the_last_step_of_all_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss has seen them, so a loss that is finite says nothing of them."""
    really, epochs = one_phase.train_epoch, itertools.count(1)

    def train_epoch(step: Any, batches: Any, on_batch: Any) -> Any:
        if next(epochs) < 4:
            return really(step, batches, on_batch)
        *rest, last = list(batches)
        scores = really(step, [*rest, last], on_batch)
        step.optimizer_of_test.param_groups[0]["params"][0].data.fill_(float("nan"))
        return scores

    made = one_phase.make_step

    def make_step(model: Any, optimizer: Any, **settings: Any) -> Any:
        step = made(model, optimizer, **settings)
        step.optimizer_of_test = optimizer  # type: ignore[attr-defined]
        return step

    monkeypatch.setattr(one_phase, "train_epoch", train_epoch)
    monkeypatch.setattr(one_phase, "make_step", make_step)
    recipe = tiny_recipe(dense={"epochs": 1}, spr={"epochs": 2}, finetune={"epochs": 1})
    told = r"weights became NaN or infinite in the last step of epoch 0 of phase finetune, "
    with pytest.raises(RunError, match=told):
        run_recipe(recipe, tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_another_recipe_does_not_continue_a_run(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    first = run_recipe(recipe, tmp_path)
    with pytest.raises(RunError, match=r"already holds a run: .*--resume.*--out"):
        run_recipe(recipe, tmp_path)
    with pytest.raises(RunError, match=r"another recipe \(spr\.lam was 7\.0, now 3\.0\)"):
        run_recipe(tiny_recipe(spr={"lam": 3.0}), tmp_path, resume=True)
    # A finished run is only read, whatever the device.
    other = tiny_recipe(speed={"threads": 2})
    assert run_recipe(other, tmp_path, resume=True) == first


def test_a_faulty_start_leaves_nothing_that_blocks_the_next(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eval_rows = 5000"):
        run_recipe(tiny_recipe(data={"eval_rows": 5000}), tmp_path)
    run_recipe(tiny_recipe(), tmp_path)


def test_metrics_have_each_epoch_once_after_a_resumption(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, kept=0)
    for epoch in range(3):
        metrics.add({"epoch": epoch})
    with metrics.path.open("a") as stream:
        stream.write('{"epoch": 3, "los')  # killed while writing
    assert [r["epoch"] for r in read_metrics(metrics.path)] == [0, 1, 2]
    resumed = Metrics(tmp_path, kept=2)
    resumed.add({"epoch": 2, "again": True})
    lines = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert lines == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2, "again": True}]


def test_best_and_last_are_separate(tmp_path: Path) -> None:
    save_best(tmp_path, {"epoch": 1})
    save_last(tmp_path, {"epoch": 2})
    assert load(tmp_path / "best.pt")["epoch"] == 1
    assert load(tmp_path / "last.pt")["epoch"] == 2


def test_a_run_stored_before_u_had_its_name_is_continued(tmp_path: Path) -> None:
    recipe = tiny_recipe(data={"train_rows": 64, "eval_rows": 32})
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 1):
        run_recipe(recipe, tmp_path)
    stored = json.loads((tmp_path / "recipe.json").read_text())
    assert stored["spr"].pop("u") == "share"
    stored["spr"]["weights"] = "parameters"
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    uniform = recipe.model_copy(update={"spr": recipe.spr.model_copy(update={"u": "uniform"})})
    with pytest.raises(RunError, match="spr.u was 'share', now 'uniform'"):
        run_recipe(uniform, tmp_path, resume=True)
    assert run_recipe(recipe, tmp_path, resume=True)["accuracy"] > 0


def test_no_space_is_recognised_in_what_torch_raises(tmp_path: Path) -> None:
    from spr_or.utils.files import write_durably

    def torchs(aside: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    with pytest.raises(DiskFull) as caught:
        write_durably(tmp_path / "last.pt", torchs)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="something else"):
        write_durably(tmp_path / "last.pt", lambda aside: _raise("something else"))


def _raise(message: str) -> None:
    raise RuntimeError(message)


def test_a_network_whose_file_was_edited_meanwhile_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(RunDisplay, "warn", lambda self, line: told.append(line))
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_net.py"
    file.write_text("from models.toy import digits_resnet\n")
    recipe = tiny_recipe(model="edited_net:digits_resnet", model_kwargs={})
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 1):
        run_recipe(recipe, tmp_path / "run", judge=False)
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 1):
        run_recipe(recipe, tmp_path / "run", judge=False, resume=True)
    assert not any("has changed" in line for line in told)
    file.write_text("from models.toy import digits_resnet  # now with a comment\n")
    with pytest.raises(KeyboardInterrupt), stopped_at("spr", 1):
        run_recipe(recipe, tmp_path / "run", judge=False, resume=True)
    assert any("the file of edited_net:digits_resnet has changed" in line for line in told)


def test_a_network_whose_file_is_edited_while_it_trains_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored belongs to the code that runs, not to the file as it is when a checkpoint is written."""
    told: list[str] = []
    shown = RunDisplay.epoch
    file = tmp_path / "edited_later.py"
    text = "from models.toy import digits_resnet\n"

    def edit(self: RunDisplay, record: dict[str, Any]) -> None:
        file.write_text(text + "# meanwhile\n")
        shown(self, record)

    monkeypatch.setattr(RunDisplay, "epoch", edit)
    monkeypatch.setattr(RunDisplay, "warn", lambda self, line: told.append(line))
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text(text)
    recipe = tiny_recipe(model="edited_later:digits_resnet", model_kwargs={})
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt), stopped_at("spr", 1):
            run_recipe(recipe, tmp_path / "run", judge=False, resume=resume)
        assert any("has changed" in line for line in told) == resume


def test_a_method_whose_file_was_edited_after_the_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(RunDisplay, "warn", lambda self, line: told.append(line))
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_method.py"
    file.write_text("from spr_or.methods.pffec import METHOD\n")
    recipe = tiny_recipe(
        method={"name": "edited_method:METHOD"},
        spr={"target_removed_pct": 50, "lam": "auto", "start": "dense"},
    )
    summary = run_recipe(recipe, tmp_path / "run")
    for seeds in (recipe.seeds, (0, 1)):
        again = recipe.model_copy(update={"seeds": seeds})
        folder = tmp_path / ("run" if len(seeds) == 1 else "runs")
        run_recipe(again, folder, resume=True, display=RunDisplay(quiet=True))
    assert not any("has changed" in line for line in told)
    file.write_text("from spr_or.methods.pffec import METHOD  # edited\n")
    assert (
        run_recipe(recipe, tmp_path / "run", resume=True, display=RunDisplay(quiet=True)) == summary
    )
    assert sum("the file of edited_method:METHOD has changed" in line for line in told) == 1
    run_recipe(again, tmp_path / "runs", resume=True, display=RunDisplay(quiet=True))
    assert sum("the file of edited_method:METHOD has changed" in line for line in told) == 3


def test_a_shared_dense_phase_is_no_edited_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(RunDisplay, "warn", lambda self, line: told.append(line))
    budget = {"target_removed_pct": 50, "lam": "auto", "start": "dense"}
    recipe = tiny_recipe(method={"name": "plugged_methods:METHOD"}, spr=budget)
    run_recipe(dense_recipe(recipe), tmp_path / "dense", judge=False)
    begin_after(tmp_path / "dense", tmp_path / "run")
    run_recipe(recipe, tmp_path / "run", resume=True, judge=False)
    assert not any("has changed" in line for line in told)

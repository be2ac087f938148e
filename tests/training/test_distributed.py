"""Two processes over gloo do what one does, share files and checkpoints, and end together."""

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import SHARED, check_equal_processes
from image_files import encoded, picture, write_split
from tiny_runs import no_pictures_in, stopped_at, tiny_recipe

from spr_or.training import checkpoint, distributed
from spr_or.training.data.load import Data, load_data
from spr_or.training.data.parquet import DataError
from spr_or.training.distributed import World
from spr_or.training.metrics import read_metrics
from spr_or.training.recipe import DataRecipe, RecipeError
from spr_or.training.runner import run_recipe
from spr_or.training.setup import pick_device

CPU = torch.device("cpu")
TESTS = Path(__file__).parents[1]
RECIPE = """
model = "models.toy:convnet"
[data]
train_rows = 256
eval_rows = 61
batch_size = 32
crop = 1
[dense]
epochs = 2
[spr]
epochs = 3
lam = 3.0
alpha = 0.3
lr = 0.05
method = "gradient"
zero_below = 0.01
share = 0.2
[finetune]
epochs = 2
[speed]
device = "cpu"
threads = 1
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-addr", "127.0.0.1", "--master-port", str(free_port()), *arguments]  # fmt: skip
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_in(monkeypatch)


def assert_same_run(one: Path, two: Path) -> None:
    """The same masks, and losses and weights that differ by rounding."""
    states = [checkpoint.load(folder / "checkpoints" / "last.pt") for folder in (one, two)]
    masks = [state["masks"] for state in states]
    left = torch.cat(list(masks[0].values()))
    assert left.any() and not left.all()
    for name, keep in masks[0].items():
        assert torch.equal(keep, masks[1][name])
    for name, tensor in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], tensor, rtol=1e-3, atol=1e-4)
    records = [read_metrics(folder / "metrics.jsonl") for folder in (one, two)]
    assert len(records[0]) == len(records[1]) == 7
    for a, b in zip(*records, strict=True):
        assert (a["phase"], a["epoch"]) == (b["phase"], b["epoch"])
        for key in ("loss", "eval_loss"):
            assert b[key] == pytest.approx(a[key], rel=1e-4)
        for key in ("accuracy", "eval_accuracy"):  # at most an image on the border
            assert b[key] == pytest.approx(a[key], abs=100 / 61 + 1e-6)


def _continue_as(rank: int, port: int, folder: Path) -> None:
    """What a process does that torchrun started with this number."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    summary = run_recipe(SHARED, folder, resume=True)
    assert bool(summary) == (rank == 0)
    check_equal_processes()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="spawning would import torch again")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_continue_a_run_of_one(tmp_path: Path) -> None:
    run_recipe(SHARED, tmp_path / "whole")
    with stopped_at("spr", 1), pytest.raises(KeyboardInterrupt):
        run_recipe(SHARED, tmp_path / "from-one")
    fork, port = multiprocessing.get_context("fork"), free_port()
    both = [
        fork.Process(target=_continue_as, args=(rank, port, tmp_path / "from-one"))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()  # none is left behind, whatever went wrong
    assert [process.exitcode for process in both] == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "from-one")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything that two processes do (see distributed_worker.py), started once.

    Beside their runs stand ``whole``, which one process trained, and what torchrun printed.
    """
    folder = tmp_path_factory.mktemp("together")
    (folder / "tiny.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        no_pictures_in(patch)
        run_recipe(SHARED, folder / "whole")
        with stopped_at("spr", 1), pytest.raises(KeyboardInterrupt):
            run_recipe(SHARED, folder / "from-one")
    done = torchrun(str(TESTS / "distributed_worker.py"), str(folder))
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(f"exit status {done.returncode}\n{done.stderr}")
    return folder


@pytest.mark.slow
def test_two_processes_train_like_one_and_share_its_checkpoints(together: Path) -> None:
    # Process 1 died in the last run: torchrun fails and names it, process 0 says what happened.
    errors = (together / "stderr").read_text()
    assert not errors.startswith("exit status 0\n") and "SIGKILL" in errors, errors
    words = (together / "last words").read_text()
    assert "another process of this run ended" in words and "--resume" in words
    assert checkpoint.load(together / "killed" / "checkpoints" / "last.pt")["epoch"] >= 1

    assert_same_run(together / "whole", together / "from-one")
    assert checkpoint.load(together / "from-two" / "checkpoints" / "last.pt")["epoch"] == 1
    run_recipe(SHARED, together / "from-two", resume=True)
    assert_same_run(together / "whole", together / "from-two")


@pytest.mark.slow
def test_the_command_under_torchrun(together: Path) -> None:
    out = together / "out"
    assert (out / "report.html").exists(), (together / "stderr").read_text()
    printed = (together / "stdout").read_text()
    assert printed.count("report: ") == 1  # one process speaks and writes
    assert_same_run(together / "whole", out)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == [
        "best.pt", "last.pt", "previous.pt"]  # fmt: skip
    assert len(read_metrics(out / "metrics.jsonl")) == 7


# --- shares of the data, without processes --------------------------------------------------


def as_process(rank: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_world", World(rank, size))


def epoch(data: Data, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(data.train(seed)) + list(data.evaluate(0))


@pytest.mark.parametrize("size", [2, 4])
def test_shares_of_a_batch_in_memory_are_the_batch(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = DataRecipe(train_rows=50, eval_rows=41, batch_size=8, eval_batch_size=19, crop=2,
                        flip=True)  # fmt: skip
    whole = epoch(load_data(recipe, CPU), 5)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "barrier", lambda: None)
        as_process(rank, size, monkeypatch)
        shares.append(epoch(load_data(recipe, CPU), 5))
    assert len(whole) == 6 + 3
    for step, (images, labels) in enumerate(whole):
        parts = [share[step] for share in shares if step < len(share)]  # three rows for four
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def write_set(folder: Path) -> DataRecipe:
    for name, count in (("train", 46), ("test", 21)):
        images = [encoded(picture(i, (9, 8))) for i in range(count)]
        write_split(folder / f"{name}.parquet", images, [i % 3 for i in range(count)], row_group=5)
    return DataRecipe(source=str(folder), memory="stream", size=6, random_resized_crop=True,
                      flip=True, crop=1, batch_size=4, eval_batch_size=5, workers=0)  # fmt: skip


def test_shares_of_a_streamed_batch_are_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spr_or.training.data.stream._WINDOW", 9)
    recipe = write_set(tmp_path)
    whole = epoch(load_data(recipe, CPU), 5)
    assert len(whole) == 11 + 5
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    shares = []
    for rank in range(2):
        as_process(rank, 2, monkeypatch)
        shares.append(epoch(load_data(recipe, CPU), 5))
    for step, (images, labels) in enumerate(whole):
        parts = [share[step] for share in shares if step < len(share)]  # one row is left for one
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


@pytest.mark.slow  # each worker process imports torch
def test_workers_and_processes_decode_each_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_set(tmp_path).model_copy(
        update={"random_resized_crop": False, "crop": 0, "flip": False, "batch_size": 2}
    )
    whole = [images for images, _ in load_data(recipe, CPU).train(3)]
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    seen: list[torch.Tensor] = []
    for rank in range(2):
        as_process(rank, 2, monkeypatch)
        data = load_data(recipe.model_copy(update={"workers": 2 * rank}), CPU)
        seen += [images for images, _ in data.train(3)]
    assert sorted(map(as_bytes, torch.cat(seen))) == sorted(map(as_bytes, torch.cat(whole)))
    assert len(torch.cat(seen)) == 46 == len({as_bytes(image) for image in torch.cat(seen)})


def as_bytes(image: torch.Tensor) -> bytes:
    return image.numpy().tobytes()


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(0, 3, monkeypatch)
    with pytest.raises(DataError, match=r"batch_size = 32 .* 3 processes .*data.batch_size=30"):
        load_data(DataRecipe(batch_size=32), CPU)
    with pytest.raises(DataError, match="2 images is too small for 3 processes"):
        load_data(DataRecipe(batch_size=2), CPU)


def test_what_several_processes_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecipeError, match=r"speed.compile = true has not .* several processes"):
        pick_device(tiny_recipe(speed={"compile": True}).speed)


def test_leaving_writes_the_output_and_finalises_nothing() -> None:
    """A thread that aborts the process while Python ends must not turn a finished run into a failure."""
    code = (
        "import atexit, os; from spr_or.training import distributed;"
        "atexit.register(os.abort); print('report: here'); distributed.leave()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "report: here\n")

"""A full disk: named as such by everything that writes, and nothing is lost."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import no_pictures_in, tiny_recipe

from spr_or.training.checkpoint import load_last, save_last
from spr_or.training.metrics import Metrics
from spr_or.training.runner import run_recipe
from spr_or.utils.files import DiskFull, write_aside, write_durably, write_json


def raising(*chain: Exception) -> Callable[[Path], None]:
    """Raise each error while the one before is handled, as libraries do on their way out."""

    def write(aside: Path) -> None:
        try:
            if chain[:-1]:
                raising(*chain[:-1])(aside)
        finally:
            raise chain[-1]

    return write


FULL = OSError(errno.ENOSPC, "No space left on device")
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


@pytest.mark.parametrize(
    "errors",
    [
        (FULL,),
        (OSError(errno.EDQUOT, "Disk quota exceeded"),),
        (TORCH,),
        (TORCH, RuntimeError("basic_ios::clear: iostream error")),
        (FULL, TORCH),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"),),
        (OSError("2000000 requested and 524256 written"),),
    ],
)
def test_what_libraries_say_of_it_is_understood(errors, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("before")
    with pytest.raises(DiskFull, match=r"the disk is full, so last\.pt was not written") as caught:
        write_durably(path, raising(*errors))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "errors",
    [
        (RuntimeError("something else"),),
        (PermissionError(errno.EACCES, "Permission denied"),),
        (OSError(errno.EIO, "Input/output error"), TORCH),  # the system knows better than torch
        (KeyError("unexpected pos"),),
    ],
)
def test_other_errors_stay_what_they_are(errors, tmp_path: Path) -> None:
    with pytest.raises(type(errors[-1])) as caught:
        write_durably(tmp_path / "last.pt", raising(*errors))
    assert caught.value is errors[-1]


# --- a real one -----------------------------------------------------------------------------


class SmallDisk:
    """A file system of its own in memory, of a size that can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mount("-t", "tmpfs", "-o", "size=64k", "none", str(folder))

    def _mount(self, *arguments: str) -> None:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def resize(self, kilobytes: int) -> None:
        self._mount("-o", f"remount,size={kilobytes}k", str(self.folder))

    def close(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    folder = tmp_path / "disk"
    folder.mkdir()
    small = SmallDisk(folder)
    yield small
    small.close()


def draw(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 20))
    figure.subplots().imshow(np.random.default_rng(0).random((900, 900)), interpolation="none")
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150))


def log(path: Path) -> None:
    metrics = Metrics(path.parent, kept=0)
    for epoch in range(2000):
        metrics.add({"epoch": epoch, "text": "x" * 100})


BIG = torch.zeros(100_000)
WRITERS = {
    "checkpoint": lambda folder: save_last(folder, {"model": {"w": BIG}}),
    "many tensors": lambda folder: save_last(folder, {str(i): BIG[:50] for i in range(2000)}),
    "safetensors": lambda folder: write_durably(
        folder / "dense.safetensors", lambda aside: save_file({"w": BIG}, aside)
    ),
    "report": lambda folder: write_json(folder / "summary.json", {"text": "x" * 100_000}),
    "metrics": lambda folder: log(folder / "metrics.jsonl"),
    "figure": lambda folder: draw(folder / "figure.png"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_a_real_full_disk_is_named(kind: str, disk: SmallDisk) -> None:
    with pytest.raises(DiskFull, match="the disk is full"):
        WRITERS[kind](disk.folder)
    left = [path.name for path in disk.folder.rglob("*") if path.is_file()]
    assert left == (["metrics.jsonl"] if kind == "metrics" else [])


@pytest.mark.slow
def test_a_run_on_a_disk_of_any_size_ends_as_on_a_large_one(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up somewhere else with each size: checkpoints, metrics, networks, report."""
    no_pictures_in(monkeypatch)
    recipe = tiny_recipe()
    run_recipe(recipe, tmp_path / "whole")
    used = sum(p.stat().st_size for p in (tmp_path / "whole").rglob("*") if p.is_file()) // 1024
    disk.resize(8 * used)
    stopped = set()
    for number, kilobytes in enumerate(range(8, used + 60, max(4, used // 24))):
        folder = disk.folder / str(number)
        disk.resize(kilobytes)
        try:
            run_recipe(recipe, folder)
        except DiskFull as error:
            stopped.add(Path(error.filename).name)
            state, warning = load_last(folder / "checkpoints")
            assert warning is None  # whatever was whole before, is
            stopped.add((state or {}).get("phase", "none"))
        disk.resize(8 * used)
        run_recipe(recipe, folder, resume=True)
        whole = (tmp_path / "whole" / "compact.safetensors").read_bytes()
        assert (folder / "compact.safetensors").read_bytes() == whole
        shutil.rmtree(folder)
    assert {"next.pt", "best.pt"} & stopped and len(stopped) >= 4, stopped

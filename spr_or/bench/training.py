"""`spr-or bench training`: how long an epoch takes.

ResNet-20 at batch 128 trains on random images of CIFAR's size; the time does not depend on what they
show. Four ways take turns, in an order drawn for each turn, and the times of one turn are compared
with each other, so that a slow moment of the machine affects all:

1. the plain loop: a DataLoader whose workers crop, flip and normalise one image after another, an
   eager step in float32;
2. the fast path without SPR: images and augmentation on the device; on a GPU also bfloat16,
   channels_last and one captured graph for each step;
3. the same with SPR's gradient, and 4. with ProxSGD.

On a CPU that other programs use too, wall-clock times vary. So the times of SPR are also compared in
processor time of this process.

The speed is put beside the peak of the device, which is measured too, by multiplying two large
matrices of the fast path's number format. A multiply-accumulate counts as two operations, a
training step as three forward passes.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from spr_or.utils import outputs, terminal

if TYPE_CHECKING:
    from rich.console import Console

BATCH = 128
ROWS = {"cpu": 10 * BATCH, "cuda": 50_000}
SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices that measure the peak
PLAIN, FAST, SPR_ON, PROX = "plain loop", "fast", "fast, SPR", "fast, ProxSGD"
LEAST_SPEEDUP = {"cuda": 8.0}  # of the fast path over the plain loop
MOST_SPR = {"cpu": 1.03, "cuda": 1.05}  # time with SPR over time without
_LEAST_TURNS = 5


class Times(NamedTuple):
    """Seconds of each turn, by the clock and of this process's processor time."""

    clock: list[float]
    processor: list[float]


@dataclass(frozen=True)
class EpochRow:
    """One way: medians over ``turns``, ratios turn by turn, ± half their interquartile range."""

    device: str
    method: str
    seconds: float
    images_per_second: float
    share_of_peak: float
    speedup: float  # plain loop's time over this one's
    speedup_spread: float
    over_fast: float  # this one's time over the fast path's
    over_fast_spread: float
    processor_over_fast: float | None  # the same in processor time, on a CPU
    processor_over_fast_spread: float | None
    turns: int


def command(
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all numbers there.", callback=outputs.file
        ),
    ] = None,
    time_limit: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="For each device, warm-up excluded."),
    ] = 120.0,
    rows: Annotated[
        int | None,
        typer.Option(
            min=BATCH,
            metavar="N",
            help="Images of an epoch. Default: 50000 on a GPU, 1280 on a CPU.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Processes of the plain loop's DataLoader.")
    ] = 2,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads. Default: what torch takes.")
    ] = None,
) -> None:
    """Measure how long an epoch takes.

    The fast path of spr-or run is set against a plain loop, and each with SPR against without.

    Exit status: 0 done, 2 bad usage, 130 interrupted.
    """
    import torch

    from spr_or.bench.regularizer_cost import describe_machine, set_threads
    from spr_or.utils.files import write_json

    set_threads(threads)
    machine = describe_machine() | {"workers": workers}
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    screen = terminal.console()
    found: list[EpochRow] = []
    peaks: dict[str, float] = {}
    for device in devices:
        count = rows or ROWS[device]
        with terminal.progress() as progress:
            progress.step(f"peak of {device}")
            peaks[device] = peak_flops(device)
            progress.step(f"epochs of {count} images on {device}, about {time_limit:g} s")
            measured = measure(device, count, workers, time_limit, peaks[device])
        _print(screen, device, count, peaks[device], measured)
        found += measured
    terminal.say(screen, ", ".join(f"{k} {v}" for k, v in machine.items() if v is not None))
    if json_file is not None:
        rows_of = {device: rows or ROWS[device] for device in devices}
        content = {"machine": machine, "rows_of_an_epoch": rows_of, "peak_flops": peaks}
        write_json(json_file, content | {"rows": [asdict(row) for row in found]})


def measure(device: str, rows: int, workers: int, seconds: float, peak: float) -> list[EpochRow]:
    """Epochs of ``rows`` images in turns; a first turn warms up (workers, caches, the capture)."""
    from spr_or.models.resnet_cifar import resnet20
    from spr_or.pruning.counts import count_macs

    epochs = {PLAIN: plain_epochs(device, rows, workers)} | {
        method: fast_epochs(device, rows, method) for method in (FAST, SPR_ON, PROX)
    }
    times = take_turns(list(epochs.values()), device, seconds)  # plain first, then fast
    seen = rows // BATCH * BATCH
    flops = 3 * 2 * count_macs(resnet20(), (1, 3, 32, 32))
    plain, fast = times[0], times[1]
    result = []
    for method, taken in zip(epochs, times, strict=True):
        speed = seen / statistics.median(taken.clock)
        speedup, speedup_spread = _ratio(plain.clock, taken.clock)
        over_fast, over_fast_spread = _ratio(taken.clock, fast.clock)
        processor: tuple[float | None, float | None] = None, None
        if device == "cpu" and method != PLAIN:  # whose workers are other processes
            processor = _ratio(taken.processor, fast.processor)
        result.append(
            EpochRow(
                device=device,
                method=method,
                seconds=statistics.median(taken.clock),
                images_per_second=speed,
                share_of_peak=speed * flops / peak,
                speedup=speedup,
                speedup_spread=speedup_spread,
                over_fast=over_fast,
                over_fast_spread=over_fast_spread,
                processor_over_fast=processor[0],
                processor_over_fast_spread=processor[1],
                turns=len(taken.clock),
            )
        )
    return result


def plain_epochs(device: str, rows: int, workers: int) -> Callable[[], object]:
    """An epoch as it is usually written; only the network comes from this project."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    from spr_or.models.resnet_cifar import resnet20

    images, labels = _images(rows)
    loader: Any = DataLoader(
        Augmented(images, labels),  # type: ignore[arg-type]
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device == "cuda",
    )
    torch.manual_seed(0)
    model = resnet20().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)

    def epoch() -> None:
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return epoch


class Augmented:
    """A data set for DataLoader: one normalised image, cropped from its padding and mirrored."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch
        import torch.nn.functional as F

        image = self.images[index].float() / 255
        image = F.pad(image, (4, 4, 4, 4))
        top, left = torch.randint(9, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image - 0.5) / 0.25, self.labels[index]


def fast_epochs(device: str, rows: int, method: str) -> Callable[[], object]:
    """An epoch as `spr-or run` takes it with everything in ``[speed]`` that the device allows."""
    import torch

    from spr_or.models.resnet_cifar import resnet20
    from spr_or.pruning.prox_sgd import ProxSGD
    from spr_or.pruning.regularizer import SPR
    from spr_or.training.data.augment import Augment
    from spr_or.training.data.load import memory_batches
    from spr_or.training.loop import train_epoch
    from spr_or.training.step import captured, make_step

    gpu = device == "cuda"
    images, labels = (part.to(device) for part in _images(rows))
    normal = torch.full((3,), 0.5, device=device), torch.full((3,), 0.25, device=device)
    batches = partial(
        memory_batches, images, labels, batch_size=BATCH, augment=Augment(4, True),
        mean=normal[0], std=normal[1],
    )  # fmt: skip
    torch.manual_seed(0)
    model = resnet20().to(device).train()
    if gpu:
        model = model.to(memory_format=torch.channels_last)
    # A rate so small that the networks hardly change: the time of a step does not depend on it.
    rates: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), **rates)
    spr = SPR(model, 1.0, 0.1, SPR.bounds_from(model))
    if method == PROX:
        optimizer = ProxSGD(model, spr, **rates)
    add = spr.add_gradient_ if method == SPR_ON else None
    step = make_step(model, optimizer, add_gradient=add, bf16=gpu)
    if gpu:
        step = captured(step, optimizer)
    seeds = itertools.count()
    return lambda: train_epoch(step, batches(next(seeds)))


def peak_flops(device: str) -> float:
    """Operations per second of a large matrix product: bfloat16 on a GPU, float32 on a CPU."""
    import torch

    side = SIDES[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = take_turns([lambda: a @ b], device, 1.0)[0]
    return 2 * side**3 / min(times.clock)


def take_turns(runs: list[Callable[[], object]], device: str, seconds: float) -> list[Times]:
    """The times of each run in every turn, for about ``seconds`` in all; the first turn is dropped."""
    import torch

    def finish() -> None:
        if device != "cpu":
            torch.accelerator.synchronize()

    times = [Times([], []) for _ in runs]
    dice = random.Random(0)
    begun = time.perf_counter()
    for turn in itertools.count():
        for i in dice.sample(range(len(runs)), len(runs)):
            finish()
            started = time.perf_counter(), time.process_time()
            runs[i]()
            finish()
            if turn > 0:
                times[i].clock.append(time.perf_counter() - started[0])
                times[i].processor.append(time.process_time() - started[1])
        if turn == 0:
            begun = time.perf_counter()
        if turn >= _LEAST_TURNS and time.perf_counter() - begun > seconds:
            break
    return times


def _ratio(one: list[float], other: list[float]) -> tuple[float, float]:
    """The median of the turns' ratios, and half their interquartile range."""
    ratios = sorted(a / b for a, b in zip(one, other, strict=True))
    quarter = len(ratios) // 4
    return statistics.median(ratios), (ratios[-1 - quarter] - ratios[quarter]) / 2


def _images(rows: int) -> tuple[Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (rows, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(10, (rows,), generator=generator)


def _print(screen: Console, device: str, rows: int, peak: float, found: list[EpochRow]) -> None:
    network = f"ResNet-20, batch {BATCH}, {device}"
    terminal.say(screen, f"{network}: {rows:,} images per epoch, peak {peak:.3g} FLOP/s")
    speeds, added = [], []
    for row in found:
        speedup = terminal.styled(_with_spread(row.speedup, row.speedup_spread), "")
        if row.method == FAST and device in LEAST_SPEEDUP:
            speedup.stylize(_judged(row.speedup >= LEAST_SPEEDUP[device]))
        numbers = (
            f"{row.seconds:.3f}",
            f"{row.images_per_second:,.0f}",
            f"{100 * row.share_of_peak:.1f} %",
        )
        speeds.append((row.method, *numbers, speedup, str(row.turns)))
        over_fast = terminal.styled(_with_spread(row.over_fast, row.over_fast_spread), "")
        if row.method == SPR_ON:
            over_fast.stylize(_judged(row.over_fast <= MOST_SPR[device]))
        processor = _with_spread(row.processor_over_fast, row.processor_over_fast_spread)
        if row.method in (SPR_ON, PROX):
            added.append((row.method, over_fast, processor))
    columns = ("method", "seconds", "images/s", "of peak", "times as fast", "turns")
    terminal.show(screen, terminal.table(columns, speeds, title="an epoch", text=("method",)))
    columns_added = ("method", "by the clock", "processor time")
    title = "time over that of the fast path without SPR"
    terminal.show(screen, terminal.table(columns_added, added, title=title, text=("method",)))


def _with_spread(ratio: float | None, spread: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f} ± {spread:.3f}"


def _judged(good: bool) -> str:
    return "green" if good else "red"

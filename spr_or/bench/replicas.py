"""`spr-or bench replicas`: R grid points on one device, together or one after another.

R copies of ResNet-20, each with a λ of its own, take one training step on one batch. The ways take
turns: one after another; stacked into one pass by vmap (`spr_or.sweeps.replicas`); and on a GPU one
after another on R streams. There each way is captured, so that no way waits for Python.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

BATCH = 128
IN_TURN, STACKED, STREAMS = "one after another", "stacked", "on streams"
LEAST_GAIN = {"cuda": 4.0}  # of the best way with eight replicas over one after another
_WARM_UP = 3

Way = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One way: median seconds of a step of all replicas, and its throughput against in turn."""

    device: str
    replicas: int
    way: str
    seconds: float
    gain: float  # seconds of one after another, over these
    turns: int


def command(
    replicas: Annotated[
        list[int] | None,
        typer.Option(min=1, help="How many at once; repeatable. Default: 2, 4, 8."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Write all numbers to F.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Time for each number of replicas.")
    ] = 60.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: what torch takes.")
    ] = None,
) -> None:
    """Several grid points on one device: one after another, stacked, or on streams."""
    import torch
    from rich.console import Console

    from spr_or.bench.regularizer import describe_machine, prepare
    from spr_or.utils.files import write_json

    prepare(json_file, threads)
    found: list[Row] = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for count in replicas or (2, 4, 8):
            with Console(stderr=True).status(f"{count} replicas on {device}"):
                found += measure(device, count, seconds)
    console = Console()
    machine = describe_machine()
    _print(console, found)
    parts = (f"{key} {value}" for key, value in machine.items() if value is not None)
    console.print(", ".join(parts), highlight=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, {"machine": machine, "rows": [asdict(row) for row in found]})


def measure(device: str, count: int, seconds: float) -> list[Row]:
    """The ways with ``count`` replicas, in turns; gains are medians of ratios turn by turn.

    On a CPU processor time is compared, which other programs disturb less; on a GPU the clock.
    """
    from spr_or.bench.training import take_turns

    found = ways(device, count)
    taken = take_turns(list(found.values()), device, seconds)
    times = [one.processor if device == "cpu" else one.clock for one in taken]
    return [
        Row(
            device,
            count,
            way,
            statistics.median(mine),
            statistics.median(a / b for a, b in zip(times[0], mine, strict=True)),
            len(mine),
        )
        for way, mine in zip(found, times, strict=True)
    ]


def ways(device: str, count: int) -> dict[str, Way]:
    """Each way as a function that takes one step of all replicas; in turn comes first."""
    import torch

    from models.resnet_cifar import resnet20
    from spr_or.sweeps.replicas import Replicas, make_joint_step
    from spr_or.training.step import captured, make_step

    fast = device == "cuda"
    torch.manual_seed(0)
    model = resnet20().to(device).train()
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    labels = torch.randint(10, (BATCH,), device=device)
    if fast:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def single_steps() -> list[Way]:
        steps: list[Way] = []
        for number in range(count):
            one = copy.deepcopy(model)
            optimizer, spr = _equipped(one, number)
            step = make_step(one, optimizer, add_gradient=spr.add_gradient_, bf16=fast)
            steps.append(partial(captured(step, optimizer) if fast else step, images, labels))
        return steps

    together = Replicas([copy.deepcopy(model) for _ in range(count)])
    equipment = [_equipped(one, number) for number, one in enumerate(together.models)]
    joint = partial(
        make_joint_step(
            together,
            [optimizer for optimizer, _ in equipment],
            add_gradients=[spr.add_gradient_ for _, spr in equipment],
            bf16=fast,
        ),
        images,
        labels,
    )
    found = {IN_TURN: _in_turn(single_steps()), STACKED: _recorded(joint) if fast else joint}
    if fast:
        found[STREAMS] = _on_streams(single_steps())
    return found


def _equipped(model: Any, number: int) -> tuple[Any, Any]:
    """Optimiser and regularizer of a replica; the rate is so small that weights stay what they are."""
    import torch

    from spr_or.pruning.regularizer import SPR

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    return optimizer, SPR(model, 0.1 * (number + 1), 0.1, 1.0)


def _in_turn(steps: list[Way]) -> Way:
    def run() -> None:
        for step in steps:
            step()

    return run


def _on_streams(steps: list[Way]) -> Way:
    """Every replica on a stream of its own: what one leaves of the device another can take."""
    import torch

    streams = [torch.cuda.Stream() for _ in steps]
    for step in steps:  # eager steps and captures, one at a time
        for _ in range(_WARM_UP + 1):
            step()

    def run() -> None:
        here = torch.cuda.current_stream()
        for step, stream in zip(steps, streams, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                step()
        for stream in streams:
            here.wait_stream(stream)

    return run


def _recorded(step: Way) -> Way:
    """The step as one CUDA graph, after the eager steps that a capture needs."""
    import torch

    from spr_or.training.step import cuda_graph

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)

    def body() -> None:
        step()

    return cuda_graph(body)


def _print(console: Any, found: list[Row]) -> None:
    from rich.table import Table

    table = Table(title=f"one training step of R x ResNet-20, batch {BATCH}", title_justify="left")
    for name in ("device", "R", "way", "ms", "throughput against in turn", "turns"):
        table.add_column(name, justify="left" if name in ("device", "way") else "right")
    for row in found:
        table.add_row(
            row.device,
            str(row.replicas),
            row.way,
            f"{1e3 * row.seconds:.1f}",
            f"{row.gain:.2f}",
            str(row.turns),
        )
    console.print(table)
    console.print("Times: processor time on a CPU, the clock on a GPU; medians.", highlight=False)
    for device, least in LEAST_GAIN.items():
        eight = [row.gain for row in found if (row.device, row.replicas) == (device, 8)]
        if eight:
            reached = "reached" if max(eight) >= least else "not reached"
            console.print(f"{device}: {least} with eight replicas {reached} ({max(eight):.2f})")

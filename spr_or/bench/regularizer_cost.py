"""`spr-or bench regularizer`: what SPR costs.

Three questions:

1. How much longer is a training step with SPR? ResNet-20 and ResNet-56 take steps on a batch of
   random CIFAR-sized images: plain SGD, and each way of using SPR, on copies of one network.
   The ways take turns and every turn is compared with its own plain step, so that a slow moment
   of the machine affects both; the ratio is the median over turns.
   The same for networks of several sizes and batches, in processor time of the CPU, with ProxSGD at
   weights and prices where entities are in every regime.
2. How close is SPR to the speed of memory? Its gradient needs one pass that reads the weights and
   one that reads weights and gradients and writes gradients. ResNet-18's 11 million weights pass
   through `SPR.add_gradient_` and, in turns, through the two simplest kernels that move as much
   memory: a sum, and an addition in place. Before each of them a large tensor is written, so that the
   weights come from memory, as they do after a backward pass.
3. What does SPR cost beside a step of the optimiser, without forward and backward pass? ViT-Tiny,
   MobileNetV2 and ResNet-18, with filters (a transformer's neurons) and with the channels of the
   network's graph as entities. In processor time of the CPU, which other programs hardly disturb.
"""

from __future__ import annotations

import copy
import itertools
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spr_or.utils import outputs, terminal
from spr_or.utils.machine import processor

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STEP_TARGETS = {"cpu": 1.03, "cuda": 1.05}
MEMORY_TARGET = 3.0
BATCH = 128
COMPILED = "add_gradient_, compiled"
_WARMUP = 1
_CACHE_FLOATS = 2**26  # 256 MB: more than the caches hold
_LEAST_TURNS = 5
Tell = Callable[[str], object]  # takes where a block stands


@dataclass(frozen=True)
class CostRow:
    """One measurement: medians over ``turns``; ``ratio`` is to the plain step or the plain passes."""

    network: str
    setting: str
    method: str
    milliseconds: float
    ratio: float
    spread: float
    turns: int
    target: float | None


def command(
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write all numbers there.", callback=outputs.file
        ),
    ] = None,
    time_limit: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="For each block of the table; a block takes at least five turns.",
        ),
    ] = 40.0,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads. Default: what torch takes.")
    ] = None,
) -> None:
    """Measure what SPR adds to a training step.

    Training steps of ResNet-20 and ResNet-56 with and without SPR, and SPR's own speed against that
    of memory.

    Exit status: 0 done, 2 bad usage, 130 interrupted.
    """
    from spr_or.utils.files import write_json

    set_threads(threads)
    blocks = list(_blocks(time_limit))
    rows = []
    with terminal.progress() as progress:
        for number, (label, block) in enumerate(blocks, 1):
            progress.step(f"[{number}/{len(blocks)}] {label}")
            rows += block(progress.detail)
    machine = describe_machine()
    _print(terminal.console(), machine, rows)
    if json_file is not None:
        write_json(json_file, {"machine": machine, "rows": [asdict(row) for row in rows]})


def set_threads(threads: int | None) -> None:
    """Set torch's threads, None: leave them."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def describe_machine() -> dict[str, Any]:
    """Processor, threads, device and versions on which the figures were measured."""
    import torch

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _blocks(seconds: float) -> Iterator[tuple[str, Callable[[Tell], list[CostRow]]]]:
    import torch

    from spr_or.models.resnet import resnet18
    from spr_or.models.resnet_cifar import resnet20, resnet56
    from spr_or.utils.import_path import load_object

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device, make in itertools.product(devices, (resnet20, resnet56)):
        for setting in SETTINGS[device]:

            def block(
                tell: Tell, make: Any = make, device: str = device, setting: str = setting
            ) -> list[CostRow]:
                return step_rows(make(), make.__name__, device, setting, seconds, tell)

            yield f"steps of {make.__name__}, {device} {setting}", block
    for (build, images), batch in itertools.product(TRAINED.items(), BATCHES):

        def trained(
            tell: Tell, build: str = build, images: tuple[int, ...] = images, batch: int = batch
        ) -> list[CostRow]:
            model = load_object(build)()
            return training_rows(model, build.partition(":")[2], images, batch, seconds, tell)

        yield f"training {build.partition(':')[2]} at batch {batch}", trained
    for device in devices:

        def memory(tell: Tell, device: str = device) -> list[CostRow]:
            return memory_rows(resnet18(), "resnet18", device, seconds, tell)

        yield f"memory, resnet18, {device}", memory

    for build, images in OPTIMIZED.items():
        for entities in ("plain", "channels"):

            def optimizers(
                tell: Tell,
                build: str = build,
                images: tuple[int, ...] = images,
                entities: str = entities,
            ) -> list[CostRow]:
                model = load_object(build)()
                return optimizer_rows(
                    model, build.partition(":")[2], images, entities, seconds, tell
                )

            yield f"optimisers, {build.partition(':')[2]}, {entities}", optimizers


OPTIMIZED = {
    "spr_or.models.vit:vit_tiny": (3, 224, 224),
    "spr_or.models.mobilenet:mobilenetv2": (3, 64, 64),
    "spr_or.models.resnet:resnet18": (3, 64, 64),
}
# Networks in training, and the least that their batches hold.
TRAINED = {
    "spr_or.models.toy:digits_resnet": (1, 8, 8),
    "spr_or.models.resnet_cifar:resnet20": (3, 32, 32),
    "spr_or.models.mobilenet:mobilenetv2": (3, 64, 64),
    "spr_or.models.resnet:resnet18": (3, 64, 64),
}
BATCHES = (32, 128)
# alpha and lambda: entities that are mostly at their bound, all regimes, and zeros among them.
STATES = ((0.1, 70.0), (0.5, 70.0), (0.1, 300.0))
PROX_TARGETS = {"digits_resnet": 1.3}
PROX_TARGET = 1.1
_STEPS_BEFORE = 8
SETTINGS = {"cpu": ("float32",), "cuda": ("float32", "bf16 channels_last", "bf16 captured")}


def step_rows(
    model: Any, name: str, device: str, setting: str, seconds: float, tell: Tell
) -> list[CostRow]:
    """Training steps of ``model``, plain and with every way of using SPR.

    ``setting``: "float32"; "bf16 channels_last"; or "bf16 captured", the latter as a CUDA graph.
    """
    import torch

    images = torch.randn(BATCH, 3, 32, 32, device=device)
    labels = torch.randint(10, (BATCH,), device=device)
    model = model.to(device).train()
    if setting != "float32":
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    methods = ["plain SGD", "add_gradient_", "loss + spr()", "ProxSGD"]
    if device != "cpu":
        methods.insert(2, COMPILED)
    steps: dict[str, Callable[[], object]] = {
        method: _step(copy.deepcopy(model), method, setting, images, labels) for method in methods
    }
    targets = {"add_gradient_": STEP_TARGETS[device]}
    return _rows(
        f"{name}, batch {BATCH}", f"{device} {setting}", steps, targets, device, seconds, tell
    )


def training_rows(
    model: Any, name: str, images: tuple[int, ...], batch: int, seconds: float, tell: Tell
) -> list[CostRow]:
    """Training steps with SGD, SPR's gradient and ProxSGD, in processor time of the CPU.

    Each starts from where a few steps of ProxSGD lead at its alpha and lambda, and goes back there
    before every step: the cost of the proximal operator depends on how many entities are zero or at
    their bound M, the largest weight of a layer at the start.
    """
    import torch

    from spr_or.pruning.prox_sgd import ProxSGD
    from spr_or.pruning.regularizer import SPR
    from spr_or.training.step import make_step

    rates: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    inputs, labels = torch.randn(batch, *images), torch.zeros(batch, dtype=torch.int64)
    model.train()
    steps: dict[str, Callable[[], object]] = {}
    restores: list[Callable[[], object]] = []
    target = PROX_TARGETS.get(name, PROX_TARGET)
    targets: dict[str, float] = {}

    def add(method: str, alpha: float, lam: float) -> None:
        net = copy.deepcopy(model)
        spr = SPR(net, lam, alpha, SPR.bounds_from(net))
        optimizer = ProxSGD(net, spr, **rates)
        warm = make_step(net, optimizer)
        for _ in range(_STEPS_BEFORE):
            warm(inputs, labels)
        optimizer.proximal = method.startswith("ProxSGD")
        adds = spr.add_gradient_ if method == "add_gradient_" else None
        step = make_step(net, optimizer, add_gradient=adds)
        steps[method] = lambda: step(inputs, labels)
        saved = [parameter.detach().clone() for parameter in net.parameters()]

        def restore() -> None:
            with torch.no_grad():
                torch._foreach_copy_(list(net.parameters()), saved)

        restores.append(restore)

    for method in ("plain SGD", "add_gradient_"):
        add(method, *STATES[0])
    for alpha, lam in STATES:
        method = f"ProxSGD, alpha {alpha:g}, lambda {lam:g}"
        add(method, alpha, lam)
        targets[method] = target

    def before() -> None:
        for restore in restores:
            restore()

    setting = "cpu float32, processor time"
    network = f"{name}, batch {batch}"
    return _rows(network, setting, steps, targets, "cpu", seconds, tell, before, time.process_time)


def memory_rows(model: Any, name: str, device: str, seconds: float, tell: Tell) -> list[CostRow]:
    """The gradient of SPR on all filters of ``model``, against moving as much memory."""
    import torch

    from spr_or.pruning.regularizer import SPR

    model = model.to(device)
    # At this alpha every entity is in BOUND, the most expensive regime: it searches for the largest weight.
    spr, compiled = (SPR(model, 1.0, 0.1, SPR.bounds_from(model)) for _ in range(2))
    compiled.compile()
    values, gradients = [], []
    for layer in spr.layers:
        for weight in layer.parameters:
            weight.grad = torch.zeros_like(weight)
            values.append(weight.detach())
            gradients.append(weight.grad)

    def passes() -> None:
        for value in values:
            value.sum()
        torch._foreach_add_(gradients, values)

    steps: dict[str, Callable[[], object]] = {
        "read; read, read, write": passes,
        "add_gradient_": spr.add_gradient_,
        COMPILED: compiled.add_gradient_,
    }
    network = f"{name}, {sum(value.numel() for value in values):,} weights"
    targets = {"add_gradient_": MEMORY_TARGET}
    evicted = torch.zeros(_CACHE_FLOATS, device=device)
    return _rows(network, f"{device} float32", steps, targets, device, seconds, tell, evicted.neg_)


def optimizer_rows(
    model: Any, name: str, images: tuple[int, ...], entities: str, seconds: float, tell: Tell
) -> list[CostRow]:
    """One step of SGD and ProxSGD, and SPR's gradient, for gradients that are there already.

    ``entities``: "channels", or "plain" for filters where there are convolutions besides the first
    layer, else neurons of every linear layer but the last.
    """
    import torch

    from spr_or.pruning.chosen_entities import chosen_entities
    from spr_or.pruning.prox_sgd import ProxSGD
    from spr_or.pruning.regularizer import SPR

    if entities == "channels":
        chosen = chosen_entities(model, torch.zeros(2, *images), "channels").entities
    else:
        convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in model.modules())
        chosen = entities = "filters" if convolutions > 1 else "neurons"
    rates: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 5e-4}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) / parameter.numel()
    spr = SPR(model, 1.0, 0.1, SPR.bounds_from(model, entities=chosen), entities=chosen)
    steps: dict[str, Callable[[], object]] = {
        "step of SGD": torch.optim.SGD(model.parameters(), **rates).step,
        "add_gradient_": spr.add_gradient_,
        "step of ProxSGD": ProxSGD(model, spr, **rates).step,
    }
    network = f"{name}, {sum(p.numel() for p in model.parameters()):,} parameters"
    setting = f"cpu {entities}, processor time"
    return _rows(network, setting, steps, {}, "cpu", seconds, tell, clock=time.process_time)


def _step(model: Any, method: str, setting: str, images: Any, labels: Any) -> Callable[[], object]:
    import torch

    from spr_or.pruning.prox_sgd import ProxSGD
    from spr_or.pruning.regularizer import SPR
    from spr_or.training.step import captured, forward, make_step

    spr = SPR(model, 1.0, 0.1, SPR.bounds_from(model))
    # A rate so small that the networks hardly change: the time of a step does not depend on it.
    rates: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), **rates)
    add_gradient = None
    if method == "ProxSGD":
        optimizer = ProxSGD(model, spr, **rates)
    elif method.startswith("add_gradient_"):
        add_gradient = spr.add_gradient_
    if method == COMPILED:
        spr.compile()
    bf16 = setting.startswith("bf16")
    step = make_step(model, optimizer, add_gradient=add_gradient, bf16=bf16)
    if method == "loss + spr()":

        def step(images: Any, labels: Any) -> Any:
            optimizer.zero_grad(set_to_none=True)
            logits = forward(model, images, bf16)
            loss = torch.nn.functional.cross_entropy(logits, labels) + spr()
            loss.backward()
            optimizer.step()
            return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    if setting.endswith("captured"):
        step = captured(step, optimizer)
    return lambda: step(images, labels)


def _take_turns(
    runs: list[Callable[[], object]],
    device: str,
    seconds: float,
    tell: Tell,
    before: Callable[[], object] | None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each run in every turn, for about ``seconds`` in all.

    The order of a turn is drawn at random: what ran before affects caches and heap.
    """
    import torch

    # A device works asynchronously; over several steps the wait at their end hardly counts.
    calls = 20 if device != "cpu" and before is None else 1
    times: list[list[float]] = [[] for _ in runs]
    draw = random.Random(0)
    begun = time.perf_counter()
    for turn in itertools.count():
        tell(f"turn {turn + 1}, {time.perf_counter() - begun:.0f} of {seconds:g} s")
        for i in draw.sample(range(len(runs)), len(runs)):
            if before is not None:
                before()
            if device != "cpu":
                torch.accelerator.synchronize()
            started = clock()
            for _ in range(calls):
                runs[i]()
            if device != "cpu":
                torch.accelerator.synchronize()
            if turn >= _WARMUP:
                times[i].append((clock() - started) / calls)
        if len(times[0]) >= _LEAST_TURNS and time.perf_counter() - begun > seconds:
            return times
    raise AssertionError("unreachable")


def _rows(
    network: str,
    setting: str,
    steps: dict[str, Callable[[], object]],
    targets: dict[str, float],
    device: str,
    seconds: float,
    tell: Tell,
    before: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[CostRow]:
    """Measure the steps in turns; the others are compared with the first one.

    ``before`` runs before each, outside the clock.
    """
    if COMPILED in steps and not _compiles(steps[COMPILED]):
        del steps[COMPILED]
    times = _take_turns(list(steps.values()), device, seconds, tell, before, clock)
    rows = []
    for method, taken in zip(steps, times, strict=True):
        ratios = sorted(t / plain for t, plain in zip(taken, times[0], strict=True))
        quarter = len(ratios) // 4
        rows.append(
            CostRow(
                network=network,
                setting=setting,
                method=method,
                milliseconds=1e3 * statistics.median(taken),
                ratio=statistics.median(ratios),
                spread=(ratios[-1 - quarter] - ratios[quarter]) / 2,
                turns=len(ratios),
                target=targets.get(method),
            )
        )
    return rows


def _compiles(step: Callable[[], object]) -> bool:
    """Whether torch.compile has the compiler it needs here: only a step can tell."""
    try:
        step()
    except Exception:  # each backend has its own errors
        return False
    return True


def _print(screen: Console, machine: dict[str, Any], rows: list[CostRow]) -> None:
    terminal.say(screen, ", ".join(f"{k} {v}" for k, v in machine.items() if v is not None))
    columns = ("method", "ms", "ratio", "± half IQR", "turns", "at most")
    for (network, setting), block in itertools.groupby(rows, lambda r: (r.network, r.setting)):
        cells = [_cells(row) for row in block]
        title = f"{network}, {setting}"
        terminal.show(screen, terminal.table(columns, cells, title=title, text=("method",)))


def _cells(row: CostRow) -> tuple[str | Text, ...]:
    ratio, target = terminal.styled(f"{row.ratio:.3f}", ""), ""
    if row.target is not None:
        ratio.stylize("green" if row.ratio <= row.target else "red")
        target = f"{row.target:g}"
    numbers = (f"{row.milliseconds:.2f}", ratio, f"{row.spread:.3f}", str(row.turns))
    return (row.method, *numbers, target)

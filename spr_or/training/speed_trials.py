"""A few training steps in each of several ways: how long they take, and whether they agree.

A way is refused where it fails, or where its loss, gradient or statistics are further from those of a
step in float64 than rounding explains. How far rounding goes is seen from the first way. It is no
constant: a change in the last bit turns some of a network's ReLUs on or off, and the gradients of a
new ResNet-20 with two orders of summation differ by 1e-3.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.training.step import forward

Shape = tuple[int, ...]  # of a batch of images, (B, C, H, W)
Tell = Callable[[str], None]

_TURNS = 3  # after the first step, in which caches are filled and code is compiled
# Processors taken away in a second. Two programs that share one switch 100 times or more.
_SWITCHES = 50
_TIMES_ROUNDING = 10.0
_LEAST = (1e-5, 1e-4, 1e-5)  # relative errors of loss, gradient and statistics that always pass
_MOST = 1e-2  # and that never do, as where dropout draws something else in float64


class Speed(NamedTuple):
    """How a training step is computed. Results in two ways differ by rounding only."""

    threads: int
    channels_last: bool
    compile: bool


class Trial(NamedTuple):
    """Seconds of a step in the fastest turn, and of the first step with all that it took to get there.

    ``seconds`` is None for a way that is refused, and ``refused`` says why.
    """

    seconds: float | None
    first: float
    refused: str = ""


Trials = dict[Speed, Trial]


def try_speeds(model: nn.Module, speeds: Sequence[Speed], shape: Shape) -> list[Trial]:
    """Steps of copies of ``model``, a network on the CPU, on random images of ``shape`` (B, C, H, W).

    A step is the forward and backward pass of a cross-entropy. All ways begin with the same random
    numbers, then take turns. The first one is that against which the others are held. The model, the
    random numbers and the number of threads are left as they were.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    >>> plain = Speed(threads=1, channels_last=False, compile=False)
    >>> trials = try_speeds(model, [plain, plain._replace(channels_last=True)], (8, 1, 8, 8))
    >>> [trial.refused for trial in trials]
    ['', '']
    """
    images = _random_images(shape)
    with _threads_kept(), torch.random.fork_rng(devices=[]):
        exact = _first_step(model, images.double(), Speed(torch.get_num_threads(), False, False))
        begun = [_first_step(model, images, speed) for speed in speeds]
        refused = _refused(begun, exact)
        times: list[list[float]] = [[] for _ in speeds]
        for turn in range(_TURNS):
            order = range(len(speeds))
            for i in order if turn % 2 else reversed(order):
                if refused[i]:
                    continue
                torch.set_num_threads(speeds[i].threads)
                started = time.perf_counter()
                begun[i].step()
                times[i].append(time.perf_counter() - started)
    return [
        Trial(min(taken) if taken else None, first.seconds, why)
        for taken, first, why in zip(times, begun, refused, strict=True)
    ]


class _Outcome(NamedTuple):
    """What a step leaves, each as one vector in float64."""

    loss: Tensor
    gradient: Tensor
    statistics: Tensor  # BatchNorm's and other buffers


class _Begun(NamedTuple):
    """A first step: how to take another one, what it left, its seconds, and what went wrong."""

    step: Callable[[], object]
    outcome: _Outcome | None
    seconds: float
    fault: str


def _first_step(model: nn.Module, images: Tensor, speed: Speed) -> _Begun:
    """Copy ``model`` in the dtype of ``images``, and take one step in the given way."""
    started = time.perf_counter()
    torch.set_num_threads(speed.threads)
    try:
        copied = copy.deepcopy(model).to(images.dtype).train()
        if speed.channels_last:
            copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network = compiled(copied) if speed.compile else copied

        def step() -> Tensor:
            copied.zero_grad(set_to_none=True)
            logits = network(images)
            labels = torch.arange(len(images)) % logits.shape[1]
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            return loss.detach()

        torch.manual_seed(0)  # dropout must draw the same in every way
        outcome = _Outcome(
            step().double().view(1),
            _vector([p.grad for p in copied.parameters() if p.grad is not None]),
            _vector(list(copied.buffers())),
        )
    except Exception as error:  # no compiler, no memory, a network that allows no such thing
        return _Begun(lambda: None, None, time.perf_counter() - started, in_one_line(error))
    return _Begun(step, outcome, time.perf_counter() - started, "")


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0).double(), *(t.double().flatten() for t in tensors)])


def _refused(begun: Sequence[_Begun], exact: _Begun) -> list[str]:
    """Why each way is refused, "" for those that are not."""
    plain = begun[0].outcome
    if plain is None:
        return [f"it fails ({first.fault})" if first.fault else "nothing to compare it with"
                for first in begun]  # fmt: skip
    if exact.outcome is None:
        reason = f"it cannot be checked in float64 ({exact.fault})"
        return ["", *(reason for _ in begun[1:])]
    allowed = [
        min(max(_TIMES_ROUNDING * error, least), _MOST)
        for error, least in zip(_errors(plain, exact.outcome), _LEAST, strict=True)
    ]
    return ["", *(_fault(first, exact.outcome, allowed) for first in begun[1:])]


def _fault(first: _Begun, exact: _Outcome, allowed: Sequence[float]) -> str:
    if first.outcome is None:
        return f"it fails ({first.fault})"
    errors = _errors(first.outcome, exact)
    for name, error, most in zip(_Outcome._fields, errors, allowed, strict=True):
        if not error <= most:  # NaN is no agreement
            return f"its {name} differs by {error:.1e}, rounding explains {most:.1e}"
    return ""


def _errors(outcome: _Outcome, exact: _Outcome) -> list[float]:
    """Relative errors, in the Euclidean norm."""
    errors = []
    for found, true in zip(outcome, exact, strict=True):
        if found.shape != true.shape:
            errors.append(math.inf)
            continue
        off, size = float((found - true).norm()), float(true.norm())
        errors.append(0.0 if off == 0 else off / size if size else math.inf)
    return errors


def others_at_work(seconds: float = 0.5) -> bool:
    """Whether other programs take processors away from a computation on all of torch's threads.

    How often the system took one away, in so many seconds of matrix products. Where it does not tell
    (Windows), the answer is no.
    """
    try:
        import resource
    except ImportError:
        return False
    a = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    begun = time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        a @ a
    taken_away = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before
    return taken_away / passed > _SWITCHES + torch.get_num_threads()


def compiled(model: nn.Module) -> nn.Module:
    """What compiles the model at its first step; the images of all steps have one shape."""
    return torch.compile(model, dynamic=False)  # type: ignore[return-value]


def compiled_if_it_works(model: nn.Module, shape: Shape, bf16: bool, tell: Tell) -> nn.Module:
    """``model`` compiled, for training on images of ``shape`` (B, C, H, W) on its device.

    A copy takes a step first; torch keeps the code, and the steps of ``model`` find it. Where that
    fails, for want of a C++ compiler for instance, it is the model itself, and ``tell`` is told.
    """
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            network = compiled(copy.deepcopy(model).train())
            forward(network, _random_images(shape).to(device), bf16).sum().backward()
    except Exception as error:  # each backend has its own errors
        tell(f"speed: not compiled, torch.compile fails ({in_one_line(error)})")
        return model
    return compiled(model)


def in_one_line(error: Exception) -> str:
    """Kind and first line of an error.

    >>> in_one_line(ValueError("no compiler"))
    'ValueError: no compiler'
    """
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _random_images(shape: Shape) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)

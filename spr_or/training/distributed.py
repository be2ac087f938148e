"""Several processes train one network, started by ``torchrun``; in one process this does nothing.

Every process has its share of each batch (`share`), sums go over all of them (`total`), and only the
first one writes files (`is_first`). The network that they train is in `spr_or.training.replica`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple, NoReturn

import torch
import torch.distributed as dist

_TIMEOUT = timedelta(hours=2)  # the others wait this long while the first one decodes images
_LOST = (
    "stopped because another process of this run ended; what that one says, or torchrun's last "
    "lines, tells why. --resume continues from the last finished epoch"
)


class World(NamedTuple):
    """This process's number and how many there are."""

    rank: int
    size: int


class ProcessLost(RuntimeError):
    """Another process of the run ended, so this one cannot go on."""


_ALONE = World(0, 1)
_world = _ALONE
_device = torch.device("cpu")


def world() -> World:
    """Who computes now; ``World(0, 1)`` outside `joined` and inside `alone`.

    >>> world()
    World(rank=0, size=1)
    """
    return _world


def device() -> torch.device:
    """Where the collectives of the joined processes run; the CPU outside `joined`."""
    return _device


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return _world.rank == 0


def launched() -> World:
    """What torchrun's environment variables say, whether or not the processes have joined."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return World(int(os.environ.get("RANK", "0")), size) if size > 1 else _ALONE


def local_rank() -> int:
    """This process's number on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched().size > 1 else 0


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started; collectives run over NCCL or, on a CPU, gloo.

    A collective that fails because another process has gone becomes `ProcessLost`.
    """
    global _world, _device
    started = launched()
    if started.size == 1:
        yield _ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():  # once a process: torchrun's store remembers the first meeting
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        atexit.register(dist.destroy_process_group)
    _world, _device = started, device
    try:
        with _told_to_end():
            yield started
    except RuntimeError as error:
        if not _is_broken_connection(error):
            raise
        raise ProcessLost(_LOST) from error
    finally:
        _world, _device = _ALONE, torch.device("cpu")


def leave() -> NoReturn:
    """End this process with exit status 0, its output written, without finalising Python.

    A thread of the collectives that still holds a tensor asks for Python's lock while Python is
    being finalised, which aborts the process (seen once on a busy machine, after all results were
    written). torchrun then ends the other processes too.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """Make a `ProcessLost` of the SIGTERM by which torchrun ends those that are left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise ProcessLost(_LOST)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_broken_connection(error: RuntimeError) -> bool:
    words = ("Connection closed", "Connection reset", "Broken pipe", "NCCL", "Timed out waiting")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Work of one process for itself: whole batches, no collective."""
    global _world
    before, _world = _world, _ALONE
    try:
        yield
    finally:
        _world = before


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """The first process does something, then the others do it, and find its files."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


def barrier() -> None:
    """Wait for all processes."""
    if _world.size > 1:
        total(0.0)


def share(start: int, stop: int, who: World | None = None) -> slice:
    """This process's part of the rows start..stop of a batch; all parts together are the batch.

    >>> share(10, 20), share(10, 20, World(1, 2))
    (slice(10, 20, None), slice(15, 20, None))
    """
    rank, size = who or _world
    rows = stop - start
    return slice(start + rows * rank // size, start + rows * (rank + 1) // size)


def total(*values: float) -> tuple[float, ...]:
    """Sums over all processes, in float64, the same bits everywhere.

    >>> total(1.0, 2.0)
    (1.0, 2.0)
    """
    if _world.size == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=_device)
    dist.all_reduce(sums)
    return tuple(sums.tolist())

"""Several processes train one network, started by ``torchrun``; alone, all of this does nothing.

Every process holds the whole network and an equal share of each batch. DistributedDataParallel
averages the gradients of the loss, BatchNorm sees the whole batch, and everything else (SPR,
optimiser, masks) is computed by each process from equal numbers, so the networks stay equal to the
last bit. The first process alone writes files.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

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


def replica(model: nn.Module) -> nn.Module:
    """What a training step calls instead of ``model``; ``model`` itself when alone.

    A twin that shares every parameter and buffer with ``model``, with BatchNorm over the whole
    batch, inside DistributedDataParallel. So the model that is saved and compacted stays as it is.
    """
    if _world.size == 1:
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared).train()
    if _device.type == "cuda":
        twin = nn.SyncBatchNorm.convert_sync_batchnorm(twin)
    else:
        _see_whole_batch(twin)
    ids = [_device] if _device.type == "cuda" else None
    return DistributedDataParallel(twin, device_ids=ids)


def _see_whole_batch(module: nn.Module) -> None:
    """Replace BatchNorm in place; torch's SyncBatchNorm refuses the CPU."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _WholeBatchNorm(child))
        else:
            _see_whole_batch(child)


class _WholeBatchNorm(nn.Module):
    """A BatchNorm whose mean and variance are those of the batches of all processes together.

    Ioffe, Szegedy, *Batch Normalization* (ICML 2015), algorithm 1. All processes hold as many rows.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm, dtype = self.norm, x.dtype
        x = x.float() if dtype in (torch.bfloat16, torch.float16) else x
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.dim())]
        count = x.numel() // x.shape[1] * _world.size
        mean = _Total.apply(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = _Total.apply(centred.square().sum(dims)) / count
        if norm.running_mean is not None and norm.running_var is not None:
            with torch.no_grad():
                unbiased = variance * (count / (count - 1))
                norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                rate = norm.momentum
                if rate is None:
                    rate = 1 / norm.num_batches_tracked  # type: ignore[operator,assignment]
                norm.running_mean.add_(rate * (mean - norm.running_mean))
                norm.running_var.add_(rate * (unbiased - norm.running_var))
        y = centred * (variance + norm.eps).rsqrt().view(shape)
        if norm.weight is not None:
            y = y * norm.weight.view(shape) + norm.bias.view(shape)
        return y.to(dtype)


class _Total(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        result = upstream.contiguous().clone()
        dist.all_reduce(result)
        return result

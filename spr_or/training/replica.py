"""The network that each of several processes trains: a twin of the model, with a BatchNorm for all.

Every process holds the whole network and an equal share of each batch. DistributedDataParallel
averages the gradients of the loss, BatchNorm sees the whole batch, and everything else (SPR,
optimiser, masks) is computed by each process from equal numbers, so the networks stay equal to the
last bit.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from spr_or.training import distributed


def replica(model: nn.Module) -> nn.Module:
    """What a training step calls instead of ``model``; ``model`` itself when alone.

    A twin that shares every parameter and buffer with ``model``, with BatchNorm over the whole
    batch, inside DistributedDataParallel. So the model that is saved and compacted stays as it is.
    """
    if distributed.world().size == 1:
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared).train()
    if distributed.device().type == "cuda":
        twin = nn.SyncBatchNorm.convert_sync_batchnorm(twin)
    else:
        see_whole_batch_(twin)
    ids = [distributed.device()] if distributed.device().type == "cuda" else None
    return DistributedDataParallel(twin, device_ids=ids)


def see_whole_batch_(module: nn.Module) -> None:
    """Replace every BatchNorm inside ``module``, in place; torch's SyncBatchNorm refuses the CPU."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _WholeBatchNorm(child))
        else:
            see_whole_batch_(child)


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
        count = x.numel() // x.shape[1] * distributed.world().size
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

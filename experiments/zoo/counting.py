"""Multiply-accumulates and latency, the same way for every network, whatever made it smaller."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from preparation import Inputs, call
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(q, k, v)


def sizes(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Parameters, numbers in parameters and buffers together, and MACs of a forward pass."""
    parameters = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() for b in model.buffers())
    return {
        "params": parameters,
        "numbers": parameters + buffers,
        "macs": count_macs(model, inputs),
    }


@torch.no_grad()
def count_macs(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of matrix products, convolutions and attention, as torch executes them.

    torch's own counter counts two operations each; the CPU's attention is missing in it.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator, which no counter looks into
    try:
        with FlopCounterMode(
            display=False, custom_mapping={_ATTENTION: _attention_flops}
        ) as counter:
            call(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


@torch.inference_mode()
def latencies(
    networks: Mapping[str, nn.Module], inputs: Inputs, seconds: float = 6.0
) -> dict[str, float]:
    """Median milliseconds of a forward pass of each network; they take turns.

    Two rounds warm up; then at least 5 and at most 100 rounds, for about ``seconds``.
    """
    times: dict[str, list[float]] = {name: [] for name in networks}
    started = time.perf_counter()
    for turn in range(102):
        for name, network in networks.items():
            begin = time.perf_counter()
            call(network, inputs)
            times[name].append(1000 * (time.perf_counter() - begin))
        if turn >= 6 and time.perf_counter() - started > seconds:
            break
    return {name: statistics.median(measured[2:]) for name, measured in times.items()}

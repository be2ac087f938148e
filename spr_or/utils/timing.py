"""How long things take: what is compared takes turns, and of each the fastest turn counts.

Another process on the machine only ever adds time, so the fastest turn is the one that it disturbed
least; medians would compare what it left of one with what it left of the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

_WARMUP = 3
_LEAST_TURNS = 5


def fastest(
    runs: Sequence[Callable[[], object]], device: torch.device, repeats: int, seconds: float
) -> list[float]:
    """Seconds of each run in its fastest turn; every second turn goes through them backwards.

    At most ``repeats`` turns, and none after ``seconds`` once there were five.
    """
    times: list[list[float]] = [[] for _ in runs]
    begun = time.perf_counter()
    for turn in range(_WARMUP + repeats):
        order = range(len(runs))
        for i in order if turn % 2 else reversed(order):
            _synchronise(device)
            started = time.perf_counter()
            runs[i]()
            _synchronise(device)
            if turn >= _WARMUP:
                times[i].append(time.perf_counter() - started)
        if turn + 1 >= _WARMUP + _LEAST_TURNS and time.perf_counter() - begun > seconds:
            break
    return [min(taken) for taken in times]


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

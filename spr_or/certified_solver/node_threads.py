"""Nodes evaluated by several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Work = TypeVar("_Work")


def each_in_a_thread(
    evaluate: Callable[[_Work], None], works: Sequence[_Work], workers: int
) -> None:
    """``evaluate`` for each of ``works``, by at most ``workers`` threads, in the caller's inference mode.

    torch keeps that mode for each thread separately.

    >>> found = []
    >>> each_in_a_thread(found.append, [3, 4], workers=2)
    >>> sorted(found)
    [3, 4]
    """
    mode = torch.is_inference_mode_enabled()

    def in_mode(work: _Work) -> None:
        with torch.inference_mode(mode):
            evaluate(work)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(in_mode, works))

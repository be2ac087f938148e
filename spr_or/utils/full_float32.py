"""Float32 with all its digits, for comparisons of networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, convolutions and products of float32 are not rounded to TF32; elsewhere nothing changes.

    On GPUs torch rounds what convolutions of float32 read to 11 significant bits unless told
    otherwise. Then two networks that compute the same differ by a thousandth of their outputs, as
    much as a wrong one may.

    >>> with full_float32():
    ...     torch.backends.cudnn.conv.fp32_precision
    'ieee'
    """
    cudnn: Any = torch.backends.cudnn
    places: list[Any] = [cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision

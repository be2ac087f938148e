"""The first so many images of the training batches, for methods that look at some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

Batch = tuple[Tensor, Tensor]


def first_images(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Batches (images, labels) until ``count`` images are reached, the last one cut; or all there are.

    >>> import torch
    >>> batches = [(torch.zeros(4, 1, 2, 2), torch.zeros(4))] * 3
    >>> [len(images) for images, _ in first_images(batches, 6)]
    [4, 2]
    """
    left = count
    for images, labels in batches:
        yield images[:left], labels[:left]
        left -= len(images)
        if left <= 0:
            return

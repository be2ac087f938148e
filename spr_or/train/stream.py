"""Image sets too large for memory: Parquet row groups, decoded by worker processes.

One epoch's order is a function of the seed, the files and the number of workers: row groups are
permuted, packed into windows of a few thousand rows, windows are dealt to the workers, and each
worker shuffles the rows inside its windows. So an epoch can be repeated from its seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from spr_or.train.parquet import (
    DataError,
    Split,
    decode,
    read_group,
    resize_and_crop,
    row_groups,
    to_array,
)

_WINDOW = 2048  # rows shuffled together; encoded, they wait in a worker's memory
Batch = tuple[Tensor, Tensor]


class _Stream(IterableDataset):  # an iterable data set is what DataLoader's workers take
    """uint8 batches (B, 3, H, W) and labels (B,) of this worker's share; or a `DataError`."""

    def __init__(
        self, split: Split, batch_size: int, size: int | None, shuffle: bool, augment: bool
    ) -> None:
        self.split, self.batch_size, self.size = split, batch_size, size
        self.shuffle, self.augment = shuffle, augment
        self.seed = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers outlive an epoch

    def __iter__(self) -> Iterator[Batch | DataError]:
        try:
            yield from self._batches()
        except DataError as error:  # raised by the reader, without the worker's traceback
            yield error

    def _batches(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        images: list[np.ndarray] = []
        labels: list[int] = []
        for image, label in self._rows(worker, workers):
            if images and image.shape != images[0].shape:
                raise DataError(
                    f"{self.split.files[0].parent}: images of sizes {images[0].shape[1:]} and "
                    f"{image.shape[1:]} in one split; set data.size to bring them to one"
                )
            images.append(image)
            labels.append(label)
            if len(images) == self.batch_size:
                yield torch.from_numpy(np.stack(images)), torch.tensor(labels)
                images, labels = [], []
        if images and not self.shuffle:
            yield torch.from_numpy(np.stack(images)), torch.tensor(labels)

    def _rows(self, worker: int, workers: int) -> Iterator[tuple[np.ndarray, int]]:
        seed = int(self.seed)
        for number, window in enumerate(_windows(self.split, seed if self.shuffle else None)):
            if number % workers != worker:
                continue
            rows = [
                (file, group, row, data, label)
                for file, group in window
                for row, (data, label) in enumerate(read_group(self.split, file, group))
            ]
            generator = torch.Generator().manual_seed(seed * 65_537 + number + 1)
            order = torch.randperm(len(rows), generator=generator) if self.shuffle else None
            for position in range(len(rows)) if order is None else order.tolist():
                file, group, row, data, label = rows[position]
                image = decode(data, label, file, f"{row} of row group {group}")
                yield to_array(self._sized(image, generator)), label

    def _sized(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        if self.size is None:
            return image
        if self.augment:
            return random_resized_crop(image, self.size, generator)
        return resize_and_crop(image, self.size)


def _windows(split: Split, seed: int | None) -> list[list[tuple[Path, int]]]:
    """Row groups packed into windows of about `_WINDOW` rows, in the order of the seed."""
    groups = row_groups(split)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    windows: list[list[tuple[Path, int]]] = []
    room = 0
    for file, group, rows in groups:
        if room <= 0:
            windows.append([])
            room = _WINDOW
        windows[-1].append((file, group))
        room -= rows
    return windows


def random_resized_crop(image: Image.Image, size: int, generator: torch.Generator) -> Image.Image:
    """A window of 8 to 100 % of the area and aspect 3/4 to 4/3, scaled to (size, size).

    Szegedy et al., *Going Deeper with Convolutions* (CVPR 2015), section 6. After ten draws that
    do not fit, the centre.
    """
    width, height = image.size
    for _ in range(10):
        u, v, x, y = torch.rand(4, generator=generator).tolist()
        area = width * height * (0.08 + 0.92 * u)
        aspect = math.exp((2 * v - 1) * math.log(4 / 3))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            box = (left, top, left + w, top + h)
            return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return resize_and_crop(image, size)


class StreamReader:
    """Epochs of a split, decoded by ``workers`` processes that live as long as the reader.

    ``reader(seed)`` iterates over (uint8 (B, 3, H, W), int64 (B,)) on the CPU. With ``shuffle``
    incomplete batches are dropped. Raises `DataError` for a damaged image.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        size: int | None,
        shuffle: bool,
        augment: bool,
        workers: int,
        pin: bool,
    ) -> None:
        self._stream = _Stream(split, batch_size, size, shuffle, augment)
        self._loader = DataLoader(
            self._stream,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0,
            # Arrow's threads do not survive a fork.
            multiprocessing_context="spawn" if workers else None,
        )

    def __call__(self, seed: int) -> Iterator[Batch]:
        self._stream.seed[0] = seed
        for item in self._loader:
            if isinstance(item, DataError):
                raise item
            yield item

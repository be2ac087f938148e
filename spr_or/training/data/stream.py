"""Image sets too large for memory: Parquet row groups, decoded by worker processes.

An epoch's order is a function of the seed and the files: row groups are permuted and packed into
windows of a few thousand rows, rows are permuted inside their window, and the windows one after
another are the order. Batch b is the b-th run of ``batch_size`` rows in it, whoever decodes it, so
batches do not depend on the number of workers or processes; only their sequence does, because each
worker keeps to windows of its own as long as it can: what it has read it need not read again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spr_or.training import distributed
from spr_or.training.data.parquet import (
    DataError,
    ParquetSplit,
    decode,
    read_group,
    resize_and_crop,
    row_groups,
    to_array,
)
from spr_or.utils.interrupts import deaf_children
from spr_or.utils.orphans import end_with_parent

_WINDOW = 2048  # rows shuffled together; encoded, they wait in a worker's memory
_ATTEMPTS = 10  # at a random window that fits into the image
Batch = tuple[Tensor, Tensor]
Group = tuple[Path, int, int]  # file, row group, rows
ImageRow = tuple[Path, int, int, bytes | None, int]  # file, row group, row in it, image, label


class _Stream(Dataset):
    """uint8 (B, 3, H, W) and labels (B,) of a batch by its number; None for no rows.

    A `DataError` is returned, not raised: the reader raises it without the worker's traceback.
    """

    def __init__(
        self,
        split: ParquetSplit,
        rows: int,
        batch_size: int,
        size: int | None,
        shuffle: bool,
        augment: bool,
    ) -> None:
        self.split, self.rows, self.batch_size, self.size = split, rows, batch_size, size
        self.shuffle, self.augment = shuffle, augment
        self.groups = list(_first_rows(row_groups(split), rows))
        # Seed, rank and number of processes: workers outlive an epoch and read it here.
        self.epoch = torch.tensor([0, 0, 1]).share_memory_()
        self._planned: tuple[int, list[list[Group]], list[int]] | None = None
        self._read: dict[tuple[int, int], list[ImageRow]] = {}

    def __len__(self) -> int:
        """Batches of an epoch; an incomplete one is left out when shuffling."""
        whole, rest = divmod(self.rows, self.batch_size)
        return whole if self.shuffle or not rest else whole + 1

    def __getitem__(self, number: int) -> Batch | DataError | None:
        try:
            return self._batch(number)
        except DataError as error:
            return error

    def window_of(self, seed: int, position: int) -> int:
        """The window that holds the row at a position of the order."""
        return bisect_right(self._plan(seed)[1], position) - 1

    def _batch(self, number: int) -> Batch | None:
        seed, rank, size = self.epoch.tolist()
        start = number * self.batch_size
        stop = min(start + self.batch_size, self.rows)
        mine = distributed.share(start, stop, distributed.World(rank, size))
        if mine.start == mine.stop:
            return None
        draws = None
        if self.augment:  # for the whole batch, whoever decodes which part
            shape = (self.batch_size, _ATTEMPTS, 4)
            draws = torch.rand(shape, generator=_generator(seed, number)).tolist()
        images: list[np.ndarray] = []
        labels: list[int] = []
        for position in range(mine.start, mine.stop):
            file, group, row, data, label = self._row(seed, position)
            classes = len(self.split.classes)
            image = decode(data, label, file, f"{row} of row group {group}", classes)
            if self.size is not None:
                image = (
                    resize_and_crop(image, self.size)
                    if draws is None
                    else random_resized_crop(image, self.size, draws[position - start])
                )
            array = to_array(image)
            if images and array.shape != images[0].shape:
                raise DataError(
                    f"{self.split.files[0].parent}: images of sizes {images[0].shape[1:]} and "
                    f"{array.shape[1:]} in one split; set data.size to bring them to one"
                )
            images.append(array)
            labels.append(label)
        return torch.from_numpy(np.stack(images)), torch.tensor(labels)

    def _row(self, seed: int, position: int) -> ImageRow:
        windows, starts = self._plan(seed)
        number = self.window_of(seed, position)
        key = (seed, number)
        if key not in self._read:
            for old in list(self._read)[:-1]:  # a batch lies in at most two neighbours
                del self._read[old]
            self._read[key] = self._read_window(seed, number, windows[number])
        window, place = self._read[key], position - starts[number]
        if place >= len(window):
            raise DataError(f"{self.split.files[0]}: fewer rows than the footers state")
        return window[place]

    def _read_window(self, seed: int, number: int, window: list[Group]) -> list[ImageRow]:
        rows = [
            (file, group, row, data, label)
            for file, group, count in window
            for row, (data, label) in enumerate(islice(read_group(self.split, file, group), count))
        ]
        if not self.shuffle:
            return rows
        order = torch.randperm(len(rows), generator=_generator(seed, number))
        return [rows[i] for i in order.tolist()]

    def _plan(self, seed: int) -> tuple[list[list[Group]], list[int]]:
        """The windows of an epoch and the position of each one's first row."""
        if self._planned is None or self._planned[0] != seed:
            windows = _windows(self.groups, seed if self.shuffle else None)
            counts = [sum(rows for _, _, rows in window) for window in windows]
            self._planned = seed, windows, list(accumulate(counts, initial=0))[:-1]
        return self._planned[1:]


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 65_537 + number + 1)


def _first_rows(groups: list[Group], rows: int) -> Iterator[Group]:
    for file, group, count in groups:
        if rows <= 0:
            return
        yield file, group, min(count, rows)
        rows -= count


def _windows(groups: list[Group], seed: int | None) -> list[list[Group]]:
    """Row groups packed into windows of about `_WINDOW` rows, in the order of the seed."""
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    windows: list[list[Group]] = []
    room = 0
    for file, group, rows in groups:
        if room <= 0:
            windows.append([])
            room = _WINDOW
        windows[-1].append((file, group, rows))
        room -= rows
    return windows


def _dealt(windows: Sequence[int], workers: int) -> list[int]:
    """Batch numbers in an order whose j-th falls to worker j mod ``workers``, as DataLoader deals.

    ``windows[b]`` is the window of batch b. Window k belongs to worker k mod ``workers``; who has
    finished his takes from the one with most left.

    >>> _dealt([0, 0, 0, 1, 1, 2], workers=2)
    [0, 3, 1, 4, 2, 5]
    """
    queues = [deque[int]() for _ in range(workers)]
    for number, window in enumerate(windows):
        queues[window % workers].append(number)
    order: list[int] = []
    for turn in range(len(windows)):
        own = queues[turn % workers]
        order.append(own.popleft() if own else max(queues, key=len).pop())
    return order


def random_resized_crop(
    image: Image.Image, size: int, draws: Sequence[Sequence[float]]
) -> Image.Image:
    """A window of 8 to 100 % of the area and aspect 3/4 to 4/3, scaled to (size, size).

    Szegedy et al., *Going Deeper with Convolutions* (CVPR 2015), section 6. Each of ``draws`` is
    four numbers, uniform in [0, 1): area, aspect, left, top; the first that fits is taken, and the
    centre if none does.
    """
    width, height = image.size
    for u, v, x, y in draws:
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

    ``reader(seed)`` iterates over (uint8 (B, 3, H, W), int64 (B,)) on the CPU: this process's
    share of each batch. With ``shuffle`` an incomplete last batch is dropped. ``rows`` takes the
    first so many of the split. Raises `DataError` for a damaged image.
    """

    def __init__(
        self,
        split: ParquetSplit,
        batch_size: int,
        *,
        size: int | None,
        shuffle: bool,
        augment: bool,
        workers: int,
        pin: bool,
        rows: int | None = None,
    ) -> None:
        self._stream = _Stream(split, rows or split.rows, batch_size, size, shuffle, augment)
        self._workers = max(1, workers)
        self._order: list[int] = []
        self._loader = DataLoader(
            self._stream,
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0,
            # Arrow's threads do not survive a fork.
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=_begin_worker,
        )

    def __call__(self, seed: int) -> Iterator[Batch]:
        stream = self._stream
        stream.epoch.copy_(torch.tensor([seed, *distributed.world()]))
        windows = [stream.window_of(seed, b * stream.batch_size) for b in range(len(stream))]
        self._order[:] = _dealt(windows, self._workers)
        with deaf_children() if self._loader.num_workers else nullcontext():
            batches = iter(self._loader)
        for item in batches:
            if isinstance(item, DataError):
                raise item
            if item is not None:
                yield item


def _begin_worker(number: int) -> None:
    """Torch's workers outlive a process that was killed while they started."""
    end_with_parent()

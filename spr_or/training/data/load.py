"""The images of a run: one tensor on the training device, or a stream if they do not fit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spr_or.training import distributed
from spr_or.training.data import parquet
from spr_or.training.data.augment import Augment, augmented, draw, normalise
from spr_or.training.data.cache import Arrays, cached
from spr_or.training.data.parquet import DataError, ParquetSplit
from spr_or.training.data.stream import StreamReader
from spr_or.training.recipe import DataRecipe
from spr_or.utils.files import cache_folder

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
OnDecoded = Callable[[str, int, int], None]  # what, how many are done, of how many

_STATISTICS_ROWS = 10_000  # enough for channel means to a thousandth
_CHUNK_BYTES = 2**27  # of float32 images that an accelerator augments at a time


@dataclass(frozen=True)
class Data:
    """What a run trains on and is judged by.

    ``train(seed)`` and ``evaluate(seed)`` iterate over one epoch of (float32 (B, C, H, W),
    int64 (B,)) on the device; the order and all random choices of a training epoch follow from
    the seed alone, and are the same on every device for a set in memory. Of several processes
    each gets its share of the very batches that one process would get (see `distributed`).
    ``mean`` and ``std``, (C,), in units of a pixel in [0, 1], are what the images were normalised by.
    ``held_out(seed)`` iterates over the training images that are not trained on; None without them.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    train: Batches
    evaluate: Batches
    train_rows: int
    eval_rows: int
    streamed: bool
    mean: Tensor
    std: Tensor
    held_out: Batches | None = None
    held_out_rows: int = 0


def _silent(what: str, done: int, total: int) -> None:
    pass


def load_data(recipe: DataRecipe, device: torch.device, progress: OnDecoded = _silent) -> Data:
    """The data of a recipe; raises `DataError` for what cannot be read.

    >>> data = load_data(DataRecipe(batch_size=100), torch.device("cpu"))
    >>> data.shape, data.classes, data.train_rows
    ((1, 8, 8), 10, 1437)
    >>> images, labels = next(data.train(0))
    >>> images.shape, labels.shape
    (torch.Size([100, 1, 8, 8]), torch.Size([100]))
    """
    if recipe.source == "digits":
        _refuse_what_digits_have_not(recipe)
        train, test = _digits()
        return _in_memory(recipe, device, train, test, "digits", 10)
    with distributed.first_before_others():  # a download, or decoding into the cache
        return _from_parquet(recipe, device, progress)


_OF_FILES = ("revision", "train_split", "eval_split", "size", "random_resized_crop")


def _refuse_what_digits_have_not(recipe: DataRecipe) -> None:
    """Raise `DataError` for keys that the digits, which are no files, would pass over."""
    given = [key for key in _OF_FILES if getattr(recipe, key) != getattr(DataRecipe(), key)]
    given += ["memory"] if recipe.memory == "stream" else []
    if given:
        keys = ", ".join(f"data.{key} = {getattr(recipe, key)!r}" for key in given)
        raise DataError(
            f'{keys}: data.source = "digits" comes from no files and stays 8 x 8; leave the key out'
        )


def find_splits(recipe: DataRecipe) -> tuple[ParquetSplit, ParquetSplit] | None:
    """The files to train on and to evaluate on; None for the digits, which have none.

    A set of the Hub is downloaded. Raises `DataError` where there is none, or not such splits.
    """
    if recipe.source == "digits":
        return None
    folder = parquet.find_folder(recipe.source, recipe.revision)
    train_split = parquet.open_split(folder, recipe.train_split)
    return train_split, parquet.open_split(folder, recipe.eval_split)


def _from_parquet(recipe: DataRecipe, device: torch.device, progress: OnDecoded) -> Data:
    splits = find_splits(recipe)
    assert splits is not None
    train_split, eval_split = splits
    classes = len(train_split.classes) or len(eval_split.classes)
    if recipe.memory == "stream" or (
        recipe.memory == "auto" and not _fits((train_split, eval_split), recipe.size, device)
    ):
        return _streamed(recipe, device, train_split, eval_split, classes)
    train = _decoded(recipe, train_split, progress)
    test = _decoded(recipe, eval_split, progress)
    classes = classes or int(max(train[1].max(), test[1].max())) + 1
    return _in_memory(recipe, device, train, test, recipe.source, classes)


@cache
def _digits() -> tuple[Arrays, Arrays]:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; one stratified split, whatever the seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    parts = train_test_split(
        images, labels.astype(np.int64), test_size=0.2, stratify=labels, random_state=0
    )
    return (parts[0], parts[2]), (parts[1], parts[3])


# --- in memory ------------------------------------------------------------------------------


def _in_memory(
    recipe: DataRecipe,
    device: torch.device,
    train: Arrays,
    test: Arrays,
    name: str,
    classes: int,
) -> Data:
    train = _subset(train, recipe.train_rows, "train_rows")
    test = _subset(test, recipe.eval_rows, "eval_rows")
    train, aside = _hold_out(train, recipe.held_out)
    images, labels = (torch.from_numpy(array) for array in train)
    mean, std = _normalisation(recipe, images[:_STATISTICS_ROWS], device)
    batches = partial(memory_batches, mean=mean, std=std)

    def scored(arrays: Arrays) -> Batches:
        tensors = (torch.from_numpy(array).to(device) for array in arrays)
        return partial(batches, *tensors, batch_size=recipe.eval_batch_size, augment=None)

    return Data(
        recipe.name or name,
        classes,
        (images.shape[1], images.shape[2], images.shape[3]),
        partial(
            batches,
            images.to(device),
            labels.to(device),
            batch_size=_shareable(min(recipe.batch_size, len(images))),
            augment=Augment(recipe.crop, recipe.flip, recipe.cutout),
        ),
        scored(test),
        len(train[0]),
        len(test[0]),
        streamed=False,
        mean=mean,
        std=std,
        held_out=scored(aside) if len(aside[0]) else None,
        held_out_rows=len(aside[0]),
    )


def memory_batches(
    images: Tensor,
    labels: Tensor,
    seed: int,
    *,
    batch_size: int,
    augment: Augment | None,
    mean: Tensor,
    std: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch; with ``augment`` in random order and without a rest."""
    rows = len(images)
    if augment is None:
        for start in range(0, rows, batch_size):
            part = distributed.share(start, min(start + batch_size, rows))
            if part.start < part.stop:
                yield normalise(images[part], mean, std), labels[part]
        return
    # Drawn on the CPU for the whole epoch: every device and process then sees the same epoch.
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows, generator=generator)
    height, width = images.shape[2:]
    draws = draw(rows, augment, (height, width), generator)
    steps = rows // batch_size
    whole = torch.arange(steps * batch_size).view(steps, batch_size)
    places = whole[:, distributed.share(0, batch_size)]
    local = places.shape[1]
    places = places.flatten()
    # Copied to the device once; after this, nothing waits for it.
    order, draws = order[places].to(images.device), draws.take(places).to(images.device)
    at_once = local * _batches_at_once(images, local)
    for first in range(0, len(order), at_once):
        chunk = slice(first, first + at_once)
        chosen = order[chunk]
        changed = augmented(images[chosen], draws.take(chunk), augment, mean, std)
        yield from zip(changed.split(local), labels[chosen].split(local), strict=True)


def _batches_at_once(images: Tensor, local: int) -> int:
    """How many batches are augmented together: an accelerator pays for each kernel, a CPU's cache
    for each byte."""
    if images.device.type == "cpu":
        return 1
    return max(1, _CHUNK_BYTES // (4 * images[0].numel() * local))


def _shareable(batch_size: int) -> int:
    size = distributed.world().size
    if batch_size % size:
        raise DataError(
            f"data.batch_size = {batch_size} is the batch of all processes together, and {size} "
            f"processes cannot share it equally: --set data.batch_size={batch_size // size * size}"
            if batch_size > size
            else f"a batch of {batch_size} images is too small for {size} processes"
        )
    return batch_size


def _normalisation(
    recipe: DataRecipe, sample: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The recipe's mean and std of each channel, or those of a sample of training images."""
    if recipe.mean is None or recipe.std is None:
        mean, std = statistics(sample)
    else:
        mean, std = torch.tensor(recipe.mean), torch.tensor(recipe.std)
        if len(mean) != sample.shape[1]:
            raise DataError(
                f"data.mean has {len(mean)} numbers, but the images have {sample.shape[1]} channels"
            )
    return mean.to(device), std.to(device)


def _subset(arrays: Arrays, rows: int | None, key: str) -> Arrays:
    if rows is None:
        return arrays
    images, labels = arrays
    if rows > len(images):
        raise DataError(f"data.{key} = {rows}, but the split has {len(images)} rows")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    keep = order[:rows].sort().values.numpy()
    return images[keep], labels[keep]


def _hold_out(train: Arrays, share: float) -> tuple[Arrays, Arrays]:
    """The images to train on, and a random ``share`` of them all set aside; the same in every run."""
    images, labels = train
    aside = round(share * len(images))
    if share and not 0 < aside < len(images):
        raise DataError(f"data.held_out = {share:g} of {len(images)} training images is {aside}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).numpy()
    keep, rest = np.sort(order[aside:]), np.sort(order[:aside])
    return (images[keep], labels[keep]), (images[rest], labels[rest])


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 (N, C, H, W), as float32 (C,) in [0, 1].

    From a histogram: exact, and without a float copy of the images.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
    ).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ levels
    variance = share @ levels**2 - mean**2
    return mean.float(), variance.clamp(min=1e-8).sqrt().float()


def _decoded(recipe: DataRecipe, split: ParquetSplit, progress: OnDecoded) -> Arrays:
    key = f"{recipe.source}-{split.name}" + (f"-{recipe.size}" if recipe.size else "")
    source = {"files": split.fingerprint(), "size": recipe.size}
    folder = recipe.cache or cache_folder()
    return cached(folder, key, source, lambda: decode_split(split, recipe.size, progress))


def decode_split(split: ParquetSplit, size: int | None, progress: OnDecoded = _silent) -> Arrays:
    """All images of a split as uint8 (N, 3, H, W), labels int64 (N,).

    ``size`` scales and crops to (size, size); None wants one common size. Raises `DataError`
    naming the file and row of a damaged image, or of one that differs in size.
    """
    images: np.ndarray | None = None
    labels: list[int] = []
    classes = len(split.classes)
    for done, (file, row, data, label) in enumerate(_all_rows(split), start=1):
        image = parquet.decode(data, label, file, row, classes)
        if size is not None and image.size != (size, size):
            image = parquet.resize_and_crop(image, size)
        array = parquet.to_array(image)
        if images is None:
            images = _room(split, array.shape)
        if array.shape != images.shape[1:]:
            raise DataError(
                f"{file} row {row}: an image of size {array.shape[1:]} among others of size "
                f"{images.shape[2:]}; set data.size to bring them to one"
            )
        if done > split.rows:
            raise DataError(f"{file}: more rows than its footer states")
        images[done - 1] = array
        labels.append(label)
        if done % 1000 == 0 or done == split.rows:
            progress(f"decoding {split.name}", done, split.rows)
    if images is None or len(labels) < split.rows:
        raise DataError(f"{split.files[-1]}: {len(labels)} rows, its footer states {split.rows}")
    return images, np.array(labels, dtype=np.int64)


def _room(split: ParquetSplit, shape: tuple[int, ...]) -> np.ndarray:
    """An array for all images of a split, where this machine can hold it."""
    needed = split.rows * math.prod(shape)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise DataError(
            f"{split.files[0]}: {split.rows:,} images of {shape[1]} x {shape[2]} pixels take "
            f"{needed / 2**30:.1f} GiB decoded, this machine has {memory / 2**30:.1f}; set "
            'data.size, or data.memory = "stream"'
        )
    return np.empty((split.rows, *shape), dtype=np.uint8)


def _all_rows(split: ParquetSplit) -> Iterator[tuple[Path, int, bytes | None, Any]]:
    row, last = 0, None
    for file, group, _ in parquet.row_groups(split):
        row = row if file == last else 0
        last = file
        for data, label in parquet.read_group(split, file, group):
            yield file, row, data, label
            row += 1


# --- streamed -------------------------------------------------------------------------------


def _fits(splits: tuple[ParquetSplit, ...], size: int | None, device: torch.device) -> bool:
    """Whether the decoded splits take at most half of the device's free memory."""
    height, width = (size, size) if size else _first_image(splits[0]).shape[1:]
    needed = sum(split.rows for split in splits) * 3 * height * width
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return needed <= free / 2


def _first_image(split: ParquetSplit) -> np.ndarray:
    first = next(_all_rows(split), None)
    if first is None:
        raise DataError(f"{split.files[0]}: no rows, its footer states {split.rows}")
    file, row, data, label = first
    return parquet.to_array(parquet.decode(data, label, file, row))


def _streamed(
    recipe: DataRecipe, device: torch.device, train: ParquetSplit, test: ParquetSplit, classes: int
) -> Data:
    if recipe.held_out:
        raise DataError(
            'data.held_out needs images in memory, and these are streamed: memory = "device"'
        )
    if not classes:
        raise DataError(f"{train.files[0]} names no classes, which a streamed set needs")
    train_rows = _first_of(train, recipe.train_rows, "train_rows")
    eval_rows = _first_of(test, recipe.eval_rows, "eval_rows")
    batch_size = _shareable(min(recipe.batch_size, train_rows))
    pin = device.type == "cuda"
    resized = recipe.random_resized_crop
    augment = Augment(recipe.crop, recipe.flip, recipe.cutout)
    reader = partial(StreamReader, size=recipe.size, workers=recipe.workers, pin=pin)
    train_reader = reader(train, batch_size, shuffle=True, augment=resized, rows=train_rows)
    eval_reader = reader(test, recipe.eval_batch_size, shuffle=False, augment=False, rows=eval_rows)
    with distributed.alone():
        sample = next(reader(train, 256, shuffle=False, augment=False, workers=0)(0))[0]
    mean, std = _normalisation(recipe, sample, device)

    def train_batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        mine = distributed.share(0, batch_size)
        for images, labels in train_reader(seed):
            height, width = images.shape[2:]
            draws = draw(batch_size, augment, (height, width), generator).take(mine).to(device)
            changed = augmented(images.to(device, non_blocking=pin), draws, augment, mean, std)
            yield changed, labels.to(device, non_blocking=pin)

    def eval_batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in eval_reader(seed):
            images = images.to(device, non_blocking=pin)
            yield normalise(images, mean, std), labels.to(device, non_blocking=pin)

    return Data(
        recipe.name or recipe.source,
        classes,
        (sample.shape[1], sample.shape[2], sample.shape[3]),
        train_batches,
        eval_batches,
        train_rows,
        eval_rows,
        streamed=True,
        mean=mean,
        std=std,
    )


def _first_of(split: ParquetSplit, rows: int | None, key: str) -> int:
    if rows is not None and rows > split.rows:
        raise DataError(f"data.{key} = {rows}, but the split has {split.rows} rows")
    return rows or split.rows

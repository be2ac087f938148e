"""The two networks of a run, dense and compact, with its images and the region that they live in."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spr_or.pruning.compaction.api import load_compact
from spr_or.training.data.load import load_data
from spr_or.training.recipe import build_model, parse_recipe
from spr_or.training.setup import load_weights
from spr_or.training.stored_run import DamagedFile, read_recipe


class PairError(ValueError):
    """A folder or file that holds no such networks; the message says what is missing."""


class Pair(NamedTuple):
    """Networks and evaluation images of a run.

    dense, pruned : in evaluation mode, on the CPU
    images, labels : as the networks take them, (n, C, H, W) and (n,)
    low, high : the least and largest values that a pixel can have there, float64, of one image's shape
    pixel : what a step of 1 of a pixel in [0, 1] is there, float64, of one image's shape
    """

    dense: nn.Module
    pruned: nn.Module
    images: Tensor
    labels: Tensor
    low: Tensor
    high: Tensor
    pixel: Tensor


def load_pair(run: Path, compact: Path | None = None) -> Pair:
    """Load what ``spr-or run`` left in a folder.

    run : the folder, or its dense.safetensors; compact : the file of the pruned network where it is not the
    folder's compact.safetensors.  The recipe, recipe.json beside the dense network or one folder up, names
    the network and the images.

    Raises `PairError`, and what reading the data raises.
    """
    dense_file = run / "dense.safetensors" if run.is_dir() else run
    compact_file = compact or dense_file.parent / "compact.safetensors"
    missing = [str(file) for file in (dense_file, compact_file) if not file.exists()]
    if missing:
        raise PairError(
            f"there is no {' and no '.join(missing)}: give the folder of a finished spr-or run, or its "
            "dense and its compact network as two files"
        )
    stored = None
    try:
        for folder in (dense_file.parent, dense_file.parent.parent):
            stored = stored or read_recipe(folder)
    except DamagedFile as error:
        raise PairError(str(error)) from None
    if stored is None:
        raise PairError(
            f"there is no recipe.json beside {dense_file} or one folder up: it says which network and "
            "which images these are"
        )
    recipe = parse_recipe(stored, f"recipe.json of {dense_file.parent}")
    dense = build_model(recipe)
    load_weights(dense, dense_file)
    pruned = load_compact(compact_file)
    data = load_data(recipe.data, torch.device("cpu"))
    batches = list(data.evaluate(0))
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    low, high, pixel = (
        _image_of(numbers, data.shape)
        for numbers in (-data.mean / data.std, (1 - data.mean) / data.std, 1 / data.std)
    )
    return Pair(dense.eval(), pruned.eval(), images, labels, low, high, pixel)


def ball(pair: Pair, image: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """All images whose pixels, in [0, 1], differ by at most ``radius``: lower and upper ends, float64."""
    low = torch.maximum(image.double() - radius * pair.pixel, pair.low)
    high = torch.minimum(image.double() + radius * pair.pixel, pair.high)
    # The image itself is inside, whatever rounding says.
    return torch.minimum(low, image.double()), torch.maximum(high, image.double())


def accuracy(net: nn.Module, pair: Pair) -> float:
    """Percent of the evaluation images that a network classifies rightly."""
    with torch.no_grad():
        right = net(pair.images).argmax(1) == pair.labels
    return 100 * float(right.double().mean())


def _image_of(channels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """A number for each channel as an image."""
    return channels.double().view(-1, 1, 1).expand(shape).contiguous()

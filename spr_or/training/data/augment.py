"""Random crop, flip, cutout and normalisation of a batch of uint8 images, on the device they live on."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Draws(NamedTuple):
    """The random choices for B images: crop offsets (B,), (B,), flips (B,), and centres of holes (B, 2)."""

    top: Tensor
    left: Tensor
    flip: Tensor
    hole: Tensor

    def take(self, index: Tensor | slice) -> Draws:
        """The choices of some images."""
        return Draws(*(part[index] for part in self))

    def to(self, device: torch.device) -> Draws:
        """The choices on another device."""
        return Draws(*(part.to(device, non_blocking=True) for part in self))


class Augment(NamedTuple):
    """How training images are changed: pixels to ``crop`` by, ``flip``, and the side of the hole."""

    crop: int = 0
    flip: bool = False
    cutout: int = 0


def draw(count: int, augment: Augment, shape: tuple[int, int], generator: torch.Generator) -> Draws:
    """Offsets uniform in 0..2·crop, flips with probability 1/2, centres uniform over the ``shape`` (H, W).

    Without flips none is drawn, and without cutout no centre, so the other choices stay what they are.
    """
    crop, flip, cutout = augment
    offsets = torch.randint(0, 2 * crop + 1, (2, count), generator=generator)
    flips = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    hole = torch.zeros(count, 2, dtype=torch.int64)
    if cutout:
        places = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        hole = (places * torch.tensor(shape)).long()
    return Draws(offsets[0], offsets[1], flips, hole)


def crop_and_flip(images: Tensor, draws: Draws, crop: int) -> Tensor:
    """Pad by ``crop`` black pixels, cut the drawn window of the old size, mirror where drawn.

    images: (B, C, H, W) of any dtype; the result has the same shape and dtype. One gather for the
    whole batch: pixel (i, j) of the window at (t, l) is pixel (i + t, j + l) of the padded image,
    and a mirrored window reads its columns from the right.

    >>> image = torch.arange(4).view(1, 1, 2, 2)
    >>> one = torch.ones(1, dtype=torch.int64)
    >>> crop_and_flip(image, Draws(one, one, one == 1, one), crop=1).tolist()
    [[[[1, 0], [3, 2]]]]
    """
    batch, channels, height, width = images.shape
    device = images.device
    padded = F.pad(images, (crop, crop, crop, crop)) if crop else images
    rows = draws.top[:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(draws.flip[:, None], width - 1 - columns, columns) + draws.left[:, None]
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    pixels = pixels.view(batch, 1, -1).expand(batch, channels, -1)
    return padded.flatten(2).gather(2, pixels).view(images.shape)


def cut_out(images: Tensor, hole: Tensor, side: int) -> Tensor:
    """Zero a square of ``side`` pixels about the centre ``hole`` (B, 2), or what of it lies inside.

    images: (B, C, H, W), normalised, so that 0 is the mean. DeVries and Taylor, *Improved regularization
    of convolutional neural networks with cutout*, 2017.

    >>> cut_out(torch.ones(1, 1, 2, 3), torch.tensor([[0, 2]]), side=2).tolist()
    [[[[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]]
    """
    first = hole - side // 2

    def inside(size: int, start: Tensor) -> Tensor:
        place = torch.arange(size, device=images.device) - start[:, None]
        return (place >= 0) & (place < side)

    rows, columns = inside(images.shape[2], first[:, 0]), inside(images.shape[3], first[:, 1])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, C, H, W) to float32 with the channels' mean and std (C,) in units of 1/255.

    >>> mean, std = torch.tensor([0.5]), torch.tensor([0.5])
    >>> normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), mean, std).tolist()
    [[[[-1.0, 1.0]]]]
    """
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def augmented(images: Tensor, draws: Draws, augment: Augment, mean: Tensor, std: Tensor) -> Tensor:
    """Training images, uint8 (B, C, H, W), as the network sees them: float32 of the same shape."""
    changed = normalise(crop_and_flip(images, draws, augment.crop), mean, std)
    return cut_out(changed, draws.hole, augment.cutout) if augment.cutout else changed

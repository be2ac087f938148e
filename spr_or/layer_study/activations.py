"""What the convolutions of a network read: patches at random positions of real images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.utils.evaluating import evaluating

PER_COLUMN = 20  # positions sampled for each column of a layer's patches (docs/lab/layers.md)
_IMAGES = 512


class Patches(NamedTuple):
    """One convolution: X (n, c_in k), with a row for each position, and W (c_in k, c_out); float64.

    X W is the convolution's output there, without its bias.
    """

    X: Tensor
    W: Tensor


def refusal(layer: nn.Conv2d) -> str:
    """Why the input channels of a convolution cannot be studied; empty where they can."""
    if layer.groups != 1:
        return f"{layer.groups} groups: its outputs do not read all of its inputs"
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return f"padding {layer.padding!r} of mode {layer.padding_mode!r} is not supported"
    if layer.in_channels == 1:
        return "one input channel: nothing to choose"
    return ""


@torch.no_grad()
def sample_patches(
    model: nn.Module, names: list[str], batches: Iterable[tuple[Tensor, Tensor]], seed: int = 0
) -> dict[str, Patches]:
    """Run images through ``model`` in evaluation mode and store patches of the named convolutions.

    ``batches`` : (images, labels) on the model's device; about 512 images are read.  Every layer gets
    `PER_COLUMN` positions for each column, equally many from each image, or all there are.

    >>> net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False))
    >>> images = torch.randn(40, 2, 6, 6)
    >>> X, W = sample_patches(net, ["0"], [(images, torch.zeros(40))])["0"]
    >>> X.shape, W.shape
    (torch.Size([360, 18]), torch.Size([18, 3]))
    """
    layers = {name: model.get_submodule(name) for name in names}
    # One generator for each layer, so that its positions do not depend on the other layers asked for.
    generators = {
        name: torch.Generator().manual_seed(seed + crc32(name.encode())) for name in names
    }
    images: list[Tensor] = []
    for batch, _ in batches:
        images.append(batch)
        if sum(map(len, images)) >= _IMAGES:
            break
    count = sum(map(len, images))
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str, layer: nn.Conv2d, x: Tensor) -> None:
        assert not isinstance(layer.padding, str)  # checked by `refusal`
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        size, columns, places = patches.shape
        each = min(places, math.ceil(PER_COLUMN * columns / count))
        chosen = (
            torch.rand(size, places, generator=generators[name]).topk(each, 1).indices.to(x.device)
        )
        rows = patches.gather(2, chosen.unsqueeze(1).expand(-1, columns, -1))
        found[name].append(rows.mT.reshape(-1, columns).cpu().double())

    hooks = [
        layer.register_forward_pre_hook(
            lambda module, inputs, name=name: note(name, module, inputs[0])
        )
        for name, layer in layers.items()
    ]
    with evaluating(model, hooks):
        for batch in images:
            model(batch)
    return {
        name: Patches(torch.cat(rows), layers[name].weight.detach().cpu().double().flatten(1).mT)  # type: ignore[operator]
        for name, rows in found.items()
    }

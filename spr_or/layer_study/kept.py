"""Which input channels of each convolution the SPR-trained network kept."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from spr_or.pruning.compaction import format_1
from spr_or.pruning.compaction.api import read_description


class Kept(NamedTuple):
    """``channels``: the input channels that are left; ``gone``: the convolution itself is not there."""

    channels: tuple[int, ...]
    gone: bool


def kept_inputs(model: nn.Module, compact: Path) -> dict[str, Kept]:
    """For every convolution of ``model``, what its compacted form in ``compact`` still reads.

    SPR removes filters; an input channel of a layer is left when some filter still writes it, also
    through additions and shortcuts. Compaction has computed this and stored it.  Raises
    ``ValueError`` for a file that is no compacted network.
    """
    description = read_description(compact)
    if description["format"] == format_1.FORMAT:
        rows, columns = format_1.rows_and_columns(description, model)
    else:
        kept = description["kept"]
        rows = {n.removesuffix(".weight"): dims[0] for n, dims in kept.items()}
        columns = {n.removesuffix(".weight"): dims[1] for n, dims in kept.items() if len(dims) > 1}
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            gone = name not in rows
            left = columns.get(name, []) if not gone else []
            channels = range(layer.in_channels) if left is None else left
            found[name] = Kept(tuple(channels), gone)
    return found

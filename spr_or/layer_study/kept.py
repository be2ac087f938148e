"""Which input channels of each convolution the SPR-trained network kept."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from spr_or.pruning.compaction.api import read_description
from spr_or.pruning.compaction.graph import module_of, sides, trace


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
    steps = read_description(compact)["steps"]
    graph = trace(model.eval())
    found = {}
    for node in graph.graph.nodes:
        if isinstance(module_of(graph, node), nn.Conv2d):
            gone = not steps[node.name]["kept"]
            channels = () if gone else tuple(steps[sides(node)[0].name]["kept"])
            found[str(node.target)] = Kept(channels, gone)
    return found

"""The feature maps of filters, as the methods that judge by them take them.

The map of a filter is what its channel holds when the next layer reads it: after the norm and the
activation that follow. At the end of a residual block the activation follows the addition, so there the
map holds the shortcut's part too (as in the code of HRank and CHIP, which hook the block's last ReLU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from spr_or.methods.common.first_images import first_images
from spr_or.methods.common.writers import Channels, mean_score, writers
from spr_or.pruning.compaction.prepare import prepared
from spr_or.pruning.compaction.trace import trace
from spr_or.pruning.compaction.weighted import WEIGHTED
from spr_or.pruning.groups import CONVOLUTIONS
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.training.method import PruningTask

aten = torch.ops.aten

# Between a layer and its activation: norms, and the addition at the end of a block.
_BEFORE = (
    aten.batch_norm.default, aten.group_norm.default, aten.instance_norm.default,
    aten.add.Tensor,
)  # fmt: skip


def filters_of(
    model: nn.Module, layers: Sequence[LayerEntities], method: str
) -> dict[str, list[Channels]]:
    """The convolutions that write the entities of each layer.

    Raises ``ValueError``, with the method's title, for entities that are no channels of feature maps.
    """
    found = {}
    for layer in layers:
        made = writers(model, layer)
        other = [
            c.module for c in made if not isinstance(model.get_submodule(c.module), CONVOLUTIONS)
        ]
        if other or not made:
            raise ValueError(
                f"{method} judges feature maps, so it takes filters and channels of convolutions; the "
                f"entities of {layer.name!r} are {'neurons or heads' if other else 'no outputs of a layer'}: "
                'set spr.entities = "filters" (or "channels"), or take another method'
            )
        found[layer.name] = made
    return found


@torch.no_grad()
def map_scores(
    model: nn.Module,
    names: Iterable[str],
    batches: Iterable[Tensor],
    criterion: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The mean over images of a criterion of the feature maps, {layer name: (N,)}.

    The images (B, …) run through ``model`` in evaluation mode. ``criterion`` takes the maps of one
    layer, (B, N, …), and returns the sum over the images for each filter, (N,).

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    >>> alive = lambda maps: (maps >= 0).flatten(2).all(2).sum(0)
    >>> map_scores(net, ["0"], [torch.randn(2, 1, 4, 4)], alive)
    {'0': tensor([1., 1.])}
    """
    batches = iter(batches)
    first = next(batches)
    graph = trace(prepared(model), first[:2])
    wanted = {f"{name}.weight": name for name in names}
    places: dict[fx.Node, list[str]] = {}
    for node in graph.graph.nodes:
        weight = str(node.args[1].target) if node.target in WEIGHTED else ""
        if weight in wanted:
            places.setdefault(_activated(node), []).append(wanted[weight])
    sums: dict[str, Tensor] = {}

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            for name in places.get(n, ()):
                sums[name] = sums.get(name, 0) + criterion(result)
            return result

    watching, count = Watching(graph), 0
    for images in (first, *batches):
        watching.run(images)
        count += len(images)
    return {name: total / count for name, total in sums.items()}


def scores_of_maps(
    task: PruningTask,
    made: Mapping[str, Sequence[Channels]],
    images: int,
    score: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """`map_scores` over the first ``images`` training images, for each layer of `filters_of`."""
    names = {c.module for channels in made.values() for c in channels}
    seen = (x for x, _ in first_images(task.batches(task.seed), images))
    found = map_scores(task.model, names, seen, score)
    return {layer: mean_score(channels, found) for layer, channels in made.items()}


def _activated(node: fx.Node) -> fx.Node:
    """The first node behind a layer's norm that is not linear in its channel; else the last before it."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.target in _BEFORE:
            node = user
        elif (
            torch.Tag.pointwise in getattr(user.target, "tags", ())
            and len(user.all_input_nodes) == 1
        ):
            return user
        else:
            break
    return node

"""Which entities are zero: the paper's threshold, or exact zeros."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from spr_or.pruning.gradient_passes import rows_of
from spr_or.pruning.layer_entities import LayerEntities


@torch.no_grad()
def entity_masks(
    layers: Iterable[LayerEntities], zero_below: float = 1e-4, share: float = 0.99
) -> dict[str, Tensor]:
    """Masks of the entities of ``spr.layers``, of any kind, by the paper's rule.

    `spr_or.pruning.masks.masks_by_threshold` has the rule and the numbers; here an entity is what
    the regulariser takes for one, over all layers that it crosses. Returns layer name -> bool (N,),
    True = keep. `spr_or.pruning.groups.layer_masks` makes masks of modules from those of groups.

    >>> from torch import nn
    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 2))
    >>> for parameter in net.parameters():
    ...     _ = nn.init.zeros_(parameter[1])
    >>> entity_masks(layer_entities(net), zero_below=0.0, share=1.0)
    {'0': tensor([ True, False])}
    """
    return {
        layer.name: kept(rows_of(layer.gather()), layer.sizes, zero_below, share)
        for layer in layers
    }


def kept(rows: Tensor, sizes: Tensor | int, zero_below: float, share: float) -> Tensor:
    """True for rows (N, k) of which at most `share` is zero and not everything, bool (N,).

    ``sizes``: how many numbers of each row are weights; the others are zeros that pad it. Raises
    ``ValueError`` for numbers out of range.

    >>> kept(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 2, 0.0, 1.0)
    tensor([ True, False])
    """
    if zero_below < 0:
        raise ValueError(f"zero_below must be at least 0, not {zero_below}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], not {share}")
    zero = rows.abs() < zero_below if zero_below > 0 else rows == 0
    alive = (~zero).sum(1)
    count = torch.as_tensor(sizes, device=rows.device)
    return ((count - alive).double() / count <= share) & (alive > 0)

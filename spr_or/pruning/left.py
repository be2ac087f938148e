"""Numbers of the entities that are left in a network that has shrunk, among those of the original."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def whole_masks(masks: Mapping[str, Tensor], left: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks of what is left as masks of the original: ``left`` (True = still there) has the layers.

    >>> left = {"a": torch.tensor([True, False, True]), "b": torch.tensor([False])}
    >>> whole_masks({"a": torch.tensor([False, True])}, left)
    {'a': tensor([False, False,  True]), 'b': tensor([False])}
    """
    return whole_numbers(masks, left, False)


def whole_numbers(
    values: Mapping[str, Tensor], left: Mapping[str, Tensor], rest: float
) -> dict[str, Tensor]:
    """Numbers of the entities that are left, (n,), among those of the original, (N,): ``rest`` elsewhere."""
    whole = {}
    some = next(iter(values.values()))
    for name, keep in left.items():
        own = values.get(name, some[:0])
        filled = torch.full(keep.shape, rest, dtype=own.dtype, device=own.device)
        filled[keep.to(own.device)] = own
        whole[name] = filled
    return whole

"""Numbers for entities, as users give them: one for all, one for each layer, or one for each entity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spr_or.formulations.entities import importances
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.layer_entities import LayerEntities

PerEntity = float | Tensor | Mapping[str, float | Tensor]


def crossed(layer: LayerEntities) -> int:
    """L, how many layers the entities cross, each with a bound of its own."""
    return len(layer.bounded) if isinstance(layer, GroupEntities) else 1


def importance_of(u: str | PerEntity, layers: tuple[LayerEntities, ...]) -> dict[str, Tensor]:
    """u of each layer's entities, (N,): the words of `importances`, or numbers that may be zero."""
    if isinstance(u, str):
        u = importances(u, torch.cat([layer.sizes for layer in layers]))
    return per_layer(u, layers, "u")


def per_layer(
    values: PerEntity,
    layers: tuple[LayerEntities, ...],
    what: str,
    columns: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """A number for each entity, (N,) for each layer, from a number, a tensor over all or a mapping.

    With ``columns`` L > 1 of a layer it has L numbers, (N, L), which may be given as (1, L) too.
    """
    counts = [layer.count for layer in layers]
    if isinstance(values, Mapping):
        names = [layer.name for layer in layers]
        missing = [name for name in names if name not in values]
        unknown = [name for name in values if name not in names]
        if missing or unknown:
            raise ValueError(
                f"{what} must name exactly the regularised layers: "
                f"missing {missing or 'none'}, unknown {unknown or 'none'}"
            )
        given = [_as_tensor(values[name]) for name in names]
    else:
        whole = _as_tensor(values)
        if whole.dim() > 0 and whole.shape != (sum(counts),):
            raise ValueError(
                f"{what} of shape {tuple(whole.shape)} does not fit the {sum(counts)} entities"
            )
        given = list(whole.split(counts)) if whole.dim() > 0 else [whole] * len(layers)
    result = {}
    for layer, value, width in zip(layers, given, columns or [1] * len(layers), strict=True):
        shape = (layer.count,) if width == 1 else (layer.count, width)
        if width > 1 and value.shape == (layer.count,):
            value = value.unsqueeze(1)
        elif value.dim() > 0 and value.shape not in (shape, (1, width) if width > 1 else shape):
            also = f" in {width} layers" if width > 1 else ""
            raise ValueError(
                f"{what} of layer {layer.name!r} has shape {tuple(value.shape)}, "
                f"but the layer has {layer.count} entities{also}"
            )
        result[layer.name] = value.expand(shape)
    return result


def _as_tensor(value: float | Tensor) -> Tensor:
    """A tensor as it is; a number in float64, of which float32 would keep seven digits."""
    return value.detach() if torch.is_tensor(value) else torch.as_tensor(value, dtype=torch.float64)


def check_numbers(values: Tensor, what: str, layer: str, positive: bool) -> None:
    """Raise ``ValueError`` for values of that layer that are not finite, or not positive."""
    good = values.isfinite() & ((values > 0) if positive else (values >= 0))
    if not bool(good.all()):
        bad = values[~good][0].item()
        raise ValueError(
            f"{what} of layer {layer!r} holds {bad}: it must be finite and "
            f"{'positive' if positive else 'not negative'}"
        )

"""What pruning removed from a network, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spr_or.pruning.counts import Example, count_parameters, macs_by_layer
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.layer_rows import first_names, layer_rows
from spr_or.pruning.module_masks import branches_of

_HEAD = ("layer", "kept", "parameters", "MACs", "removed")


class PruningReport(dict[str, Any]):
    """Plain values under ``parameters``, ``macs``, ``removed``, ``layers`` and ``notes``; prints as a table.

    ``parameters`` and ``macs`` are (before, after), the latter of a pass over the whole example input, so
    of an image where it holds one. ``removed`` is {measure: share}, ``layers`` holds one dict for each
    layer with parameters: ``layer``, ``label``, ``kept`` and ``total`` (entities of a
    regularised layer, outputs of another, None for a layer that has neither), ``params_before``,
    ``params_after``, ``macs_before``, ``macs_after`` and ``removed_share`` (of its parameters).
    ``groups`` are the rows of `group_rows`.
    """

    def __str__(self) -> str:
        rows = [_HEAD, *(_cells(row) for row in self["layers"]), self._total()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        groups = [
            f"{row['kind']} of {row['group']}: {row['kept']} / {row['total']}, in {row['layers']} layers"
            for row in self["groups"]
        ]
        return "\n".join([*lines, *groups, *self["notes"]])

    def _total(self) -> tuple[str, ...]:
        share = self["removed"]["params"]
        return (
            "all", "", _change(*self["parameters"]), _change(*self["macs"]), f"{100 * share:.1f} %"
        )  # fmt: skip


def pruning_report(
    model: nn.Module,
    smaller: nn.Module,
    example: Example,
    masks: dict[str, Tensor],
    entities: Sequence[LayerEntities] = (),
) -> PruningReport:
    """Compare a network with its compact form; ``masks`` are those of its entities, True = keep.

    ``entities`` are `SPR.layers`, for the groups among them.

    >>> import torch
    >>> from spr_or.pruning.compaction.api import compact
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> masks, x = {"0": torch.tensor([True, False, True])}, torch.zeros(1, 2)
    >>> print(pruning_report(net, compact(net, masks, x), x, masks))
    layer            kept  parameters  MACs     removed
    0 (Linear 2→3)  2 / 3  9 → 6       6 → 4     33.3 %
    1 (Linear 3→1)  1 / 1  4 → 3       3 → 2     25.0 %
    all                    13 → 9      9 → 6     30.8 %
    """
    parameters = count_parameters(model), count_parameters(smaller)
    first = first_names(model)
    before, after = (
        _at_first_names(macs_by_layer(net, example), first) for net in (model, smaller)
    )
    macs = sum(before.values()), sum(after.values())
    layers = [
        {
            "layer": row["layer"],
            "label": row["label"],
            **_entities(row, masks, first),
            "params_before": row["params_before"],
            "params_after": row["params_after"],
            "macs_before": before.get(row["layer"], 0),
            "macs_after": after.get(row["layer"], 0),
            "removed_share": _share(row["params_before"], row["params_after"]),
        }
        for row in layer_rows(model, smaller)
    ]
    return PruningReport(
        parameters=parameters,
        macs=macs,
        removed={"params": _share(*parameters), "macs": _share(*macs)},
        layers=layers,
        groups=group_rows(masks, entities),
        notes=_notes(masks, branches_of(entities)),
    )


def group_rows(masks: dict[str, Tensor], entities: Sequence[LayerEntities]) -> list[dict[str, Any]]:
    """One row for each group of entities that cross layers.

    ``group`` is its name, ``layers`` how many it crosses (norms count), ``kept`` and ``total`` count
    entities; ``kind`` is channels, heads, neurons, blocks, or "entities" for groups of one's own.
    """
    return [
        {
            "group": layer.name,
            "kind": layer.kind if layer.kind != "own" else "entities",
            "layers": len(layer.bounded),
            "kept": int(masks[layer.name].sum()),
            "total": layer.count,
        }
        for layer in entities
        if isinstance(layer, GroupEntities)
    ]


def _at_first_names(counts: dict[str, int], first: dict[str, str]) -> dict[str, int]:
    """Counts by layer, those of a shared weight at the layer that has it first."""
    found: dict[str, int] = {}
    for name, count in counts.items():
        layer = first.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight")
        found[layer] = found.get(layer, 0) + count
    return found


def _entities(
    row: dict[str, Any], masks: dict[str, Tensor], first: dict[str, str]
) -> dict[str, int | None]:
    """How many are kept, by the mask of the layer or of another one that shares its weight."""
    shared = first.get(f"{row['layer']}.weight")
    others = [name.removesuffix(".weight") for name, one in first.items() if one == shared]
    for name in (row["layer"], *others):
        if name in masks:
            return {"kept": int(masks[name].sum()), "total": len(masks[name])}
    return {"kept": row["filters_after"], "total": row["filters_before"]}


def _notes(masks: dict[str, Tensor], branches: frozenset[str]) -> list[str]:
    if all(bool(keep.all()) for keep in masks.values()):
        return [
            "nothing was removed: no entity is zero. Train for more epochs, or with a larger lam"
        ]
    return [
        f"layer {name} died: none of its {len(keep)} entities is left"
        for name, keep in masks.items()
        if not bool(keep.any()) and name not in branches
    ]


def _share(before: int, after: int) -> float:
    return 1 - after / before if before else 0.0


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    kept = "" if row["total"] is None else f"{row['kept']} / {row['total']}"
    macs = _change(row["macs_before"], row["macs_after"]) if row["macs_before"] else ""
    parameters = _change(row["params_before"], row["params_after"])
    return row["label"], kept, parameters, macs, f"{100 * row['removed_share']:.1f} %"


def _change(before: int, after: int) -> str:
    return f"{before:,} → {after:,}"

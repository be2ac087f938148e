"""The exact cut for a network: what is known before training, and the masks at the end of the phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spr_or.pruning.budget import TOLERANCE, EntityNumbers, Limits, MaskChoice, Masks
from spr_or.pruning.counts import Example
from spr_or.pruning.exact_cut import GAP, SECONDS, Choice, cheapest
from spr_or.pruning.exact_cut_network import (
    NotByCounts,
    Sizes,
    count_program,
    network_sizes,
)
from spr_or.pruning.exact_cut_program import Counts, Program
from spr_or.pruning.latency import LatencyCounter
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.removed_share import Counter

_SLACK = TOLERANCE / 10  # points: the cut by rank, too, is content when it is that close


class CutTask(NamedTuple):
    """What does not depend on weights; ``budgets`` are {measure: percent to remove}."""

    limits: dict[str, Limits]  # of the layers, in the order of ``sizes.sizes``
    sizes: Sizes
    budgets: dict[str, float]
    latency: LatencyCounter | None

    def program(self, prices: EntityNumbers, empty: Sequence[str] = ()) -> Program:
        """The program with these prices of entities; layers named in ``empty`` may go whole."""
        counts = [
            _counts(limit, n, name in empty)
            for (name, limit), n in zip(self.limits.items(), self.sizes.sizes, strict=True)
        ]
        removed = {name: pct - _SLACK for name, pct in self.budgets.items()}
        values = [prices[name].double().cpu().numpy() for name in self.limits]
        return count_program(self.sizes, counts, values, removed, self.latency)


def cut_task(
    model: nn.Module,
    example: Example,
    layers: Sequence[LayerEntities],
    limits: Mapping[str, Limits],
    budgets: Mapping[str, float],
) -> CutTask:
    """Look at a network before it is trained; ``layers`` are those of `spr_or.pruning.regularizer.SPR`.

    budgets: {"params", "macs" or "latency": percent to be removed}, all of which the cut will meet.

    Raises ``ValueError`` where the budgets are out of reach (naming what can be reached), and where the
    network cannot be described by the counts of its layers, or only by tables that are too large.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> layers = layer_entities(net, {"0": "neurons"})
    >>> task = cut_task(net, torch.zeros(1, 4), layers, {"0": Limits()}, {"params": 50.0})
    >>> keep = torch.ones(8, dtype=torch.bool)
    >>> prices = {"0": torch.tensor([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])}
    >>> exact_masks(task, prices, {"0": keep}, prices).masks["0"].tolist()
    [True, True, True, False, False, False, False, False]
    """
    sizes = network_sizes(model, example, layers)
    _compare(sizes, model, example, layers)
    latency = LatencyCounter(model, example) if "latency" in budgets else None
    named = {layer.name: limits.get(layer.name, Limits()) for layer in layers}
    task = CutTask(named, sizes, dict(budgets), latency)
    equal = {layer.name: torch.ones(layer.count) for layer in layers}
    cheapest(task.program(equal), seconds=0)
    return task


def _compare(
    sizes: Sizes, model: nn.Module, example: Example, layers: Sequence[LayerEntities]
) -> None:
    """Raise `NotByCounts` unless compaction counts the same, with every second entity masked."""
    masks = {layer.name: torch.arange(layer.count) % 2 == 0 for layer in layers}
    left = Counter(model, example).sizes(module_masks(model, layers, masks))
    mine = sizes.left("params", [int(masks[layer.name].sum()) for layer in layers])
    if round(mine) != left.parameters:
        raise NotByCounts(
            f"compaction leaves {left.parameters} parameters where widths say {round(mine)}: layers share "
            'what they compute with. Use cut = "rank"'
        )


class ExactCut(NamedTuple):
    """Masks, what they remove of each measure in percent, how they were found, and what rank costs."""

    masks: Masks
    removed_pct: dict[str, float]
    choice: Choice
    rank_price: float | None


def exact_masks(
    task: CutTask,
    prices: EntityNumbers,
    gone: Masks,
    age: EntityNumbers,
    rank: MaskChoice | None = None,
    seconds: float = SECONDS,
    gap: float = GAP,
) -> ExactCut:
    """The masks whose entities have the smallest sum of ``prices``, all per layer, (N,) each.

    Of equal prices those in ``gone`` (False = zero already) go first, then by rising ``age``. ``rank`` is
    the cut by rank, where the search starts.
    """
    order = {name: _order(prices[name], gone[name], age[name]) for name in task.limits}
    empty = [name for name in task.limits if not bool(gone[name].any())]
    program = task.program(prices, empty)
    start = None if rank is None else _places(program, [rank.masks[n] for n in task.limits])
    choice = cheapest(program, start, seconds, gap)
    masks = {}
    for name, counts, place in zip(task.limits, program.counts, choice.places, strict=True):
        keep = torch.ones(len(order[name]), dtype=torch.bool)
        keep[order[name][: len(keep) - int(counts[place])]] = False
        masks[name] = keep.to(gone[name].device)
    removed = {n: 100 - used for n, used in program.used(choice.places).items()}
    by_rank = None
    if rank is not None:
        by_rank = float(sum(prices[n].cpu()[~keep.cpu()].sum() for n, keep in rank.masks.items()))
    return ExactCut(masks, removed, choice, by_rank)


def _counts(limit: Limits, count: int, empty: bool) -> Counts:
    """The numbers of entities that a layer may keep, rising."""
    least = 0 if limit.branch or empty else 1
    most = count if limit.most is None else limit.most
    kept = [n for n in limit.allowed(count) if n >= least]
    return np.array(sorted([n for n in kept if n <= most] or kept[-1:]))


def _places(program: Program, masks: Sequence[Tensor]) -> list[int] | None:
    """Positions of the numbers that masks keep; None if one is not allowed."""
    kept = [int(mask.sum()) for mask in masks]
    pairs = list(zip(program.counts, kept, strict=True))
    if any(n not in counts for counts, n in pairs):
        return None
    return [int(np.searchsorted(counts, n)) for counts, n in pairs]


def _order(prices: Tensor, gone: Tensor, age: Tensor) -> list[int]:
    rows = zip(prices.tolist(), gone.tolist(), age.tolist(), range(len(prices)), strict=True)
    return [row[3] for row in sorted(rows)]

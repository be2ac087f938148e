"""The exact cut for a network: what is known before training, and the masks at the end of the phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spr_or.pruning.budget import TOLERANCE, Count, EntityNumbers, Limits, MaskChoice, Masks
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
from spr_or.pruning.measures import MEASURES, counter_of, of_entities
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.removed_share import Counter

_SLACK = TOLERANCE / 10  # points: the cut by rank, too, is content when it is that close
_ROUNDING = 1e-6  # points
_PAIRS = 2  # of random masks


class CutTask(NamedTuple):
    """What does not depend on weights; ``budgets`` are {measure: percent to remove}.

    ``counts`` has for each of them what compaction removes with given masks, in percent.
    """

    limits: dict[str, Limits]  # of the layers, in the order of ``sizes.sizes``
    sizes: Sizes
    budgets: dict[str, float]
    latency: LatencyCounter | None
    counts: dict[str, Count]

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
    sizes = _compared_sizes(model, example, layers)
    counters = {name: counter_of(name, model, example) for name in budgets}
    counts = {name: of_entities(count, model, layers) for name, count in counters.items()}
    latency = counters.get("latency")
    assert latency is None or isinstance(latency, LatencyCounter)
    named = {layer.name: limits.get(layer.name, Limits()) for layer in layers}
    task = CutTask(named, sizes, dict(budgets), latency, counts)
    equal = {layer.name: torch.ones(layer.count) for layer in layers}
    cheapest(task.program(equal), seconds=0)
    return task


def widths_decide(model: nn.Module, example: Example, layers: Sequence[LayerEntities]) -> bool:
    """Whether the exact cut fits a network: what it saves depends on how many of each layer go only."""
    try:
        _compared_sizes(model, example, layers)
    except NotByCounts:
        return False
    return True


def _compared_sizes(
    model: nn.Module,
    example: Example,
    layers: Sequence[LayerEntities],
) -> Sizes:
    """The sizes by widths, or `NotByCounts` unless compaction counts the same with some entities masked:
    every second one, and random ones, a different share of each layer.

    Where two layers write one feature unnoticed, masks that agree with each other hide it.
    """
    sizes, counter = network_sizes(model, example, layers), Counter(model, example)
    generator = torch.Generator().manual_seed(0)
    unused = counter.total - counter.sizes({}).parameters
    if unused:
        raise NotByCounts(f'evaluation does not use {unused} of the parameters: use cut = "rank"')
    draws = [{layer.name: torch.arange(layer.count) % 2 == 0 for layer in layers}]
    for _ in range(_PAIRS):
        draws += _random_masks(layers, generator)
    for masks in draws:
        left = counter.sizes(module_masks(model, layers, masks))
        kept = [int(masks[layer.name].sum()) for layer in layers]
        whole = counter.total, counter.total_operations
        for measure, count, of in zip(("params", "macs"), left, whole, strict=True):
            mine = sizes.left(measure, kept) / sizes.left(measure, sizes.sizes) * of
            if abs(mine - count) > 0.5:
                raise NotByCounts(
                    f"compaction leaves {count} {MEASURES[measure]} where the widths of layers say "
                    f"{round(mine)}: what leaves depends on which entities go, not only on how many of "
                    'each layer. Use cut = "rank"'
                )
    return sizes


def _random_masks(layers: Sequence[LayerEntities], generator: torch.Generator) -> list[Masks]:
    """Two masks: one keeps a random share of each layer at random places, the other as many as it removes.

    So of any two layers each is once the wider one. At least one entity of a layer stays.
    """
    one, other = {}, {}
    for layer in layers:
        order = torch.randperm(layer.count, generator=generator)
        kept = int(torch.randint(1, layer.count + 1, (), generator=generator))
        one[layer.name] = order < kept
        other[layer.name] = order < max(1, layer.count - kept)
    return [one, other]


class ExactCut(NamedTuple):
    """Masks, what they remove of each measure in percent, how they were found, and what rank costs.

    ``removed_pct`` is counted by compaction. ``missed`` are the budgets that it falls short of: none, or
    widths do not describe the network after all.
    """

    masks: Masks
    removed_pct: dict[str, float]
    choice: Choice
    rank_price: float | None
    missed: dict[str, float]

    def warning(self) -> str | None:
        """Which budgets are missed, where any is."""
        if not self.missed:
            return None
        shares = (
            f"{pct:g} % of the {MEASURES[name]} ({self.removed_pct[name]:.1f} % removed)"
            for name, pct in self.missed.items()
        )
        return f'the exact cut misses {" and ".join(shares)}: cut = "rank" follows one budget'


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
    removed = {name: count(masks) for name, count in task.counts.items()}
    short = {n: pct for n, pct in task.budgets.items() if removed[n] < pct - _SLACK - _ROUNDING}
    by_rank = None
    if rank is not None:
        by_rank = float(sum(prices[n].cpu()[~keep.cpu()].sum() for n, keep in rank.masks.items()))
    return ExactCut(masks, removed, choice, by_rank, short)


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

r"""A budget instead of lambda: how much can go now, what lambda should be, and the final cut.

``target_removed_pct`` asks for a share of all parameters, as the report counts it: what compaction
takes away, with the biases, the BatchNorms and the weights that read what is gone. Three pure parts
serve it. `Counter` tells that share for any masks without building the smaller network;
`next_lam` is the controller that moves lambda between epochs; `choose` rounds the relaxed indicators
at the end of the phase so that the count meets the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spr_or.pruning.compaction.size import Skeleton
from spr_or.pruning.counts import count_parameters

Masks = dict[str, Tensor]
EntityNumbers = dict[str, Tensor]

TOLERANCE = 1.0  # points of all parameters: how far from the target a run may land
_RAMP = 0.75  # of the epochs after which the whole target is asked for
_HORIZON = 10  # lambda is weighed against where the run will be after a tenth of the phase
_GAIN = 12.0  # a share that will be one point off moves log lambda by 0.12 over one horizon
_RISE, _FALL = 2.0, 4.0  # at most these factors over one horizon: too much lambda cannot be undone
_RANGE = 100.0  # lambda stays within this factor of where it began
_TRIES = 40  # entities tried one by one where a whole prefix of the ranking does not fit


class Counter:
    """The share of all parameters, in percent, that leaves with given masks.

    Only the masks decide: a weight that happens to be zero in an entity that is kept counts as
    kept. So the share is that of ``compact(model, masks, example)`` for weights that are not zero,
    and costs one forward pass of ``example`` (B, C, …). Where a layer keeps nothing at all, what
    follows is constant, and whether the constant is zero depends on shifts that training still
    moves: there the count can be off by the few parameters that carry it.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> Counter(model, torch.zeros(2, 4))({"0": torch.tensor([True, False, True])})
    30.434782608695652
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self._skeleton = Skeleton(model, example)
        self.total = count_parameters(model)

    def __call__(self, masks: Masks) -> float:
        """The percentage removed with ``masks`` (True = keep)."""
        return 100 * (self.total - self._skeleton.left(masks).parameters) / self.total


def scheduled_pct(target: float, epoch: int, epochs: int) -> float:
    r"""What should be removable after ``epoch`` (from 0) of ``epochs``, in percent.

    target · (1 − (1 − t)²) with t = (epoch + 1) / (¾ epochs), and the target itself from t = 1 on:
    fast while much is superfluous, with a quarter of the phase left to settle. (A polynomial
    schedule, as Zhu and Gupta, *To prune, or not to prune*, 2017, use for magnitudes.)

    >>> [round(scheduled_pct(60, e, 8), 1) for e in (0, 2, 5, 7)]
    [18.3, 45.0, 60.0, 60.0]
    """
    t = min(1.0, (epoch + 1) / (_RAMP * epochs))
    return target * (1 - (1 - t) ** 2)


def next_lam(
    lam: float, start: float, shares: Sequence[float], target: float, epochs: int
) -> float:
    r"""Lambda of the next epoch; ``shares`` are the removable percentages after each epoch so far.

    With r the last share, r' that of h epochs before (h = epochs / 10), the run at its present pace
    will be at r + (r − r') in h epochs, where the schedule wants ρ. Then

    .. math::  \log\lambda \leftarrow \log\lambda +
               \frac1h \operatorname{clip}\Bigl(12\,\frac{\rho - 2r + r'}{100},\ -\log 4,\ \log 2\Bigr)

    Looking ahead is what keeps it stable: entities answer to lambda only after several epochs, and
    once zero they hardly return. For the same reason λ falls faster than it rises. It stays within a
    factor of 100 of ``start``. Time is counted in h, so that short and long phases behave alike.

    >>> round(next_lam(10.0, 10.0, [0.0, 0.0], target=50.0, epochs=20), 2)  # nothing yet: rise
    14.14
    >>> round(next_lam(10.0, 10.0, [20.0, 60.0], target=50.0, epochs=10), 2)  # too fast: fall
    2.5
    """
    horizon = max(1, round(epochs / _HORIZON))
    before = [0.0, *shares]
    span = min(horizon, len(shares))
    pace = (before[-1] - before[-1 - span]) * horizon / span
    ahead = min(len(shares) - 1 + horizon, epochs - 1)
    error = (scheduled_pct(target, ahead, epochs) - before[-1] - pace) / 100
    change = min(max(_GAIN * error, -math.log(_FALL)), math.log(_RISE)) / horizon
    return min(max(lam * math.exp(change), start / _RANGE), start * _RANGE)


class MaskChoice(NamedTuple):
    """Masks that meet a target, the percentage they remove, and the cut that led there.

    ``cut`` entities go beyond what the phase had made zero; where negative, so many stay though
    it had. ``threshold`` is the largest indicator among the entities that go.
    """

    masks: Masks
    removed_pct: float
    cut: int
    threshold: float


def choose(
    count: Callable[[Masks], float],
    gone: Masks,
    indicators: EntityNumbers,
    age: EntityNumbers,
    target: float,
) -> MaskChoice:
    """Round the indicators so that ``count`` gives ``target`` percent, as nearly as entities allow.

    Entities go in the order: those in ``gone`` (False = zero already) first, then by rising
    indicator y~, at equal indicators by rising ``age``. The longest prefix of this order that stays
    within the target goes, and after it single entities while they fit. The last entity of a layer
    goes only if it is zero already. All arguments are per layer, (N,) each.

    >>> indicators = {"a": torch.tensor([0.3, 0.1, 0.9, 0.2])}
    >>> keep = {"a": torch.ones(4, dtype=torch.bool)}
    >>> removed = lambda masks: 25.0 * int((~masks["a"]).sum())
    >>> choose(removed, keep, indicators, indicators, target=55.0).masks["a"].tolist()
    [True, False, True, False]
    """
    order = _ranking(gone, indicators, age)

    def masks_without(places: Sequence[tuple[str, int]]) -> Masks:
        masks = {name: torch.ones_like(keep) for name, keep in gone.items()}
        for name, index in places:
            masks[name][index] = False
        return masks

    def removed(places: Sequence[tuple[str, int]]) -> float:
        return count(masks_without(places))

    low, high = 0, len(order)  # the longest prefix within the target lies in [low, high]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if removed(order[:middle]) <= target else (low, middle - 1)
    best = order[:low]
    nearest = removed(best)
    for place in order[low : low + _TRIES]:
        share = removed([*best, place])
        if abs(share - target) < abs(nearest - target):
            best, nearest = [*best, place], share
        if nearest > target - TOLERANCE / 10:
            break
    zero = sum(int((~keep).sum()) for keep in gone.values())
    threshold = max((float(indicators[name][index]) for name, index in best), default=0.0)
    return MaskChoice(masks_without(best), nearest, len(best) - zero, threshold)


def reachable_pct(count: Callable[[Masks], float], sizes: dict[str, int]) -> float:
    """The percentage removed when one entity of each layer is left; ``sizes`` are those of layers.

    >>> reachable_pct(lambda masks: 10.0 * int((~masks["a"]).sum()), {"a": 4})
    30.0
    """
    return count({name: torch.arange(size) < 1 for name, size in sizes.items()})


def _ranking(gone: Masks, indicators: EntityNumbers, age: EntityNumbers) -> list[tuple[str, int]]:
    """(layer, index) of every entity that may go, in the order of going."""
    keys = []
    for name, keep in gone.items():
        rows = list(zip(keep.tolist(), indicators[name].tolist(), age[name].tolist(), strict=True))
        last = max(range(len(rows)), key=rows.__getitem__)
        keys += [
            (row, name, index)
            for index, row in enumerate(rows)
            if index != last or not row[0]  # a layer keeps its last entity unless that is zero
        ]
    return [(name, index) for _, name, index in sorted(keys, key=lambda key: key[0])]

r"""A budget instead of lambda: how much can go now, what lambda should be, and the final cut.

A target asks for a share to be removed, in percent: of the parameters, of the multiplications, of the
time (`spr_or.pruning.removed_share`, `spr_or.pruning.latency`). What is here needs only a function
``count(masks) -> percent removed``. `next_lam` is the controller that moves lambda between epochs;
`choose` takes entities by rank at the end of the phase so that the count meets the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor

Masks = dict[str, Tensor]
EntityNumbers = dict[str, Tensor]
Count = Callable[[Masks], float]
Amount = int | float  # a number of entities, or a share of those of a layer

TOLERANCE = 1.0  # points: how far from the target a run may land
_RAMP = 0.75  # of the epochs after which the whole target is asked for
HORIZON = 10  # lambda is weighed against where the run will be after a tenth of the phase
_GAIN = 12.0  # a share that will be one point off moves log lambda by 0.12 over one horizon
_RISE, _FALL = 2.0, 4.0  # at most these factors over one horizon: too much lambda cannot be undone
_RISE_FROM_NOTHING = 3.0  # as long as hardly anything could go
_RANGE = 10_000.0  # lambda stays within this factor of where it began
READINGS = 20  # of what could go: a phase of fewer epochs takes several in an epoch
_LEAST_STEPS = 150  # between two readings: entities answer to lambda only after many steps
_TRIES = 40  # steps tried one by one where a whole prefix of the ranking does not fit


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


def ramp_epochs(epochs: int) -> int:
    """After how many epochs `scheduled_pct` wants all of the target.

    >>> ramp_epochs(8), ramp_epochs(1)
    (6, 1)
    """
    return math.ceil(_RAMP * epochs)


def reading_steps(epochs: int, steps: int) -> list[int]:
    """After which of its ``steps`` lambda is moved within an epoch, of a phase of ``epochs``.

    A phase of twenty epochs and more moves it only between epochs. A shorter one does so oftener, with
    at least 150 steps from one time to the next.

    >>> reading_steps(5, 703), reading_steps(5, 23)
    ([175, 351, 527], [])
    """
    readings = max(1, min(round(READINGS / max(1, epochs)), steps // _LEAST_STEPS))
    return [steps * k // readings for k in range(1, readings)]


def horizon_of(epochs: int, readings: int = 1) -> int:
    """How many readings a tenth of the phase has, and at least an epoch.

    >>> horizon_of(20), horizon_of(5, readings=4)
    (2, 4)
    """
    return readings * max(1, round(epochs / HORIZON))


def next_lam(
    lam: float,
    start: float,
    shares: Sequence[float],
    target: float,
    epochs: int,
    readings: int = 1,
) -> float:
    r"""Lambda from now on; ``shares`` are the removable percentages so far, ``readings`` an epoch.

    With r the last share, r' that of h readings before (those of a tenth of the phase, and at least
    of an epoch), the run at its present pace will be at r + (r − r') in h readings, where the schedule
    wants ρ. Then

    .. math::  \log\lambda \leftarrow \log\lambda +
               \frac1h \operatorname{clip}\Bigl(12\,\frac{\rho - 2r + r'}{100},\ -\log 4,\ \log 2\Bigr)

    Looking ahead is what keeps it stable: entities answer to lambda only after several epochs, and
    once zero they hardly return. For the same reason λ falls faster than it rises, but as long as less than
    a hundredth can go it may rise by a factor of 3. It stays within a factor of 10,000 of ``start``. Time
    is counted in h, so that short and long phases behave alike, however often it is read.

    >>> round(next_lam(10.0, 10.0, [0.0, 0.0], target=50.0, epochs=20), 2)  # nothing yet: rise
    17.32
    >>> round(next_lam(10.0, 10.0, [20.0, 60.0], target=50.0, epochs=10), 2)  # too fast: fall
    2.5
    >>> round(next_lam(10.0, 10.0, [0.0, 0.0], target=50.0, epochs=5, readings=4), 2)  # 3 ** 0.25
    13.16
    """
    horizon = horizon_of(epochs, readings)
    epochs *= readings
    before = [0.0, *shares]
    span = min(horizon, len(shares))
    pace = (before[-1] - before[-1 - span]) * horizon / span
    ahead = min(len(shares) - 1 + horizon, epochs - 1)
    error = (scheduled_pct(target, ahead, epochs) - before[-1] - pace) / 100
    rise = _RISE if max(shares) >= TOLERANCE else _RISE_FROM_NOTHING
    change = min(max(_GAIN * error, -math.log(_FALL)), math.log(rise)) / horizon
    return min(max(lam * math.exp(change), start / _RANGE), start * _RANGE)


class Limits(NamedTuple):
    """How many entities of a layer may stay: ``least`` to ``most``, in multiples of ``step``.

    A layer that loses nothing fits any ``step``. ``least = 0`` lets a layer go that the phase has
    made zero altogether; the cut itself takes the last entity only of a residual ``branch``.
    """

    least: int = 1
    most: int | None = None
    step: int = 1
    branch: bool = False

    def allowed(self, count: int) -> list[int]:
        """The numbers that may stay of ``count`` entities, falling from ``count`` to the fewest.

        >>> Limits(least=5, step=8).allowed(20)
        [20, 16, 8]
        """
        multiples = range((count - 1) // self.step * self.step, -1, -self.step)
        return [count, *(kept for kept in multiples if kept >= self.least)]


def layer_limits(
    sizes: Mapping[str, int],
    min_keep: Amount | Mapping[str, Amount] = 1,
    max_keep: Amount | Mapping[str, Amount] = 1.0,
    round_to: int = 1,
    branches: Collection[str] = (),
) -> dict[str, Limits]:
    """The `Limits` of each layer; ``sizes`` are {layer name: number of entities}.

    ``min_keep`` and ``max_keep``: an int is a number of entities, a float in [0, 1] a share of the
    layer's; a mapping gives them by name or glob pattern, the first that matches, and other layers
    have the default. ``round_to``: the number that stays is a multiple of it. ``branches`` are the
    layers that are one residual branch: each stays or goes, whatever the limits.

    Raises ``ValueError`` for numbers out of range, patterns that match no layer, and limits that
    contradict each other.

    >>> layer_limits({"conv1": 16, "fc": 10}, min_keep={"conv*": 0.25}, round_to=4)["conv1"]
    Limits(least=4, most=16, step=4, branch=False)
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to must be a whole number of at least 1, got {round_to!r}")
    least = _amounts(sizes, min_keep, 1, "min_keep", math.ceil)
    most = _amounts(sizes, max_keep, 1.0, "max_keep", math.floor)
    for name, count in sizes.items():
        if most[name] < min(least[name], count):
            raise ValueError(
                f"layer {name!r} shall keep at least {least[name]} and at most {most[name]} of its "
                f"{count} entities: change min_keep or max_keep"
            )
    return {
        name: Limits(0, branch=True)
        if name in branches
        else Limits(least[name], most[name], round_to)
        for name in sizes
    }


def _amounts(
    sizes: Mapping[str, int],
    amounts: Amount | Mapping[str, Amount],
    default: Amount,
    what: str,
    rounded: Callable[[float], int],
) -> dict[str, int]:
    """Numbers of entities by layer."""
    patterns = amounts if isinstance(amounts, Mapping) else {"*": amounts}
    for pattern, amount in patterns.items():
        share = isinstance(amount, float)
        if isinstance(amount, bool) or not (0 <= amount <= 1 if share else amount >= 0):
            raise ValueError(
                f"{what} of {pattern!r} must be a number of entities (an int) or a share of them (a "
                f"float from 0 to 1), got {amount!r}"
            )
        if not any(fnmatchcase(name, pattern) for name in sizes):
            raise ValueError(
                f"{what} names {pattern!r}, which fits no regularised layer: {', '.join(sizes)}"
            )
    chosen = {
        name: next((a for p, a in patterns.items() if fnmatchcase(name, p)), default)
        for name in sizes
    }
    return {
        # 0.3 * 10 lies above 3 by rounding.
        name: rounded(round(amount * sizes[name], 9)) if isinstance(amount, float) else amount
        for name, amount in chosen.items()
    }


class MaskChoice(NamedTuple):
    """Masks that meet a target, the percentage they remove, and the cut that led there.

    ``cut`` entities go beyond what the phase had made zero; where negative, so many stay though
    it had. ``threshold`` is the largest rank among the entities that go.
    ``exact`` tells of an exact cut (`spr_or.pruning.exact_cut_masks.ExactCut`).
    """

    masks: Masks
    removed_pct: float
    cut: int
    threshold: float
    exact: Any = None


class _Going(NamedTuple):
    """Entities of one layer that go together; ``key`` orders them among those of all layers."""

    key: tuple[bool, bool, float, float]  # (not forced, not zero, rank, age) of the last one
    layer: str
    entities: tuple[int, ...]


def choose(
    count: Count,
    gone: Masks,
    rank: EntityNumbers,
    age: EntityNumbers,
    target: float,
    limits: Mapping[str, Limits] | None = None,
    *,
    give_back: bool = False,
) -> MaskChoice:
    """Choose what goes so that ``count`` gives ``target`` percent, as nearly as entities allow.

    Within a layer entities go in the order: those in ``gone`` (False = zero already) first, then by
    rising ``rank``, at equal ranks by rising ``age``; with ``limits`` so many at once that an
    allowed number stays. Of all layers those go first whose largest rank is smallest. The
    longest prefix of this order that stays within the target goes, and after it single steps while
    they fit. With ``give_back`` one that passes the target by more than a point goes only where no smaller
    ones come as near, and single steps of other layers come back after it, at the price of the order.
    What ``limits`` force goes in any case. All
    arguments are per layer, (N,) each; ``limits`` default to one entity that stays.

    >>> rank = {"a": torch.tensor([0.3, 0.1, 0.9, 0.2])}
    >>> keep = {"a": torch.ones(4, dtype=torch.bool)}
    >>> removed = lambda masks: 25.0 * int((~masks["a"]).sum())
    >>> choose(removed, keep, rank, rank, target=55.0).masks["a"].tolist()
    [True, False, True, False]
    """
    limits = {name: (limits or {}).get(name, Limits()) for name in gone}
    order = _ranking(gone, rank, age, limits)

    def masks_without(steps: Sequence[_Going]) -> Masks:
        masks = {name: torch.ones_like(keep) for name, keep in gone.items()}
        for step in steps:
            masks[step.layer][list(step.entities)] = False
        return masks

    def removed(steps: Sequence[_Going]) -> float:
        return count(masks_without(steps))

    # The longest prefix within the target lies in [low, high]. A count is a pass over the network, so
    # the search guesses by a straight line, every second time it halves, and is content when close.
    low, high = sum(not step.key[0] for step in order), len(order)
    nearest, beyond, halve = removed(order[:low]), 100.0, False
    while low < high and nearest <= target - TOLERANCE / 10:
        part = 0.5 if halve else (target - nearest) / (beyond - nearest)
        middle = low + min(max(1, round(part * (high - low))), high - low)
        share = removed(order[:middle])
        if share <= target:
            low, nearest = middle, share
        else:
            high, beyond = middle - 1, share
        halve = not halve
    best = order[:low]
    # The nearest cut that passes the target by more than a point; it is not taken at once.
    passing: tuple[float, list[_Going]] | None = None
    stays: set[str] = set()  # layers of which a step was left out: what follows it rests on it
    for step in order[low : low + _TRIES]:
        if nearest > target - TOLERANCE / 10:
            break
        if step.layer in stays:
            continue
        share = removed([*best, step])
        if abs(share - target) < abs(nearest - target):
            already_zero = not step.key[1]
            if not give_back or already_zero or share <= target + TOLERANCE:
                best, nearest = [*best, step], share
                continue
            if passing is None or share < passing[0]:
                passing = share, [*best, step]
        if limits[step.layer].step > 1:
            stays.add(step.layer)
    if passing is not None and passing[0] - target < abs(nearest - target):
        nearest, best = passing
    if give_back and best and nearest > target + TOLERANCE:
        best, nearest = _given_back(best, nearest, target, removed)
    zero = sum(int((~keep).sum()) for keep in gone.values())
    places = [(step.layer, index) for step in best for index in step.entities]
    threshold = max((float(rank[name][index]) for name, index in places), default=0.0)
    return MaskChoice(masks_without(best), nearest, len(places) - zero, threshold)


def _given_back(
    taken: list[_Going], share: float, target: float, removed: Callable[[Sequence[_Going]], float]
) -> tuple[list[_Going], float]:
    """Steps and their share, nearer to a target that the last large step has passed: single steps of other
    layers come back, the last to go first, where that helps."""
    kept: set[str] = {taken[-1].layer}  # layers of which a later step stays gone
    for step in taken[-2 : -2 - _TRIES : -1]:
        forced = not step.key[0]
        if forced or share <= target + TOLERANCE:
            break
        if step.layer in kept:
            continue
        rest = [other for other in taken if other is not step]
        less = removed(rest)
        if abs(less - target) < abs(share - target):
            taken, share = rest, less
        else:
            kept.add(step.layer)
    return taken, share


def reachable_pct(
    count: Count, sizes: Mapping[str, int], limits: Mapping[str, Limits] | None = None
) -> float:
    """The percentage removed when each layer keeps as little as its limits allow, at least one entity.

    ``sizes`` are those of the layers.

    >>> reachable_pct(lambda masks: 10.0 * int((~masks["a"]).sum()), {"a": 4})
    30.0
    """
    given = {name: (limits or {}).get(name, Limits()) for name in sizes}
    fewest = {
        name: max(0 if given[name].branch else 1, given[name].allowed(size)[-1])
        for name, size in sizes.items()
    }
    return count({name: torch.arange(size) < fewest[name] for name, size in sizes.items()})


def _ranking(
    gone: Masks, rank: EntityNumbers, age: EntityNumbers, limits: Mapping[str, Limits]
) -> list[_Going]:
    """The steps in which entities may go, in the order of going."""
    steps = []
    for name, keep in gone.items():
        rows = sorted(
            zip(
                keep.tolist(), rank[name].tolist(), age[name].tolist(), range(len(keep)),
                strict=True,
            )
        )  # fmt: skip
        most = limits[name].most
        allowed = limits[name].allowed(len(rows))
        if rows[-1][0] and allowed[-1] == 0 and not limits[name].branch:
            allowed.pop()  # the last entity of a layer goes only if it is zero
        for before, after in zip(allowed, allowed[1:], strict=False):
            going = rows[len(rows) - before : len(rows) - after]
            free = most is None or before <= most
            steps.append(_Going((free, *going[-1][:3]), name, tuple(row[3] for row in going)))
    return sorted(steps, key=lambda step: step.key)

"""What a sweep shows at its end: a table of means over seeds, and the Pareto figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spr_or.sweeps.run_table import TableRow
from spr_or.utils import palette, pareto
from spr_or.utils.terminal import table

_COLOURS = (palette.BLUE, palette.ORANGE, palette.GREEN, palette.RED, palette.PURPLE, palette.GREY)
_MARKERS = "os^Dv"


class Mean(NamedTuple):
    """The runs of one setting over their seeds."""

    setting: tuple[str, ...]
    runs: int
    accuracy: float
    deviation: float
    removed: float
    removed_deviation: float
    dense: float


def means(keys: Sequence[str], rows: Sequence[TableRow]) -> list[Mean]:
    """Mean and standard deviation over the seeds of each setting, in the order of the rows."""
    groups: dict[tuple[str, ...], list[TableRow]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    return [
        Mean(
            setting,
            len(group),
            *mean_and_deviation([row["accuracy"] for row in group]),
            *mean_and_deviation([row["removed_params_pct"] for row in group]),
            statistics.fmean(row["dense_accuracy"] for row in group),
        )
        for setting, group in groups.items()
    ]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def rich_table(title: str, keys: Sequence[str], found: Sequence[Mean]) -> Any:
    """The means as a table for the terminal; a star marks the settings that no other beats.

    Each accuracy and share is a mean over seeds, with the standard deviation where there are several.
    """
    best = set(pareto.front([(one.removed, one.accuracy) for one in found]))
    rows = [
        (
            *one.setting,
            str(one.runs),
            f"{one.dense:.2f}",
            _spread(one.accuracy, one.deviation, one.runs),
            _spread(one.removed, one.removed_deviation, one.runs),
            "*" if i in best else "",
        )
        for i, one in enumerate(found)
    ]
    columns = (*keys, "seeds", "dense %", "accuracy %", "removed %", "front")
    return table(columns, rows, title=title)


def _spread(value: float, deviation: float, runs: int) -> str:
    return f"{value:.2f} ± {deviation:.2f}" if runs > 1 else f"{value:.2f}"


def figure(title: str, keys: Sequence[str], rows: Sequence[TableRow], path: Path) -> bool:
    """Accuracy over removed parameters: one colour for each value of the last key, if few."""
    found = means(keys, rows)
    kinds = list(dict.fromkeys(one.setting[-1] for one in found))
    split = len(keys) > 1 and len(kinds) <= len(_MARKERS)
    groups = [[m for m in found if m.setting[-1] == kind] for kind in kinds] if split else [found]
    series = [
        pareto.Series(
            f"{keys[-1]} = {kinds[i]}" if split else "runs",
            [m.removed for m in group],
            [m.accuracy for m in group],
            _COLOURS[i],
            _MARKERS[i],
            [m.deviation for m in group],
            ["=".join((keys[0].rpartition(".")[2], m.setting[0])) for m in group],
        )
        for i, group in enumerate(groups)
    ]
    best = pareto.Series(
        "beaten by no other",
        [m.removed for m in found],
        [m.accuracy for m in found],
        palette.GREY,
        marker="",
        joined=True,
    )
    dense = statistics.fmean(one.dense for one in found) if found else 0.0
    return pareto.draw(
        [*series, best],
        path,
        xlabel="parameters removed (% of all parameters)",
        title=title,
        dense=[("dense network", dense, "black")],
    )

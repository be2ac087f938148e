"""The figure of all layers. Matplotlib is imported here; import this module where it is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from spr_or.layer_study.study import Study
from spr_or.utils.files import write_aside
from spr_or.utils.palette import BLUE, GREEN, GREY, LIGHT_GREY, ORANGE, RED
from spr_or.utils.printable import picture_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FixedLocator, NullLocator  # noqa: E402

_WAYS = (("spr", "SPR mask", RED, "o"), ("magnitude", "magnitude, same size", ORANGE, "^"))
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw(studies: list[Study], path: Path) -> None:
    """Above, how far each choice is above the proven bound; below, what share of the output it loses.

    Both scales are linear up to 1 % and logarithmic beyond, so that one large value leaves the
    others visible.
    """
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(max(8.0, 0.48 * len(studies) + 2), 7), sharex=True, layout="constrained"
    )
    _above_bound(top, studies)
    _lost(bottom, studies)
    names = [
        f"{picture_text(s.layer)}  {len(s.choices['best'].channels)}/{s.inputs}"
        + ("" if s.from_mask else " *")
        for s in studies
    ]
    bottom.set_xticks(range(len(studies)), names, rotation=90, fontsize=8)
    bottom.set_xlabel(
        "layer, channels of the best choice found / of the layer (*: SPR keeps all or none)"
    )
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color=GREY, alpha=0.25)
        axis.set_axisbelow(True)
        axis.legend(frameon=False, ncols=2, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    write_aside(path, lambda aside: figure.savefig(aside, dpi=130))
    plt.close(figure)


def gaps(studies: Sequence[Study]) -> list[float]:
    """The best objective found above the proven bound, in percent; nan where nothing is proven."""
    return [100 * (s.objective / s.bound - 1) if s.bound > 0 else math.nan for s in studies]


def _above_bound(axis: Any, studies: Sequence[Study]) -> None:
    places = range(len(studies))
    left = gaps(studies)
    axis.bar(places, left, width=0.75, color=LIGHT_GREY, label="not decided: best found to bound")
    for place, gap in zip(places, left, strict=True):
        if math.isnan(gap):
            axis.annotate("no bound", (place, 0), (0, 3), textcoords="offset points", ha="center",
                          fontsize=7, rotation=90)  # fmt: skip
    values = [gap for gap in left if not math.isnan(gap)]
    for way, label, colour, marker in _WAYS:
        have = [i for i in places if way in studies[i].choices]
        above = [studies[i].choices[way].above_bound for i in have]
        shown = [math.nan if a is None else 100 * a for a in above]
        axis.plot(have, shown, marker, color=colour, label=label, markersize=6)
        values += [value for value in shown if not math.isnan(value)]
    axis.set_ylabel("objective above\nthe proven bound (%)")
    _scale(axis, values)


def _lost(axis: Any, studies: Sequence[Study]) -> None:
    places = range(len(studies))
    values: list[float] = []
    for way, label, colour, marker in (*_WAYS, ("best", "best found", BLUE, "D")):
        have = [i for i in places if way in studies[i].choices]
        lost = [100 * studies[i].choices[way].lost for i in have]
        axis.plot(have, lost, marker, color=colour, label=label, markersize=6 - (way == "best"))
        values += lost
    floors = [(i, 100 * s.least_lost) for i, s in enumerate(studies) if s.least_lost is not None]
    if floors:
        axis.plot(
            *zip(*floors, strict=True), "_", color=GREEN, markersize=14, markeredgewidth=2,
            label="no choice of SPR's size loses less",
        )  # fmt: skip
    axis.set_ylabel("share of the variance\nof the output lost (%)")
    _scale(axis, values)


def _scale(axis: Any, values: Sequence[float]) -> None:
    """Percent, linear up to 1 and logarithmic beyond, with a little room above the largest."""
    largest = max(values, default=1.0)
    axis.set_yscale("symlog", linthresh=1.0)
    axis.set_ylim(0, max(1.0, 1.3 * largest))
    axis.yaxis.set_major_locator(FixedLocator(_TICKS))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")

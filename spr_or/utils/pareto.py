"""Accuracy against what was removed: the points that no other point beats, and their picture.

Matplotlib is imported where a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spr_or.utils.files import write_aside
from spr_or.utils.printable import picture_text


@dataclass(frozen=True)
class Series:
    """Points of one kind: shares removed and accuracies, both in percent.

    ``spread`` are standard deviations of the accuracies (0: a single run), ``names`` stand beside
    their points, and ``joined`` draws a line along their front (with an empty marker, that alone).
    ``dense`` are the accuracies of the networks before anything was removed, one for each point.
    """

    label: str
    removed: Sequence[float]
    accuracy: Sequence[float]
    colour: str
    marker: str = "o"
    spread: Sequence[float] | None = None
    names: Sequence[str] | None = None
    joined: bool = False
    dense: Sequence[float] | None = None


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats, by rising first coordinate.

    A point is beaten by one at least as large in both coordinates and larger in one; of equal
    points the first stays.

    >>> front([(10.0, 90.0), (20.0, 95.0), (30.0, 80.0), (25.0, 80.0)])
    [1, 2]
    """
    best, kept = float("-inf"), []
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept[::-1]


def draw(
    series: Sequence[Series],
    path: Path,
    *,
    xlabel: str,
    title: str = "",
    dense: Sequence[tuple[str, float, str]] = (),
) -> bool:
    """A scatter plot of the series; ``dense`` are horizontal lines (label, accuracy, colour).

    Returns False, and draws nothing, without a point.
    """
    if not any(len(s.removed) for s in series):
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for label, accuracy, colour in dense:
        axis.axhline(accuracy, color=colour, linewidth=1, linestyle="--", label=picture_text(label))
    for one in series:
        if len(one.removed):
            _points(axis, one)
    if any(one.dense for one in series):
        axis.plot([], [], "_", color="0.3", markersize=10, label="dense network of the same runs")
    axis.set_xlabel(xlabel)
    axis.set_ylabel("accuracy (%)")
    figure.suptitle(picture_text(title), fontsize=11, x=0.01, ha="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(0.1, 0.1)
    axis.legend(
        frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0.2
    )
    write_aside(path, lambda aside: figure.savefig(aside, dpi=130))
    plt.close(figure)
    return True


def _points(axis: Any, one: Series) -> None:
    from matplotlib import patheffects

    if one.spread is not None and any(one.spread):
        axis.errorbar(
            one.removed, one.accuracy, yerr=one.spread, fmt="none", ecolor=one.colour,
            elinewidth=1, capsize=2, alpha=0.6,
        )  # fmt: skip
    if one.joined:
        best = front(list(zip(one.removed, one.accuracy, strict=True)))
        axis.plot(
            [one.removed[i] for i in best], [one.accuracy[i] for i in best],
            color=one.colour, linewidth=1, label=None if one.marker else picture_text(one.label), zorder=1.5,
        )  # fmt: skip
    if one.dense:
        axis.vlines(
            one.removed, one.accuracy, one.dense, color=one.colour, linewidth=1, linestyle=":",
            zorder=1,
        )  # fmt: skip
        axis.plot(one.removed, one.dense, "_", color=one.colour, markersize=10, zorder=2)
    if one.marker:
        hollow = one.marker != "o"  # told apart from the circles in grey print too
        axis.plot(
            one.removed, one.accuracy, one.marker, color=one.colour, label=picture_text(one.label),
            markerfacecolor="white" if hollow else one.colour, markersize=6, linestyle="none",
            zorder=3,
        )  # fmt: skip
    for x, y, name in zip(one.removed, one.accuracy, one.names or (), strict=False):
        text = axis.annotate(
            picture_text(name),
            (x, y),
            textcoords="offset points",
            xytext=(6, -9 if one.marker == "^" else 5),
            fontsize=7.5,
            color="0.2",
            zorder=2,
        )
        text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])

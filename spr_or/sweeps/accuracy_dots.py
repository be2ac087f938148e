"""A comparison of methods as a picture: a panel for each budget, a row for each method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spr_or.utils.files import write_aside
from spr_or.utils.palette import BLUE, GREY
from spr_or.utils.printable import picture_text

if TYPE_CHECKING:
    from spr_or.sweeps.comparison import Line

_ROW = 0.21  # inches


def accuracy_dots(title: str, lines: Sequence[Line], path: Path) -> bool:
    """Mean accuracy of each method with its deviation, and every seed; False without a finished run.

    Methods stand in the order of their mean over the budgets that all of them have finished, the best on
    top; those that lack one come last. SPR is blue. The dashed line is the mean of the dense networks.
    """
    done = [line for line in lines if line.accuracy]
    if not done:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    methods, budgets = ranked(done), sorted({line.budget for line in done})
    height = 1.2 + _ROW * len(methods)
    figure, axes = plt.subplots(
        1,
        len(budgets),
        figsize=(2.2 + 2.6 * len(budgets), height),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, budget in zip(axes[0], budgets, strict=True):
        _panel(axis, [line for line in done if line.budget == budget], methods)
        axis.set_title(f"budget {budget:g} %", fontsize=9, loc="left")
    axes[0][0].set_yticks(range(len(methods)), [picture_text(name) for name in methods], fontsize=8)
    axes[0][0].set_ylim(len(methods) - 0.5, -0.5)
    figure.supxlabel("accuracy (%)", fontsize=9)
    figure.suptitle(picture_text(title), fontsize=11, x=0.01, ha="left")
    write_aside(path, lambda aside: figure.savefig(aside, dpi=130))
    plt.close(figure)
    return True


def ranked(lines: Sequence[Line]) -> list[str]:
    """Names of the methods by falling mean accuracy; those that lack a budget come last."""
    found: dict[str, list[float]] = {}
    for line in lines:
        found.setdefault(line.method, []).append(line.mean)
    most = max(len(means) for means in found.values())
    return sorted(found, key=lambda name: (len(found[name]) < most, -statistics.fmean(found[name])))


def _panel(axis: Any, lines: Sequence[Line], methods: Sequence[str]) -> None:
    for line in lines:
        row = methods.index(line.method)
        colour = BLUE if line.method.lower().startswith("spr") else "0.25"
        axis.plot(line.accuracy, [row] * len(line.accuracy), "|", color=colour, markersize=7)
        axis.errorbar(
            line.mean, row, xerr=line.deviation or 0.0, fmt="o", color=colour, markersize=4.5,
            elinewidth=1, alpha=0.9,
        )  # fmt: skip
    dense = statistics.fmean(accuracy for line in lines for accuracy in line.dense)
    axis.axvline(dense, color=GREY, linewidth=1, linestyle="--")
    axis.grid(axis="y", color="0.92", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)

"""The figure of all layers. Matplotlib is imported here; import this module where it is drawn."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from spr_or.layer_study.study import Study
from spr_or.training.report.run_figures import BLUE, GREEN, GREY, ORANGE, RED
from spr_or.utils.files import write_aside

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def draw(studies: list[Study], path: Path) -> None:
    """Above, how far from provably best each choice is; below, what share of the output it loses."""
    places = range(len(studies))
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(max(8.0, 0.48 * len(studies) + 2), 7), sharex=True, layout="constrained"
    )
    gaps = [100 * (s.objective / s.bound - 1) if s.bound > 0 else float("nan") for s in studies]
    top.bar(places, gaps, width=0.75, color="#DDDDDD", label="not decided: best found to bound")
    ways = (("spr", "SPR mask", RED, "o"), ("magnitude", "magnitude, same size", ORANGE, "^"))
    for way, label, colour, marker in ways:
        have = [i for i in places if way in studies[i].choices]
        above = [studies[i].choices[way].above_bound for i in have]
        values = [float("nan") if a is None else 100 * a for a in above]
        top.plot(have, values, marker, color=colour, label=label, markersize=6)
        lost = [100 * studies[i].choices[way].lost for i in have]
        bottom.plot(have, lost, marker, color=colour, label=label, markersize=6)
    best = [100 * s.choices["best"].lost for s in studies]
    bottom.plot(places, best, "D", color=BLUE, label="best found", markersize=5)
    floors = [(i, 100 * s.least_lost) for i, s in enumerate(studies) if s.least_lost is not None]
    if floors:
        bottom.plot(
            *zip(*floors, strict=True), "_", color=GREEN, markersize=14, markeredgewidth=2,
            label="no choice of SPR's size loses less",
        )  # fmt: skip
    top.set_ylabel("objective above\nthe proven bound (%)")
    top.set_ylim(bottom=0)
    bottom.set_ylabel("share of the variance\nof the output lost (%)")
    bottom.set_ylim(bottom=0)
    names = [
        f"{s.layer}  {len(s.choices['best'].channels)}/{s.inputs}" + ("" if s.from_mask else " *")
        for s in studies
    ]
    bottom.set_xticks(places, names, rotation=90, fontsize=8)
    bottom.set_xlabel(
        "layer, channels of the best choice / of the layer (*: SPR keeps all or none)"
    )
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color=GREY, alpha=0.25)
        axis.set_axisbelow(True)
        axis.legend(frameon=False, ncols=2, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    write_aside(path, lambda aside: figure.savefig(aside, dpi=130))
    plt.close(figure)

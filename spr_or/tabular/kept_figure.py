"""The picture of the groups kept. Matplotlib is imported here; import where it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt  # noqa: E402, I001 (solve_figures chooses the backend)

from spr_or.tabular.results import KeptGroup
from spr_or.tabular.solve_figures import save, short
from spr_or.utils.palette import BLUE, RED

_MOST = 25  # bars that can be read


def kept_weights(
    kept: Sequence[KeptGroup], weights: Sequence[Sequence[float]], divided: bool, path: Path
) -> None:
    """A bar for each weight of the groups kept, largest groups first.

    ``weights`` are those of each group, as they enter the penalty; ``divided``: of standardised columns.
    """
    bars = [
        (f"{group.name}: {name}" if len(group.columns) > 1 else group.name, weight)
        for group, own in zip(kept, weights, strict=True)
        for name, weight in zip(group.columns, own, strict=True)
    ]
    shown = bars[:_MOST]
    figure, axis = plt.subplots(figsize=(7, 1.1 + 0.27 * max(2, len(shown))), layout="constrained")
    places = range(len(shown))
    values = [weight for _, weight in shown]
    colours = [BLUE if weight > 0 else RED for weight in values]
    axis.barh(places, values, color=colours, height=0.65)
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.set_yticks(places, [short(name) for name, _ in shown], fontsize=8)
    axis.set_ylim(max(2, len(shown)) - 0.5, -0.5)
    axis.set_xlabel("weight of the divided column" if divided else "weight")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
    if len(bars) > len(shown):
        axis.set_title(f"the first {len(shown)} of {len(bars)} weights", fontsize=9)
    save(figure, path)

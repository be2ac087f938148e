"""Pictures of ladders.  Matplotlib is imported here; import this module where a picture is drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

from spr_or.utils.files import write_aside
from spr_or.utils.palette import BLACK, BLUE, GREEN, RED
from spr_or.verification.bounds_over_m import SweepPoint
from spr_or.verification.ladder import Ladder, Rung

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito's colours: told apart by colour-blind readers and, with the markers, in grey print.
COLOURS = {"bigm": RED, "perspective": BLUE, "projected": GREEN, "mip": BLACK}
STEPS = (
    ("big-M\nrelaxed", "relaxed", "bigm"),
    ("perspective\nrelaxed", "relaxed", "perspective"),
    ("projected", "relaxed", "projected"),
    ("MIP", "integer", None),
)
MARKERS = "os^Dv"


def plot_ladders(ladders: Sequence[Ladder], path: Path) -> None:
    """One panel an instance: its rungs, and how much of the root gap the perspective closes."""
    columns = min(3, len(ladders))
    rows = math.ceil(len(ladders) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 3.1 * rows), squeeze=False, layout="constrained"
    )
    for axis, ladder in zip(axes.flat, ladders, strict=False):
        _ladder(axis, ladder)
    for axis in axes.flat[len(ladders) :]:
        axis.set_visible(False)
    _save(figure, path)


def _ladder(axis: Any, ladder: Ladder) -> None:
    low, high = ladder.value("relaxed", "bigm"), ladder.value("integer")
    middle = ladder.value("relaxed", "perspective")
    if math.isfinite(high - low):
        axis.axhspan(low, middle, color=COLOURS["perspective"], alpha=0.15, linewidth=0)
        axis.axhspan(middle, high, color="0.5", alpha=0.12, linewidth=0)
    for place, (_, integrality, formulation) in enumerate(STEPS):
        rungs = ladder.of(integrality, *([formulation] if formulation else []))
        _rungs(axis, place, rungs, COLOURS[formulation or "mip"])
    labels = [label for label, _, _ in STEPS]
    if not ladder.convex:
        labels[2] = "projected,\nbest SGD run"
    axis.set_xticks(range(len(STEPS)), labels, fontsize=8)
    axis.set_xlim(-0.5, len(STEPS) - 0.5)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_ylabel("objective", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    closed = ladder.root_gap_closed
    share = (
        f"the cone closes {abs(closed):.0%} of the root gap"
        if math.isfinite(closed)
        else "no root gap"
    )
    axis.set_title(f"{ladder.name}\n{share}", fontsize=9)
    if not ladder.ok:
        axis.title.set_color("#B00000")


def _rungs(axis: Any, place: int, rungs: Sequence[Rung], colour: str) -> None:
    """A step at the best value, a marker a solver, a whisker down to a bound that is not closed."""
    finite = [rung for rung in rungs if math.isfinite(rung.value)]
    if not finite:
        return
    best = min(rung.value for rung in finite)
    axis.hlines(best, place - 0.42, place + 0.42, color=colour, linewidth=2.5)
    for k, rung in enumerate(finite):
        x = place + 0.16 * (k - (len(finite) - 1) / 2)
        if math.isfinite(rung.bound) and not rung.closed:
            axis.vlines(x, rung.bound, rung.value, color=colour, linewidth=1, linestyle=":")
        axis.plot(
            x, rung.value, MARKERS[k % len(MARKERS)], color="white", markeredgecolor=colour,
            markersize=5,
        )  # fmt: skip
    label = f"{best:.4g}"
    axis.annotate(
        label, (place, best), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=7.5
    )
    axis.margins(y=0.18)


def plot_sweep(points: Sequence[SweepPoint], path: Path) -> None:
    """Relaxations and MIP optimum over M, one panel an instance; open circles where M is active."""
    panels = [list(group) for _, group in groupby(points, key=lambda point: point.name)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.6 * len(panels), 4), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, panels, strict=True):
        M = [point.M for point in panel]
        series = (
            ("MIP optimum", [p.mip for p in panel], COLOURS["mip"], "o-"),
            (
                "perspective relaxation",
                [p.perspective for p in panel],
                COLOURS["perspective"],
                "s-",
            ),
            ("big-M relaxation", [p.bigm for p in panel], COLOURS["bigm"], "^-"),
        )
        for label, values, colour, style in series:
            axis.plot(M, values, style, color=colour, label=label, markersize=5)
        active = [(point.M, point.mip) for point in panel if point.m_active]
        if active:
            axis.plot(
                *zip(*active, strict=True), "o", markersize=11, markerfacecolor="none",
                markeredgecolor=COLOURS["mip"], label="M active at the optimum", linestyle="none",
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlabel("M")
        axis.set_ylabel("objective")
        axis.set_title("\n".join(textwrap.wrap(f"{panel[0].name}: bounds over M", 50)), fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150))
    plt.close(figure)

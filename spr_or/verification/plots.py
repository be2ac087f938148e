"""Pictures of bounds.  Matplotlib is imported here; import this module where a picture is drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
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
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

# Okabe and Ito's colours: told apart by colour-blind readers and, with the markers, in grey print.
COLOURS = {"bigm": RED, "perspective": BLUE, "projected": GREEN, "mip": BLACK}
STEPS = (
    ("big-M\nrelaxation", "relaxed", "bigm"),
    ("perspective\nrelaxation", "relaxed", "perspective"),
    ("projected", "relaxed", "projected"),
    ("integer\noptimum", "integer", None),
)
MARKERS = "os^DvPX*<>ph"


def plot_ladders(ladders: Sequence[Ladder], path: Path) -> None:
    """One panel for each instance: its bounds in percent of its integer optimum.

    All panels have the same scale, from 0 to 100 % of the best integer value found; an instance
    without a positive one has a scale of its own and says so.
    """
    columns = min(3, len(ladders))
    rows = math.ceil(len(ladders) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 3.0 * rows + 0.7), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    markers = solver_markers(ladders)
    for axis, ladder in zip(axes.flat, ladders, strict=False):
        _ladder(axis, ladder, markers)
    for axis in axes.flat[len(ladders) :]:
        axis.set_visible(False)
    _legend(figure, markers, columns)
    _save(figure, path)


def solver_markers(ladders: Sequence[Ladder]) -> dict[str, str]:
    """Solver to marker, the same one in all panels.

    >>> solver_markers([])
    {}
    """
    solvers = sorted({rung.solver for ladder in ladders for rung in ladder.rungs})
    return {solver: MARKERS[k % len(MARKERS)] for k, solver in enumerate(solvers)}


def unit_of(ladder: Ladder) -> float | None:
    """What 100 % is: the best integer value found; None without a positive one."""
    best = ladder.value("integer")
    return best if math.isfinite(best) and best > 0 else None


def _ladder(axis: Any, ladder: Ladder, markers: Mapping[str, str]) -> None:
    unit = unit_of(ladder)
    scale = 100 / unit if unit else 1.0
    low, high = ladder.value("relaxed", "bigm"), ladder.value("integer")
    middle = ladder.value("relaxed", "perspective")
    if all(map(math.isfinite, (low, middle, high))):
        axis.axhspan(scale * low, scale * middle, color=COLOURS["perspective"], alpha=0.15, lw=0)
        axis.axhspan(scale * middle, scale * high, color="0.5", alpha=0.12, lw=0)
    for place, (_, integrality, formulation) in enumerate(STEPS):
        rungs = ladder.of(integrality, *([formulation] if formulation else []))
        _values(axis, place, rungs, COLOURS[formulation or "mip"], scale, markers)
    labels = [label for label, _, _ in STEPS]
    if not ladder.convex:
        labels[2] = "projected,\nbest SGD run"
    axis.set_xticks(range(len(STEPS)), labels, fontsize=8)
    axis.set_xlim(-0.5, len(STEPS) - 0.5)
    axis.tick_params(axis="y", labelsize=8)
    if unit:
        values = [scale * r.value for r in ladder.rungs if math.isfinite(r.value)]
        top = max(112.0, 1.12 * max(values))
        axis.set_ylim(0, top)
        axis.set_yticks([0, 25, 50, 75, 100])
        axis.set_ylabel("% of the integer optimum", fontsize=8)
    else:
        axis.set_ylabel("objective (own scale)", fontsize=8)
        axis.margins(y=0.18)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"{ladder.name}\n{_gap_closed(ladder)}", fontsize=9)
    if not ladder.ok:
        axis.title.set_color("#B00000")


def _gap_closed(ladder: Ladder) -> str:
    closed = ladder.root_gap_closed
    if not math.isfinite(closed):
        return "big-M leaves no gap"
    return f"perspective closes {abs(closed):.0%} of big-M's gap"


def _values(
    axis: Any, place: int, rungs: Sequence[Rung], colour: str, scale: float,
    markers: Mapping[str, str],
) -> None:  # fmt: skip
    """A line at the best value, a marker for each solver, dots down to a bound that is not closed."""
    finite = [rung for rung in rungs if math.isfinite(rung.value)]
    if not finite:
        return
    best = min(rung.value for rung in finite)
    axis.hlines(scale * best, place - 0.42, place + 0.42, color=colour, linewidth=2.5)
    for k, rung in enumerate(finite):
        x = place + 0.16 * (k - (len(finite) - 1) / 2)
        if math.isfinite(rung.bound) and not rung.closed:
            axis.vlines(x, scale * rung.bound, scale * rung.value, color=colour, lw=1, ls=":")
        axis.plot(
            x, scale * rung.value, markers[rung.solver], color="white", markeredgecolor=colour,
            markersize=6,
        )  # fmt: skip
    axis.annotate(
        f"{best:.4g}", (place, scale * best), textcoords="offset points", xytext=(0, 6),
        ha="center", fontsize=7.5,
    )  # fmt: skip


def _legend(figure: Any, markers: Mapping[str, str], columns: int) -> None:
    """Which marker is which solver, and what the lines and areas are."""
    handles: list[Any] = [
        Line2D([], [], marker=marker, linestyle="none", markerfacecolor="white",
               markeredgecolor="0.2", markersize=6, label=solver)
        for solver, marker in markers.items()
    ]  # fmt: skip
    handles += [
        Line2D([], [], color="0.2", linewidth=2.5, label="best value (number: the objective)"),
        Line2D([], [], color="0.2", linewidth=1, linestyle=":", label="down to an open bound"),
        Patch(color=COLOURS["perspective"], alpha=0.15, label="gap that perspective closes"),
        Patch(color="0.5", alpha=0.12, label="gap that stays"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(2, 2 * columns - 1), frameon=False,
        fontsize=8,
    )  # fmt: skip


def plot_sweep(points: Sequence[SweepPoint], path: Path) -> None:
    """Relaxations and integer optimum over M, one panel for each instance.

    Each panel has a y axis of its own that starts at 0; open circles stand where M is active.
    """
    panels = [list(group) for _, group in groupby(points, key=lambda point: point.name)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.6 * len(panels), 4), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, panels, strict=True):
        _over_m(axis, panel)
    _save(figure, path)


def _over_m(axis: Any, panel: Sequence[SweepPoint]) -> None:
    M = [point.M for point in panel]
    series = (
        ("integer optimum", [p.mip for p in panel], COLOURS["mip"], "o-"),
        ("perspective relaxation", [p.perspective for p in panel], COLOURS["perspective"], "s-"),
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
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(bottom=min(0.0, *(p.bigm for p in panel)))
    axis.set_xlabel("M")
    axis.set_ylabel("objective")
    axis.set_title("\n".join(textwrap.wrap(f"{panel[0].name}: bounds over M", 50)), fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="lower left")


def _save(figure: Any, path: Path) -> None:
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150))
    plt.close(figure)

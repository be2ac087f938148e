"""Pictures of one solve and of a path. Matplotlib is imported here; import where one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib

from spr_or.certified_solver.lambda_path import PathPoint
from spr_or.proof.certificate import ProofCertificate, SearchProgress
from spr_or.utils.files import write_aside
from spr_or.utils.palette import BLUE, GREEN, RED
from spr_or.utils.printable import picture_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter  # noqa: E402


class Solved(Protocol):
    """A lambda and what was solved for it."""

    @property
    def lam(self) -> float:
        """Its value."""

    @property
    def certificate(self) -> ProofCertificate:
        """The solution."""


_MOST_ROWS = 40  # groups that a picture of a path names
_LONGEST = 32  # letters of a name


def gap_over_time(
    trace: Sequence[SearchProgress], certificate: ProofCertificate, path: Path
) -> None:
    """Incumbent and bound over the seconds, and the gap between them on a log scale below."""
    seconds = [now.seconds for now in trace] + [certificate.seconds]
    objective = [now.objective for now in trace] + [certificate.objective]
    bound = [now.bound for now in trace] + [certificate.bound]
    gap = [now.gap for now in trace] + [certificate.gap]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 5), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    top.step(seconds, objective, where="post", color=RED, label="incumbent")
    top.step(seconds, bound, where="post", color=BLUE, linestyle="--", label="proven bound")
    top.set_ylabel("objective")
    top.legend(frameon=False)
    percent = [100 * g if 0 < g < math.inf else math.nan for g in gap]
    bottom.step(seconds, percent, where="post", color="black", marker=".", markersize=4)
    shown = [p for p in percent if not math.isnan(p)]
    if shown and max(shown) > 10 * min(shown):
        bottom.set_yscale("log")
        bottom.yaxis.set_major_formatter("{x:g}")
    bottom.set_ylabel("gap (%)")
    bottom.set_xlabel("seconds of the search")
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.92")
    top.set_title(
        f"{picture_text(certificate.problem.name)}: {certificate.status.replace('_', ' ')}, "
        f"gap {100 * certificate.gap:.3g} % after {certificate.nodes} nodes",
        fontsize=10,
    )
    save(figure, path)


def over_lambda(points: Sequence[PathPoint], groups: Sequence[str], path: Path) -> None:
    """Which groups are kept, and objective with its proven bound, over lambda.

    ``groups`` are the names, in the order of the problem. Each group that is ever kept has a row,
    named, in the order in which they enter; a large dot stands where it enters.
    """
    figure, (top, bottom) = groups_above(points, groups)
    _bounds_over_lambda(bottom, points)
    name = picture_text(points[0].certificate.problem.name)
    top.set_title(f"{name}: the path over λ", fontsize=10, pad=18)
    save(figure, path)


def groups_above(points: Sequence[Solved], groups: Sequence[str]) -> tuple[plt.Figure, Any]:
    """A figure with the groups kept over lambda, and below them axes with lambda for what else to show."""
    rows = entering(points)
    shown = rows[:_MOST_ROWS]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 3.6 + 0.24 * max(4, len(shown))), sharex=True, layout="constrained",
        height_ratios=(0.24 * max(4, len(shown)) + 0.3, 2.6),
    )  # fmt: skip
    _kept_over_lambda(top, points, shown, [short(groups[i]) for i in shown])
    if len(rows) > len(shown):
        top.set_ylabel(f"groups kept\n(the first {len(shown)} of {len(rows)} to enter)")
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    bottom.set_xscale("log")
    bottom.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bottom.xaxis.set_major_formatter("{x:g}")
    bottom.xaxis.set_minor_formatter(NullFormatter())
    bottom.set_xlabel("λ")
    bottom.grid(axis="y", color="0.92")
    return figure, (top, bottom)


def entering(points: Sequence[Solved]) -> list[int]:
    """The groups that are kept at some lambda, in the order in which they enter, by position."""
    order: dict[int, None] = {}
    for point in points:
        order |= dict.fromkeys(point.certificate.indicators.nonzero().flatten().tolist())
    return list(order)


def _kept_over_lambda(
    axis: Any, points: Sequence[Solved], rows: Sequence[int], names: Sequence[str]
) -> None:
    """A row for each group with a dot where it is kept; above them, how many are."""
    for place, group in enumerate(rows):
        kept = [bool(point.certificate.indicators[group]) for point in points]
        enters = [now and not before for now, before in zip(kept, [False, *kept], strict=False)]
        lams = [p.lam if k else math.nan for p, k in zip(points, kept, strict=True)]
        axis.plot(lams, [place] * len(lams), color=GREEN, marker="o", markersize=3, linewidth=2)
        begun = [p.lam for p, first in zip(points, enters, strict=True) if first]
        axis.plot(begun, [place] * len(begun), "o", color=GREEN, markersize=7)
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.set_ylim(max(4, len(rows)) - 0.5, -0.5)
    axis.set_ylabel("groups kept")
    for point in points:
        axis.text(
            point.lam, 1.01, str(int(point.certificate.indicators.sum())), fontsize=8, ha="center",
            va="bottom", transform=axis.get_xaxis_transform(),
        )  # fmt: skip
    axis.text(0, 1.01, "how many", fontsize=8, ha="right", va="bottom", transform=axis.transAxes)
    axis.grid(color="0.92")


def _bounds_over_lambda(axis: Any, points: Sequence[PathPoint]) -> None:
    """Objective and proven bound; open circles: gap not closed."""
    lams = [point.lam for point in points]
    made = [point.certificate for point in points]
    axis.plot(lams, [c.objective for c in made], color=RED, marker="o", markersize=4,
              label="objective")  # fmt: skip
    axis.plot(lams, [c.bound for c in made], color=BLUE, linestyle="--", label="proven bound")
    left_open = [(p.lam, p.certificate.objective) for p in points
                 if p.certificate.status != "optimal"]  # fmt: skip
    if left_open:
        axis.fill_between(
            lams, [c.bound for c in made], [c.objective for c in made], color=BLUE, alpha=0.2,
            linewidth=0, label="not yet decided",
        )  # fmt: skip
        axis.plot(*zip(*left_open, strict=True), "o", markersize=10, markerfacecolor="none",
                  markeredgecolor="black", label="gap not closed")  # fmt: skip
    axis.set_ylabel("objective")
    axis.legend(frameon=False)


def short(name: str) -> str:
    """A name that fits beside a picture."""
    return picture_text(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…")


def save(figure: plt.Figure, path: Path) -> None:
    """Write and close a figure."""
    write_aside(path, lambda aside: figure.savefig(aside, dpi=130))
    plt.close(figure)

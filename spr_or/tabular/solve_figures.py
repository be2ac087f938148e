"""Pictures of one solve and of a path. Matplotlib is imported here; import where one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from spr_or.certified_solver.lambda_path import Point
from spr_or.certified_solver.proof_certificate import ProofCertificate
from spr_or.certified_solver.search import Progress
from spr_or.utils.files import write_aside

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter  # noqa: E402

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles for grey print.
BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"


def gap_over_time(trace: Sequence[Progress], certificate: ProofCertificate, path: Path) -> None:
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
        f"{certificate.problem.name}: {certificate.status.replace('_', ' ')}, "
        f"gap {100 * certificate.gap:.3g} % after {certificate.nodes} nodes",
        fontsize=10,
    )
    _save(figure, path)


def over_lambda(points: Sequence[Point], path: Path) -> None:
    """Groups kept, and objective with its proven bound, over lambda; open circles: not closed."""
    lams = [point.lam for point in points]
    made = [point.certificate for point in points]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5.5), sharex=True, layout="constrained")
    top.plot(
        lams,
        [float(c.indicators.sum()) for c in made],
        color=GREEN,
        marker="o",
        markersize=4,
        linestyle=":",
    )
    top.set_ylabel("groups kept")
    top.set_ylim(bottom=-0.04 * top.get_ylim()[1])
    top.yaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.plot(lams, [c.objective for c in made], color=RED, marker="o", markersize=4,
                label="objective")  # fmt: skip
    bottom.plot(lams, [c.bound for c in made], color=BLUE, linestyle="--", label="proven bound")
    left_open = [
        (p.lam, p.certificate.objective) for p in points if p.certificate.status != "optimal"
    ]
    if left_open:
        bottom.fill_between(
            lams, [c.bound for c in made], [c.objective for c in made], color=BLUE, alpha=0.2,
            linewidth=0, label="not yet decided",
        )  # fmt: skip
        bottom.plot(*zip(*left_open, strict=True), "o", markersize=10, markerfacecolor="none",
                    markeredgecolor="black", label="gap not closed")  # fmt: skip
    bottom.set_ylabel("objective")
    bottom.set_xscale("log")
    bottom.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bottom.xaxis.set_major_formatter("{x:g}")
    bottom.xaxis.set_minor_formatter(NullFormatter())
    bottom.set_xlabel("λ")
    bottom.legend(frameon=False)
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.92")
    top.set_title(f"{made[0].problem.name}: the path over λ", fontsize=10)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    write_aside(path, lambda aside: figure.savefig(aside, dpi=130))
    plt.close(figure)

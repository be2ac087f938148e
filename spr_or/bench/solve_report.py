"""What `spr-or bench solve` writes: the table (Markdown, CSV, terminal) and two figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spr_or.bench import regularizer_cost
from spr_or.utils import terminal
from spr_or.utils.files import write_aside, write_csv, write_text
from spr_or.utils.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY

if TYPE_CHECKING:
    from spr_or.bench.solve_rows import Row

# Okabe and Ito's colours, each with its own marker, so that they differ without colour too.
STYLES: dict[str, tuple[str, str]] = {
    "spr-or": (BLACK, "o"),
    "spr-or-cuda": (PURPLE, "P"),
    "scip-bigm": (RED, "^"),
    "scip-cone": (BLUE, "s"),
    "scip-default": (BLUE, "p"),
    "highs-cuts": (GREEN, "v"),
    "el0ps": (ORANGE, "D"),
    "l0bnb": (SKY, "X"),
}
FAMILIES = {"E": "E: groups of four columns", "S": "S: single columns"}
_COLUMNS = (
    "instance", "N", "solver", "status", "seconds", "x ours", "objective", "gap", "nodes",
    "nodes/s", "MB", "proof",
)  # fmt: skip
_TERMINAL = ("instance", "solver", "status", "seconds", "x ours", "gap", "MB", "proof")
_TEXT = ("instance", "solver", "status")
_SMALLEST_GAP = 1e-5


def describe_machine() -> dict[str, Any]:
    """Processor, device and versions."""
    return {k: v for k, v in regularizer_cost.describe_machine().items() if k != "threads"}


def write(out: Path, machine: dict[str, Any], rows: Sequence[Row], wrong: Sequence[str]) -> None:
    """table.md, results.csv, time_over_size.png and gap_over_time.png in ``out``."""
    if not rows:
        return
    write_text(out / "table.md", markdown(machine, rows, wrong))
    columns = [name for name in asdict(rows[0]) if name != "trace"]
    cells = [{name: asdict(row)[name] for name in columns} for row in rows]
    write_csv(out / "results.csv", columns, cells)
    plot_time_over_size(rows, out / "time_over_size.png")
    plot_gap_over_time(rows, out / "gap_over_time.png")


def table(rows: Sequence[Row]) -> Any:
    """The columns that fit a terminal."""
    places = [_COLUMNS.index(name) for name in _TERMINAL]
    shown = [[row_cells[i] for i in places] for row_cells in (cells(row, rows) for row in rows)]
    return terminal.table(_TERMINAL, shown, text=_TEXT)


def markdown(machine: dict[str, Any], rows: Sequence[Row], wrong: Sequence[str]) -> str:
    """The same as text, with the settings above and what did not run or hold below."""
    settings = sorted({(r.threads, r.time_limit, r.asked_gap) for r in rows})
    lines = [", ".join(f"{k} {v}" for k, v in machine.items() if v is not None)]
    lines += [f"{t} threads, {s:g} s for each row, relative gap {g:g}" for t, s, g in settings]
    lines += ["", "| " + " | ".join(_COLUMNS) + " |"]
    lines.append("|" + "|".join("---" if name in _TEXT else "---:" for name in _COLUMNS) + "|")
    lines += ["| " + " | ".join(cells(row, rows)) + " |" for row in rows]
    notes = [f"- {r.instance}, {r.solver}: {r.note}" for r in rows if r.note]
    lines += ["", *notes] if notes else []
    lines += ["", *(wrong or ["Every proof of ours was confirmed; no two solvers contradict."])]
    return "\n".join(lines) + "\n"


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """A row as text; "x ours" is its time over ours on the same instance, at least that much if > ."""
    ours = next(
        (r.seconds for r in rows if r.instance == row.instance and r.solver == "spr-or"), None
    )
    ratio = ""
    if row.seconds is not None and ours and row.solver != "spr-or":
        ratio = f"{'' if row.status == 'optimal' else '> '}{row.seconds / ours:.2g}"
    rate = row.nodes / row.seconds if row.nodes and row.seconds else None
    return [
        row.instance, str(row.N), row.solver, row.status, _number(row.seconds, ".2f"), ratio,
        _number(row.objective, ".6f"), "" if row.gap is None else _percent(row.gap),
        _number(row.nodes, "d"), _number(rate, ".0f"), _number(row.peak_mb, ".0f"),
        {True: "holds", False: "FAILS", None: ""}[row.checked],
    ]  # fmt: skip


def plot_time_over_size(rows: Sequence[Row], path: Path) -> None:
    """Seconds over the number of entities, one panel for each family; hollow where the gap stayed open."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families = [f for f in FAMILIES if any(r.instance[0] == f and r.seconds for r in rows)]
    if not families:
        return
    figure, axes = plt.subplots(
        1, len(families), figsize=(1.2 + 5.2 * len(families), 4.4), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axis, family in zip(axes.flat, families, strict=True):
        inside = [r for r in rows if r.instance[0] == family]
        order = sorted({(r.N, r.instance) for r in inside})
        place = {instance: x for x, (_, instance) in enumerate(order)}
        for solver, (colour, marker) in STYLES.items():
            points = [r for r in inside if r.solver == solver and r.seconds]
            points.sort(key=lambda r: place[r.instance])
            # Side by side: several solvers end at the limit.
            aside = 0.07 * (list(STYLES).index(solver) - (len(STYLES) - 1) / 2)
            x = [place[r.instance] + aside for r in points]
            y = [max(r.seconds or 0.0, 1e-3) for r in points]
            axis.plot(x, y, color=colour, linewidth=1.3, alpha=0.7)
            for xi, yi, row in zip(x, y, points, strict=True):
                face = colour if row.status == "optimal" else "white"
                axis.plot(xi, yi, marker, color=colour, markerfacecolor=face, markersize=7)
        for limit in {r.time_limit for r in inside}:
            axis.axhline(limit, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(range(len(order)), [f"{name}\nN = {N:,}" for N, name in order])
        axis.set_xlim(-0.5, len(order) - 0.5)
        axis.set_title(FAMILIES[family], fontsize=10)
        axis.grid(axis="y", color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("seconds")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    _legend(figure, rows, plt)
    figure.suptitle("Time to the requested gap; hollow: stopped with a gap left", fontsize=11)
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150))
    plt.close(figure)


def plot_gap_over_time(rows: Sequence[Row], path: Path) -> None:
    """Our gap over time, one panel for each instance, and where the other solvers ended."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name, _ in itertools.groupby(rows, lambda r: r.instance)]
    shown = [n for n in names if any(r.instance == n and r.gap is not None for r in rows)]
    if not shown:
        return
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(1.0 + 3.8 * columns, 1.2 + 2.7 * lines), squeeze=False,
        sharex=True, sharey=True, layout="constrained",
    )  # fmt: skip
    for axis, name in itertools.zip_longest(axes.flat, shown):
        if name is None:
            axis.set_visible(False)
            continue
        inside = [r for r in rows if r.instance == name]
        for row in inside:
            colour, marker = STYLES[row.solver]
            if row.trace:
                axis.plot(*_gaps(row), color=colour, linewidth=1.4, drawstyle="steps-post")
            if row.gap is not None and row.seconds:
                axis.plot(
                    row.seconds, max(row.gap, _SMALLEST_GAP), marker, color=colour, markersize=7,
                    markerfacecolor=colour if row.status == "optimal" else "white", clip_on=False,
                )  # fmt: skip
        axis.axhline(inside[0].asked_gap, color="0.6", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", ylim=(_SMALLEST_GAP, 2))
        axis.set_title(f"{name}, N = {inside[0].N:,}", fontsize=10)
        axis.grid(color="0.92")
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("seconds")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("relative gap")
    low, high = axes[0, 0].get_xlim()
    axes[0, 0].set_xlim(max(0.01, low), 1.5 * high)
    axes[0, 0].xaxis.set_major_formatter("{x:g}")
    _legend(figure, rows, plt)
    figure.suptitle(
        "Gap over time; markers: where a solver ended, hollow with a gap left", fontsize=11
    )
    write_aside(path, lambda aside: figure.savefig(aside, dpi=150))
    plt.close(figure)


def _gaps(row: Row) -> tuple[list[float], list[float]]:
    """Seconds and gaps of a trace; a gap without a bound counts as 1."""
    seconds, gaps = [], []
    for at, objective, bound in row.trace:
        assert at is not None and objective is not None
        gap = 1.0 if bound is None else (objective - bound) / max(1e-10, abs(objective))
        seconds.append(max(at, 1e-3))
        gaps.append(min(1.0, max(gap, _SMALLEST_GAP)))
    return seconds, gaps


def _legend(figure: Any, rows: Sequence[Row], plt: Any) -> None:
    present = [s for s in STYLES if any(r.solver == s and r.seconds for r in rows)]
    handles = [
        plt.Line2D([], [], color=STYLES[s][0], marker=STYLES[s][1], markersize=7, label=s)
        for s in present
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _percent(gap: float) -> str:
    return f"{gap:.1%}" if gap >= 0.01 else f"{gap:.1e}"

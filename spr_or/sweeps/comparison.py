"""What a comparison of methods has found: a table and a picture, from the files of its runs.

A method that could not be run, or whose network collapsed, is a line with its reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spr_or.pruning.budget import TOLERANCE
from spr_or.sweeps.accuracy_dots import accuracy_dots
from spr_or.sweeps.run_table import ERROR, last_line, seconds, sound_summary
from spr_or.sweeps.sweep_file import SweepPlan, SweepRun
from spr_or.training.method import SPR_ITSELF, find_method
from spr_or.training.outcome import note, removed_macs_pct
from spr_or.utils import palette, pareto
from spr_or.utils.files import write_csv, write_text
from spr_or.utils.printable import one_line
from spr_or.utils.terminal import table

NOT_RUN = "not run"
PICTURES = ("comparison.png", "comparison-methods.png")
SEEDS = 3  # the fewest that say something about the noise
BEYOND = 2.0  # deviations by which the best method must lead to be marked
_COLOURS = (palette.BLUE, palette.ORANGE, palette.GREEN, palette.RED, palette.PURPLE, palette.GREY)
_MARKERS = "os^DvP"


@dataclass(frozen=True)
class Line:
    """One method at one budget, over its seeds.

    ``accuracy`` and the others hold one number for each seed that ended; ``reasons`` say what became of
    the others, and what is wrong with those. ``reached`` is the share that the cut took, of what the
    budget counts. ``pruning_seconds`` is the time of the pruning phase with all that the method
    computes; accuracies and shares are in percent.
    """

    method: str
    kind: str
    budget: float
    seeds: tuple[int, ...]
    accuracy: tuple[float, ...]
    dense: tuple[float, ...]
    reached: tuple[float, ...]
    removed: tuple[float, ...]
    macs_removed: tuple[float, ...]
    pruning_seconds: tuple[float, ...]
    speedup: tuple[float, ...]
    reasons: tuple[str, ...]
    waiting: int  # runs that have not ended

    @property
    def mean(self) -> float:
        """Mean accuracy; lower than any where no seed ended well."""
        return statistics.fmean(self.accuracy) if self.accuracy else float("-inf")

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracy over seeds; None for fewer than two."""
        return statistics.stdev(self.accuracy) if len(self.accuracy) > 1 else None


def lines_of(plan: SweepPlan, folder: Path) -> list[Line]:
    """A line for each method and budget, in the order of the comparison's file."""
    groups: dict[tuple[str, float], list[SweepRun]] = {}
    for point in plan.runs:
        groups.setdefault((point.changes["method"], point.changes["budget"]), []).append(point)
    return [_line(method, budget, points, folder) for (method, budget), points in groups.items()]


def _line(method: str, budget: float, points: Sequence[SweepRun], folder: Path) -> Line:
    done: list[tuple[int, dict[str, Any], float]] = []
    reasons, waiting = [], 0
    for point in points:
        run = folder / "runs" / point.folder_name
        summary = sound_summary(run)
        if summary is not None:
            if fault := note(summary):
                reasons.append(f"seed {point.seed}: {fault}")
            cut = summary["budget"]["after_cut_pct"]
            if abs(cut - budget) > TOLERANCE:
                reasons.append(f"seed {point.seed}: the budget is missed, {cut:.1f} % went")
            scoring = summary["budget"].get("scoring_seconds", 0.0)
            done.append((point.seed, summary, seconds(run)["spr_seconds"] + scoring))
        elif (run / ERROR).exists():
            text = last_line((run / ERROR).read_text(encoding="utf-8"))
            reasons.append(f"seed {point.seed}: {_reason(text)}")
        else:
            waiting += 1
    return Line(
        method,
        kind_of(points[0].recipe.method.name),
        budget,
        tuple(seed for seed, _, _ in done),
        tuple(s["accuracy"] for _, s, _ in done),
        tuple(s["dense_accuracy"] for _, s, _ in done),
        tuple(s["budget"]["after_cut_pct"] for _, s, _ in done),
        tuple(s["removed_params_pct"] for _, s, _ in done),
        tuple(removed_macs_pct(s) for _, s, _ in done),
        tuple(spent for _, _, spent in done),
        tuple(s["latency_ms_dense"] / s["latency_ms_compact"] for _, s, _ in done),
        tuple(reasons),
        waiting,
    )


def _reason(line: str) -> str:
    """The last line of a traceback without the name of an error of ours, which says nothing more."""
    kind, found, text = line.partition(": ")
    return text if found and kind.startswith("spr_or.") else line


def kind_of(name: str) -> str:
    """What decides in the method of that name."""
    return "regulariser" if name == SPR_ITSELF else find_method(name).kind


def winners(lines: Sequence[Line]) -> set[tuple[str, float]]:
    """(method, budget) of the methods that lead their budget by more than two deviations.

    The lead over the second is measured by the larger of both standard deviations over seeds. Nobody is
    marked by fewer than `SEEDS` seeds, for the noise is not known, nor who has missed the budget, or
    has not ended well with the seeds of the second.
    """
    found = set()
    for budget in {line.budget for line in lines}:
        ranked = sorted(
            (x for x in lines if x.budget == budget and x.accuracy), key=lambda x: -x.mean
        )
        if len(ranked) < 2 or ranked[0].deviation is None or ranked[1].deviation is None:
            continue
        if ranked[0].reasons or ranked[0].waiting or len(ranked[0].seeds) < SEEDS:
            continue
        if ranked[1].seeds != ranked[0].seeds:
            continue
        if ranked[0].mean - ranked[1].mean > BEYOND * max(ranked[0].deviation, ranked[1].deviation):
            found.add((ranked[0].method, budget))
    return found


def rows_of(lines: Sequence[Line]) -> list[dict[str, str]]:
    """The table as text, each budget from the most accurate method to the least."""
    best = winners(lines)
    found = []
    for line in _in_order(lines):
        found.append(
            {
                "budget %": f"{line.budget:g}",
                "method": line.method + (" *" if (line.method, line.budget) in best else ""),
                "kind": line.kind,
                "accuracy %": _spread(line.accuracy),
                "dense %": _spread(line.dense),
                "removed %": _mean(line.removed, ".1f"),
                "MACs removed %": _mean(line.macs_removed, ".1f"),
                "speed": _mean(line.speedup, ".2f", "×"),
                "pruning s": _mean(line.pruning_seconds, ".1f"),
                "seeds": str(len(line.seeds)),
                "note": _note(line),
            }
        )
    return found


def numbers_of(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The same in numbers, for programs: means over seeds, and deviations where there are several."""
    best = winners(lines)
    return [
        {
            "budget_pct": line.budget,
            "method": line.method,
            "kind": line.kind,
            "accuracy": _fmean(line.accuracy),
            "accuracy_deviation": line.deviation,
            "dense_accuracy": _fmean(line.dense),
            "removed_params_pct": _fmean(line.removed),
            "macs_removed_pct": _fmean(line.macs_removed),
            "speedup": _fmean(line.speedup),
            "pruning_seconds": _fmean(line.pruning_seconds),
            "seeds": len(line.seeds),
            "leads": (line.method, line.budget) in best,
            "note": _note(line),
        }
        for line in _in_order(lines)
    ]


def _in_order(lines: Sequence[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: (line.budget, -line.mean))


def _note(line: Line) -> str:
    waiting = [f"{line.waiting} {NOT_RUN}"] if line.waiting else []
    return "; ".join([*dict.fromkeys(line.reasons), *waiting])


def _fmean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return _mean(values, ".2f")
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def _mean(values: Sequence[float], form: str, unit: str = "") -> str:
    return f"{statistics.fmean(values):{form}}{unit}" if values else "–"


def significance(lines: Sequence[Line]) -> str:
    """What differences mean here, in a sentence or two."""
    seeds = {len(line.seeds) for line in lines if line.seeds}
    if not seeds:
        return "No run has ended yet."
    if max(seeds) < SEEDS:
        return (
            f"Fewer than {SEEDS} seeds: how far seeds differ is not known, so no method is marked as the "
            "best, and small differences mean nothing."
        )
    return (
        "Mean ± standard deviation over seeds. A star marks a method that leads the second by more "
        f"than {BEYOND:g} deviations (the larger of both); without one, the first few cannot be told apart."
    )


def rich_table(title: str, lines: Sequence[Line]) -> Any:
    """The table for the terminal."""
    rows = rows_of(lines)
    columns = tuple(rows[0])
    text = ("method", "kind", "note")
    return table(columns, [tuple(row.values()) for row in rows], title=title, text=text)


def write_comparison(plan: SweepPlan, folder: Path) -> list[Line]:
    """Write ``comparison.csv``, ``comparison.md`` and two pictures, `PICTURES`; the lines."""
    lines = lines_of(plan, folder)
    rows = rows_of(lines)
    numbers = numbers_of(lines)
    write_csv(folder / "comparison.csv", list(numbers[0]), numbers)
    head = "| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0])
    body = ["| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in row.values()) + " |"
            for row in rows]  # fmt: skip
    text = "\n".join([head, *body])
    write_text(folder / "comparison.md", f"{text}\n\n{significance(lines)}\n")
    front, dots = (folder / name for name in PICTURES)
    figure(plan.name, lines, front)
    accuracy_dots(plan.name, lines, dots)
    return lines


def figure(title: str, lines: Sequence[Line], path: Path) -> bool:
    """Accuracy over multiplications removed, a colour and marker for each method; False without a run.

    Not over parameters: of those all methods remove as many, and one would hide the other.
    """
    methods = list(dict.fromkeys(line.method for line in lines if line.accuracy))
    series = []
    for number, method in enumerate(methods):
        own = [line for line in lines if line.method == method and line.accuracy]
        series.append(
            pareto.Series(
                method,
                [statistics.fmean(line.macs_removed) for line in own],
                [line.mean for line in own],
                _COLOURS[number % len(_COLOURS)],
                _MARKERS[number // len(_COLOURS) % len(_MARKERS)],
                [line.deviation or 0.0 for line in own],
            )
        )
    dense = [accuracy for line in lines for accuracy in line.dense]
    return pareto.draw(
        series,
        path,
        xlabel="multiplications removed (%)",
        title=title,
        dense=[("dense network", statistics.fmean(dense), "black")] if dense else [],
    )

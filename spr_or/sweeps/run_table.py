"""The tables of a sweep, made from the files of its runs.

A finished run is one that has its ``summary.json``, whole; a failed one has an ``error.txt``. Both
are written in one step. The tables repeat what stands there and are written anew, whole, after each
run, so nothing can be torn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spr_or.sweeps.sweep_file import SweepPlan, SweepRun
from spr_or.training.metrics import read_metrics
from spr_or.training.outcome import note
from spr_or.training.report.summary import MEASURES, Summary
from spr_or.training.stored_run import DamagedFile, read_summary
from spr_or.utils.files import write_csv

TableRow = dict[str, Any]

CLOCKED = ("latency_ms_dense", "latency_ms_compact", "spr_step_overhead")
RESULTS = tuple(key for key in MEASURES if key not in CLOCKED)
ERROR = "error.txt"


def write_tables(
    plan: SweepPlan, runs: Path, folder: Path
) -> tuple[list[TableRow], list[TableRow]]:
    """Write ``table.csv``, ``times.csv`` and ``failed.csv``; the rows of the first and the last.

    ``table.csv`` holds only results, sorted by what the runs change. So it does not depend on how
    the sweep was run. Measured times are in ``times.csv``.
    """
    points = sorted(plan.runs, key=lambda point: _order(plan.keys, point))
    rows, times, failed = [], [], []
    for point in points:
        key = {**{k: point.changes.get(k, "") for k in plan.keys}, "seed": point.seed}
        run = runs / point.folder_name
        if (summary := sound_summary(run)) is not None:
            rows.append(key | {name: summary[name] for name in RESULTS} | {"note": note(summary)})
            clocked = {name: summary[name] for name in CLOCKED}
            times.append(key | clocked | seconds(run) | {"device": summary["device"]})
        elif (run / ERROR).exists():
            text = (run / ERROR).read_text(encoding="utf-8")
            failed.append(key | {"error": last_line(text), "traceback": str(run / ERROR)})
    keys = [*plan.keys, "seed"]
    phases = [f"{phase}_seconds" for phase in ("dense", "spr", "finetune")]
    write_csv(folder / "table.csv", [*keys, *RESULTS, "note"], rows)
    write_csv(folder / "times.csv", [*keys, *CLOCKED, *phases, "device"], times)
    write_csv(folder / "failed.csv", [*keys, "error", "traceback"], failed)
    return rows, failed


def sound_summary(run: Path) -> Summary | None:
    """The summary of a finished run; None if it is not there, or damaged."""
    try:
        return read_summary(run)
    except DamagedFile:
        return None


def seconds(run: Path) -> TableRow:
    """The time of each phase, from the run's epochs (an epoch with its evaluation)."""
    spent = {f"{phase}_seconds": 0.0 for phase in ("dense", "spr", "finetune")}
    for record in read_metrics(run / "metrics.jsonl"):
        spent[f"{record['phase']}_seconds"] += record["seconds"]
    return {name: round(value, 3) for name, value in spent.items()}


def last_line(text: str) -> str:
    """The last line of a traceback that is not empty: what went wrong.

    >>> last_line("Traceback (most recent call last):\\nValueError: no\\n")
    'ValueError: no'
    """
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def _order(keys: Sequence[str], point: SweepRun) -> list[tuple[bool, float, str]]:
    values = [*(point.changes.get(key, "") for key in keys), point.seed]
    return [
        (False, float(v), "") if isinstance(v, int | float) else (True, 0.0, str(v)) for v in values
    ]

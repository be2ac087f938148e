"""What a path over lambda leaves: ``path.json`` and ``path.csv``, a row for each lambda.

The columns ``kept``, ``entered`` and ``left`` name groups; in the CSV file each is a JSON list, so
that any name survives.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spr_or.certified_solver.lambda_path import PathPoint
from spr_or.tabular.prepare import OwnData
from spr_or.tabular.results import kept_groups, outcome
from spr_or.tabular.stored_result import StoredResult
from spr_or.utils.files import write_csv, write_text
from spr_or.utils.untrusted import UnreadableFile, read_json, read_text

_NAMES = ("kept", "entered", "left")


def path_rows(data: OwnData, points: Sequence[PathPoint]) -> list[dict[str, Any]]:
    """The outcome at each lambda, the groups it keeps (largest weights first), and those that
    entered or left since the lambda before it."""
    rows = []
    before: list[str] = []
    for point in points:
        kept = [group.name for group in kept_groups(data, point.certificate)]
        rows.append(
            {
                "lam": point.lam,
                "groups_kept": len(kept),
                **outcome(point.certificate),
                "kept": kept,
                "entered": [name for name in kept if name not in before],
                "left": [name for name in before if name not in kept],
            }
        )
        before = kept
    return rows


def write_path(folder: Path, data: OwnData, points: Sequence[PathPoint]) -> None:
    """Write the tables of a path so far; each file appears whole."""
    rows = path_rows(data, points)
    write_csv(folder / "path.csv", list(rows[0]), _named(rows))
    write_text(folder / "path.json", json.dumps(rows, indent=2) + "\n")


def _named(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for the CSV file, with each list of names as JSON."""
    return [
        row | {name: json.dumps(row[name], ensure_ascii=False) for name in _NAMES} for row in rows
    ]


def table_faults(
    folder: Path, places: Sequence[Path], results: Sequence[StoredResult]
) -> list[str]:
    """Whether path.json and path.csv say what the results of the lambdas say, and all of them.

    A path that was stopped early has rows for its first lambdas only; a result beyond them is in
    order where it says itself that it belongs to this path.
    """
    try:
        rows = read_json(folder / "path.json")
        lines = list(csv.DictReader(io.StringIO(read_text(folder / "path.csv"), newline="")))
    except (UnreadableFile, csv.Error) as error:
        return [str(error)]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return ["path.json is no list of rows"]
    faults = []
    if len(rows) > len(results):
        faults.append(f"path.json has {len(rows)} rows, the folder {len(results)} results")
    faults += [
        f"{place.name} is not in path.json: it is left from another solve"
        for place, result in list(zip(places, results, strict=True))[len(rows) :]
        if result.path is None
    ]
    before: list[str] = []
    for place, row, result in zip(places, rows, results, strict=False):
        expected = _row_of(result, before)
        wrong = [key for key, value in expected.items() if not _equal(row.get(key), value)]
        faults += [f"path.json states another {key} than {place.name}" for key in wrong]
        before = result.kept
    try:
        text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in _named(rows)]
    except KeyError as error:
        return [*faults, f"path.json has a row without {error}"]
    if lines != text:
        faults.append("path.csv does not say what path.json says")
    return faults


def _row_of(result: StoredResult, before: Sequence[str]) -> dict[str, Any]:
    """The row of a stored result after one that kept ``before``."""
    kept = result.kept
    return {
        "lam": result.lam,
        "groups_kept": len(kept),
        **result.outcome.model_dump(),
        "kept": kept,
        "entered": [name for name in kept if name not in before],
        "left": [name for name in before if name not in kept],
    }


def _equal(stated: Any, value: Any) -> bool:
    """Equal, numbers to the digits in which sums may differ with the number of threads."""
    if isinstance(value, float) and isinstance(stated, int | float):
        return math.isclose(stated, value, rel_tol=1e-9)
    return bool(stated == value)

"""What a path over lambda leaves: ``path.json`` and ``path.csv``, a row for each lambda.

The columns ``kept``, ``entered`` and ``left`` name groups; in the CSV file each is a JSON list, so
that any name survives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spr_or.certified_solver.lambda_path import PathPoint
from spr_or.tabular.prepare import OwnData
from spr_or.tabular.results import kept_groups, outcome
from spr_or.utils.files import write_csv, write_text

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
    named = [
        row | {name: json.dumps(row[name], ensure_ascii=False) for name in _NAMES} for row in rows
    ]
    write_csv(folder / "path.csv", list(rows[0]), named)
    write_text(folder / "path.json", json.dumps(rows, indent=2) + "\n")

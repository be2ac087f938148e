"""Which lambda of a path was chosen: ``choice.json`` as it is stored, read and checked.

`spr_or.tabular.path_choice` writes it, and ``choice.csv`` and ``choice.png`` beside it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from spr_or.tabular.choice_rule import chosen
from spr_or.tabular.source import TableError
from spr_or.tabular.stored_result import StoredResult
from spr_or.utils.untrusted import UnreadableFile, read_json, read_text

NAME, TABLE, PICTURE = "choice.json", "choice.csv", "choice.png"


class StoredCandidate(BaseModel):
    """One lambda and alpha; the held-out loss is None without cross-validation, the gap where nothing is
    proven."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)

    alpha: float
    lam: float
    groups_kept: int
    held_out_loss: float | None = None
    standard_error: float | None = None
    bic: float
    ebic: float
    gap: float | None
    kept: list[str]

    @property
    def loss(self) -> float:
        """The held-out loss."""
        return math.nan if self.held_out_loss is None else self.held_out_loss

    @property
    def spread(self) -> float:
        """Its standard error."""
        return math.nan if self.standard_error is None else self.standard_error


class StoredChoice(BaseModel):
    """The content of ``choice.json``; ``chosen`` is the folder of the chosen lambda."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)

    criterion: Literal["cv", "bic", "ebic"]
    rule: Literal["one standard error"] | None
    folds: int | None
    chosen: str
    lam: float
    compared: list[StoredCandidate]


def read_choice(folder: Path) -> StoredChoice | None:
    """The choice in ``folder``, or None; raises `TableError` for a damaged one."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return StoredChoice.model_validate(read_json(path))
    except UnreadableFile as error:
        raise TableError(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TableError(f"{path} is damaged: {place}: {first['msg']}") from None


def chosen_in(folder: Path, places: Sequence[Path]) -> Path | None:
    """The folder, among ``places``, of the chosen lambda, or None without a choice; `TableError` for a
    damaged one."""
    choice = read_choice(folder)
    if choice is None:
        return None
    for place in places:
        if place.relative_to(folder).as_posix() == choice.chosen:
            return place
    raise TableError(f"{folder / NAME} is damaged: it names no lambda of the path")


def clear_choice(folder: Path) -> None:
    """Remove the choice of an earlier solve."""
    for name in (NAME, TABLE, PICTURE):
        (folder / name).unlink(missing_ok=True)


def choice_faults(
    folder: Path,
    places: Sequence[Path],
    results: Sequence[StoredResult],
    criteria: Sequence[tuple[float, float] | None],
) -> list[str]:
    """What does not hold of the choice in ``folder``.

    Parameters
    ----------
    places, results : of all lambdas, those of the first alpha first
    criteria : BIC and EBIC of each result, as a check of it computed them (None: it did not hold)

    Every number that follows from the results has to be the one that does, and the rule has to give the
    chosen lambda from the curve as it is written.  Held-out losses are not computed again: they take the fits
    on all folds.
    """
    try:
        choice = read_choice(folder)
        if choice is None:
            return [f"{TABLE} is there, and {NAME}, which says what was chosen, is not"]
        lines = list(csv.DictReader(io.StringIO(read_text(folder / TABLE), newline="")))
    except (TableError, UnreadableFile, csv.Error) as error:
        return [str(error)]
    rows = choice.compared
    if len(rows) != len(results):
        return [f"{NAME} compares {len(rows)} lambdas, the folder holds {len(results)}"]
    names = [place.relative_to(folder).as_posix() for place in places]
    faults = [
        f"{NAME} states another {key} than {name}"
        for name, row, result, known in zip(names, rows, results, criteria, strict=True)
        for key in _differences(row, result, known)
    ]
    if choice.chosen not in names:
        return [*faults, f"{NAME} names {choice.chosen!r}, which is no lambda of the path"]
    place = names.index(choice.chosen)
    if choice.lam != rows[place].lam:
        faults.append(f"{NAME} states another lambda than {choice.chosen} has")
    if (choice.criterion == "cv") != (choice.rule is not None):
        faults.append(f"{NAME} has the rule {choice.rule!r} for the criterion {choice.criterion}")
    held = [row.held_out_loss is not None and row.standard_error is not None for row in rows]
    if choice.criterion == "cv" and not all(held):
        return [*faults, f"{NAME} was chosen by cross-validation and lacks held-out losses"]
    right = chosen(rows, choice.criterion)
    if right != place:
        faults.append(f"by the rule {names[right]} would be chosen, {NAME} says {choice.chosen}")
    if lines != [_line(row, i == place) for i, row in enumerate(rows)]:
        faults.append(f"{TABLE} does not say what {NAME} says")
    return faults


def _differences(
    row: StoredCandidate, result: StoredResult, known: tuple[float, float] | None
) -> list[str]:
    """What a row states otherwise than the result of its lambda does, or than follows from it."""
    wrong = {
        "lambda": row.lam != result.lam,
        "alpha": row.alpha != result.alpha,
        "choice of groups": sorted(row.kept) != sorted(result.kept)
        or row.groups_kept != len(row.kept),
        "gap": row.gap != result.outcome.gap,
    }
    if known is not None:
        wrong["BIC"] = not math.isclose(row.bic, known[0], rel_tol=1e-6, abs_tol=1e-6)
        wrong["EBIC"] = not math.isclose(row.ebic, known[1], rel_tol=1e-6, abs_tol=1e-6)
    return [key for key, fault in wrong.items() if fault]


def _line(row: StoredCandidate, best: bool) -> dict[str, str]:
    """A row as it stands in the table."""
    content: dict[str, Any] = row.model_dump(exclude_unset=True) | {"chosen": best}
    content["kept"] = json.dumps(row.kept, ensure_ascii=False)
    return {key: "" if value is None else str(value) for key, value in content.items()}

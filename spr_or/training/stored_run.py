"""What a run has left in its folder: its recipe and its summary, whole or named as damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spr_or.training.report.summary import MEASURES, Summary
from spr_or.utils.untrusted import UnreadableFile, read_json

RECIPE, SUMMARY = "recipe.json", "summary.json"
# Methods other than SPR have no step of SPR to measure.
_NEEDED = tuple(key for key in MEASURES if key != "spr_step_overhead")


class DamagedFile(ValueError):
    """A file that is cut, or holds something else than it should; the message names it."""


def read_summary(folder: Path, needed: Sequence[str] = _NEEDED) -> Summary | None:
    """``summary.json`` of a finished run; None if it is not there.

    Raises `DamagedFile`, also where a measure of ``needed`` is no number or the recipe is missing.
    """
    summary = _read(folder / SUMMARY)
    if summary is None:
        return None
    wrong = [key for key in needed if not _is_number(summary.get(key))]
    if not isinstance(summary.get("recipe"), dict):
        wrong.append("recipe")
    if wrong:
        raise DamagedFile(
            f"{folder / SUMMARY} is not the summary of a run: it lacks {', '.join(wrong)}"
        )
    return summary


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """``recipe.json`` of a run that was begun; None if it is not there. Raises `DamagedFile`."""
    recipe = _read(folder / RECIPE)
    if recipe is not None and not {"model", "spr"} <= recipe.keys():
        raise DamagedFile(f"{folder / RECIPE} is not the recipe of a run: it lacks model or spr")
    return recipe


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except UnreadableFile as error:
        raise DamagedFile(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    return content


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

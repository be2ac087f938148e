"""Which lambda of a path was chosen, read from ``choice.json``; `spr_or.tabular.path_choice` writes it."""

from __future__ import annotations

import re
from pathlib import Path

from spr_or.tabular.source import TableError
from spr_or.utils.untrusted import UnreadableFile, read_json

NAME = "choice.json"


def chosen_in(folder: Path) -> Path | None:
    """The folder of the chosen lambda of a path, or None; `TableError` for a damaged choice."""
    if not (folder / NAME).exists():
        return None
    try:
        name = read_json(folder / NAME)["chosen"]
    except (UnreadableFile, KeyError, TypeError) as error:
        raise TableError(f"{folder / NAME} is damaged: {error}") from None
    if not isinstance(name, str) or not re.fullmatch(r"lambda-[0-9]{2,6}", name):
        raise TableError(f"{folder / NAME} is damaged: it names no lambda of the path")
    return folder / name

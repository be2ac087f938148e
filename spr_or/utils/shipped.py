"""Recipes, sweeps and published figures that come with SPR-OR, found from any folder.

In a checkout they are in ``experiments``, in a wheel in ``spr_or/shipped`` (``setup.py``).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).parents[1]

Kind = Literal["recipes", "tables", "comparisons", "reference", "results"]


def shipped_folder(kind: Kind) -> Path:
    """The folder of the shipped recipes, of the paper's tables and figures, or of stored results.

    >>> (shipped_folder("reference") / "paper_results.csv").is_file()
    True
    """
    wheel = _PACKAGE / "shipped" / kind
    return wheel if wheel.is_dir() else _PACKAGE.parent / "experiments" / kind


def shipped_names(kind: Literal["recipes", "tables", "comparisons"]) -> list[str]:
    """The names that `find_shipped` knows.

    >>> "digits" in shipped_names("recipes")
    True
    """
    return sorted(file.stem for file in shipped_folder(kind).glob("*.toml"))


def find_shipped(given: str | Path, kind: Literal["recipes", "tables", "comparisons"]) -> Path:
    """The file that ``given`` means: an existing file, else the shipped one of that name.

    Raises ``FileNotFoundError`` that lists the shipped names, the nearest one first.

    >>> find_shipped("digits", "recipes").name
    'digits.toml'
    """
    path = Path(given)
    if path.exists() and not path.is_dir():
        return path
    names = shipped_names(kind)
    if str(given) in names:
        return shipped_folder(kind) / f"{given}.toml"
    near = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    wrong = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
    raise FileNotFoundError(f"{wrong}. {hint[:1].upper()}{hint[1:]}Shipped are {', '.join(names)}")

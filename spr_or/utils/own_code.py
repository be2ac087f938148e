"""Where in the user's own code an error arose."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from pathlib import Path


def line_of(error: BaseException) -> str:
    """ "file:line: code", the last line outside of this package, torch and Python's own machinery.

    Empty where there is none.

    >>> line_of(ValueError("raised nowhere"))
    ''
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_not_own()):
            return f"{frame.filename}:{frame.lineno}: {frame.line}".rstrip(": ")
    return ""


def _not_own() -> tuple[str, ...]:
    folders = [Path(__file__).parents[1], Path(importlib.__file__).parent]
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.origin:
        folders.append(Path(torch.origin).parent)
    return ("<", *(f"{folder}/" for folder in folders), str(Path(importlib.__file__).parent))

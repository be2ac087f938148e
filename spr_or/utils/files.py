"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_aside(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it in the place of `path` atomically.

    If `write` raises, whatever `path` held is still there and the unfinished file is gone; a
    killed process can leave only the unfinished file, under a hidden name of its own.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_aside(path, lambda aside: aside.write_text("whole"))
    >>> path.read_text()
    'whole'
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a dictionary of plain values as JSON; `ValueError` for a number that is not finite."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))

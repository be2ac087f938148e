"""Checks that an output can be written, made before the work begins.

Each function serves as ``callback`` of a typer option: it returns the path, or ends the command with
a message that names the option.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer

PICTURES = (".png", ".pdf", ".svg")


def file(path: Path | None) -> Path | None:
    """A file in a folder that exists and can be written to."""
    if path is None:
        return None
    folder = path.absolute().parent
    if not folder.is_dir():
        raise typer.BadParameter(f"the folder of {path} does not exist: make it first")
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder: name a file in it")
    _try(folder)
    return path


def picture(path: Path | None) -> Path | None:
    """As `file`, with an ending that says which kind of picture it is."""
    if path is not None and path.suffix.lower() not in PICTURES:
        kinds = ", ".join(PICTURES)
        raise typer.BadParameter(f"{path} must end in one of {kinds}, the kinds of picture")
    return file(path)


def folder(path: Path | None) -> Path | None:
    """A folder that can be written to, or made: nothing is made yet."""
    if path is None:
        return None
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise typer.BadParameter(f"{there} is a file, not a folder: give another one")
    _try(there)
    return path


def _try(folder: Path) -> None:
    """Write a file without a name there: permissions do not show whether a disk is full or read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise typer.BadParameter(f"cannot write to {folder}: {error.strerror or error}") from None

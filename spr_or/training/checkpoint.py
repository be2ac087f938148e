"""Checkpoints of a run: ``last.pt``, ``previous.pt`` and ``best.pt``, whole or not there.

A checkpoint is a dict of tensors, numbers, strings, lists and dicts; it is read with
``weights_only=True``, so reading one executes nothing.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from spr_or.training import distributed
from spr_or.utils.files import write_durably

State = dict[str, Any]
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
FORMAT = 1
_NEXT = "next.pt"  # whole, and about to become the last


class CheckpointError(RuntimeError):
    """No usable checkpoint; the message names the files and what is wrong with them."""


def save_last(folder: Path, state: State) -> None:
    """Make ``state`` the last checkpoint; the one before it becomes ``previous.pt``.

    Killed at any moment, this leaves at least one whole checkpoint. Raises `DiskFull`, with the
    old checkpoints untouched. Does nothing in a process that is not the first of several.
    """
    if not distributed.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    last, following = folder / LAST, folder / _NEXT
    _write(following, state)
    if last.exists():
        last.replace(folder / PREVIOUS)
    following.replace(last)


def save_best(folder: Path, state: State) -> None:
    """Write ``best.pt``; does nothing in a process that is not the first of several."""
    if not distributed.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / BEST, state)


def _write(path: Path, state: State) -> None:
    def write(aside: Path) -> None:
        # Given a path, torch would write it itself and hide why the system refused.
        with aside.open("wb") as stream:
            torch.save({"format": FORMAT, **state}, stream)

    write_durably(path, write)


def load(path: Path) -> State:
    """Read one checkpoint to the CPU; raises `CheckpointError` naming the file if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: {damaged} in it has a wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except Exception as error:  # a cut file makes zipfile and torch raise many kinds
        raise CheckpointError(f"{path} is truncated or no checkpoint ({error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another version of this program")
    return state


def load_last(folder: Path) -> tuple[State | None, str | None]:
    """The newest usable checkpoint, and a warning if it is not the last one that was written.

    (None, None) if there is none at all. Raises `CheckpointError` if neither file can be used.
    """
    candidates = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    faults: list[str] = []
    for path in candidates:
        try:
            state = load(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        return state, f"{'; '.join(faults)}: continuing from {path}" if faults else None
    if not candidates:
        return None, None
    raise CheckpointError(
        "; ".join(faults) + f". No checkpoint is usable: remove {folder} to start afresh"
    )

"""Trained networks that come with SPR-OR, found by name and checked by their hash.

``experiments/results/NAME/dense.safetensors`` is named in ``SHA256SUMS`` beside it, in the format of
the program sha256sum.
"""

from __future__ import annotations

from pathlib import Path

from spr_or.utils.files import file_hash
from spr_or.utils.shipped import shipped_folder

_FILE = "dense.safetensors"
_SUMS = "SHA256SUMS"


def stored_names() -> list[str]:
    """The names that `find_weights` knows."""
    return sorted(file.parent.name for file in shipped_folder("results").glob(f"*/{_FILE}"))


def find_weights(given: str | Path) -> Path:
    """The file that ``given`` means: a path, or a stored network by its name.

    A path is returned as it is, whether or not there is a file. Raises ``ValueError`` for a stored
    network whose hash is not the one it was stored with.
    """
    path = Path(given)
    name = str(given)
    if path.exists() or name not in stored_names():
        return path
    stored = shipped_folder("results") / name / _FILE
    check_hash(stored)
    return stored


def check_hash(path: Path) -> None:
    """Raise ``ValueError`` unless ``SHA256SUMS`` beside ``path`` has the hash of its bytes."""
    sums = path.parent / _SUMS
    if not sums.is_file():
        raise ValueError(f"{sums} is missing, so {path} cannot be checked")
    wanted = {}
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition(" ")
        wanted[name.strip().removeprefix("*")] = digest
    found = file_hash(path)
    if wanted.get(path.name) != found:
        raise ValueError(
            f"{path} has the hash {found}, but {sums} says {wanted.get(path.name, 'nothing of it')}: "
            "the file is damaged or was replaced; get it again from where SPR-OR came from"
        )

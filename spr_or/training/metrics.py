"""What happened in each epoch: a line of JSON each, and TensorBoard if it is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spr_or.training import distributed
from spr_or.utils.files import disk_full_explained, write_text

Record = dict[str, Any]
Epoch = tuple[str, int]  # phase and number, from 0


def read_metrics(path: Path) -> list[Record]:
    """The records of a file, up to a line that a crash cut short (see `what_is_lost`)."""
    return _read(path)[0]


def what_is_lost(path: Path, expected: Sequence[Epoch]) -> str | None:
    """What to tell about a file that should hold the epochs ``expected``; None if all is well.

    >>> what_is_lost(Path("none/metrics.jsonl"), [("dense", 0), ("dense", 1), ("spr", 0)])
    'none/metrics.jsonl: no records of dense 0, dense 1, spr 0; reports lack them, the training ...'
    """
    records, damaged = _read(path)
    known = {(record.get("phase"), record.get("epoch")) for record in records}
    lost = [epoch for epoch in expected if epoch not in known]
    faults = [] if damaged is None else [f"line {damaged} is cut or damaged"]
    if lost:
        names = ", ".join(f"{phase} {number}" for phase, number in lost)
        faults.append(f"no records of {names}; reports lack them, the training loses nothing")
    elif damaged is not None:
        faults.append("its epoch is repeated")
    return f"{path}: {', '.join(faults)}" if faults else None


def _read(path: Path) -> tuple[list[Record], int | None]:
    """The records up to the first line that holds none, and the number of that line."""
    records: list[Record] = []
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                return records, number
            if not isinstance(record, dict):  # "12" of a cut "12.5" is JSON, too
                return records, number
            records.append(record)
    return records, None


class Metrics:
    """``metrics.jsonl`` of a run; ``kept`` records of an earlier start stay, later ones go.

    So a resumed run, which repeats the epochs after its checkpoint, has each epoch once.
    """

    def __init__(self, folder: Path, kept: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.records = read_metrics(self.path)[:kept]
        self._board = None
        if distributed.is_first():
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
            self._board = _tensorboard(folder / "tensorboard", kept)

    def add(self, record: Record) -> None:
        """Append one epoch; raises `DiskFull`."""
        with disk_full_explained(self.path):
            if distributed.is_first():
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
            if self._board is not None:
                for key, value in record.items():
                    if isinstance(value, int | float):
                        self._board.add_scalar(key, value, len(self.records))
        self.records.append(record)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path, kept: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=kept)

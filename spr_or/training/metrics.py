"""What happened in each epoch: a line of JSON each, and TensorBoard if it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spr_or.training import distributed
from spr_or.utils.files import disk_full_explained, write_text

Record = dict[str, Any]


def read_metrics(path: Path) -> list[Record]:
    """The records of a file; a last line that a crash cut short is left out."""
    records: list[Record] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


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
        """Append one epoch."""
        if distributed.is_first():
            with disk_full_explained(self.path), self.path.open("a", encoding="utf-8") as stream:
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

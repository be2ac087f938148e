"""What a run shows while it works: one bar for the phase, and lines worth keeping."""

from __future__ import annotations

from spr_or.training.metrics import Record
from spr_or.utils.progress_bar import BarDisplay


class RunDisplay(BarDisplay):
    """A progress bar on stderr; ``quiet`` shows nothing at all.

    >>> with RunDisplay(quiet=True) as display:
    ...     display.phase("dense", epochs=2, rows=10, done=0)
    ...     display.rows(10)
    """

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet, remaining=True)

    def phase(self, name: str, epochs: int, rows: int, done: int) -> None:
        """Begin a phase of ``epochs`` epochs of ``rows`` images, ``done`` epochs of it finished."""
        self.begin(name, total=epochs * rows, done=done * rows)

    def rows(self, count: int) -> None:
        """So many more images."""
        self.bar.advance(self.task, count)

    def epoch(self, record: Record) -> None:
        """The scores of a finished epoch."""
        text = f"loss {record['loss']:.3f}  accuracy {record['eval_accuracy']:.2f} %"
        if "masked_filter_weights_pct" in record:
            text += f"  in zero filters {record['masked_filter_weights_pct']:.1f} %"
        self.bar.update(self.task, state=text)

    def decoding(self, what: str, done: int, total: int) -> None:
        """Images decoded so far."""
        self.bar.update(
            self.task, description=what, completed=done, total=total, visible=True, state=""
        )

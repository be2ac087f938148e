"""What a run shows while it works: one bar for the phase, and lines worth keeping."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from spr_or.training.metrics import Record


class Display:
    """A progress bar on stderr; ``quiet`` shows nothing at all.

    >>> with Display(quiet=True) as display:
    ...     display.phase("dense", epochs=2, rows=10, done=0)
    ...     display.rows(10)
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}"),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task("", scores="", visible=False)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def phase(self, name: str, epochs: int, rows: int, done: int) -> None:
        """Begin a phase of ``epochs`` epochs of ``rows`` images, ``done`` epochs of it finished."""
        self._bar.reset(
            self._task, total=epochs * rows, completed=done * rows, description=name, visible=True
        )
        self._bar.update(self._task, scores="")

    def rows(self, count: int) -> None:
        """So many more images."""
        self._bar.advance(self._task, count)

    def epoch(self, record: Record) -> None:
        """The scores of a finished epoch."""
        text = f"loss {record['loss']:.3f}  accuracy {record['eval_accuracy']:.2f} %"
        if "masked_filter_weights_pct" in record:
            text += f"  pruned {record['masked_filter_weights_pct']:.1f} %"
        self._bar.update(self._task, scores=text)

    def decoding(self, what: str, done: int, total: int) -> None:
        """Images decoded so far."""
        self._bar.update(
            self._task, description=what, completed=done, total=total, visible=True, scores=""
        )

    def say(self, message: str) -> None:
        """A line that stays."""
        self.console.print(message, highlight=False, soft_wrap=True, markup=False)

    def warn(self, message: str) -> None:
        """A line that stays and is seen."""
        self.console.print(f"warning: {message}", style="yellow", soft_wrap=True, markup=False)

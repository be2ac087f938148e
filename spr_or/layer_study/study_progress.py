"""What a study shows while it works: the layer at hand, its gap, and a line for each that is done."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from spr_or.layer_study.study import Study
from spr_or.proof.certificate import SearchProgress


class Display:
    """A bar on stderr, full when the layer's time is over; ``quiet`` shows nothing at all.

    >>> with Display(quiet=True) as display:
    ...     display.layer("conv1", 1, 3, seconds=10.0)
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task("", state="", visible=False)

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

    def say(self, message: str) -> None:
        """A line that stays."""
        self.console.print(message, highlight=False, soft_wrap=True, markup=False)

    def layer(self, name: str, number: int, count: int, seconds: float) -> None:
        """A layer begins, with so many seconds for it."""
        title = f"{number}/{count} {name}"
        self._bar.reset(self._task, total=seconds, description=title, visible=True)
        self._bar.update(self._task, state="")

    def search(self, now: SearchProgress) -> None:
        """Where the search of that layer stands."""
        state = f"gap {100 * now.gap:.1f} %, {now.nodes} nodes, {now.open} open"
        self._bar.update(self._task, completed=now.seconds, state=state)

    def done(self, study: Study) -> None:
        """A layer is stored."""
        best = len(study.choices["best"].channels)
        self.say(
            f"{study.layer}: {best} of {study.inputs} channels, gap {100 * study.gap:.2f} %, "
            f"{study.nodes} nodes, {study.seconds:.1f} s ({study.status})"
        )

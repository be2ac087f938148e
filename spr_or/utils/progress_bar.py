"""A progress bar on stderr, and lines that stay above it."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from spr_or.utils.printable import one_line, printable


class BarDisplay:
    """One bar with a description in front and a state behind; ``quiet`` shows nothing at all.

    ``remaining`` adds an estimate of the time left.

    >>> with BarDisplay(quiet=True) as display:
    ...     display.begin("decoding", total=10)
    ...     display.say("ten images")
    """

    def __init__(self, quiet: bool = False, remaining: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            *([TimeRemainingColumn()] if remaining else []),
            TextColumn("{task.fields[state]}", markup=False),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("", state="", visible=False)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def begin(self, what: str, total: float, done: int = 0) -> None:
        """Start the bar anew, ``done`` of ``total`` finished."""
        self.bar.reset(
            self.task, total=total, completed=done, description=one_line(what), visible=True
        )
        self.bar.update(self.task, state="")

    def say(self, message: str) -> None:
        """A line that stays."""
        self.console.print(printable(message), highlight=False, soft_wrap=True, markup=False)

    def warn(self, message: str) -> None:
        """A line that stays and is seen."""
        text = f"warning: {printable(message)}"
        self.console.print(text, style="yellow", soft_wrap=True, markup=False)

"""What all commands share on the terminal: lines, tables, progress, and the end with an error.

Results go to stdout, progress and errors to stderr. rich is imported where something is shown.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from spr_or.utils.printable import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_PIPE = 10_000  # columns
_QUIET = 10.0  # seconds between two lines about one step where there is no terminal


def console(stderr: bool = False) -> Console:
    """A console that shows text as it is: no markup, no colours for numbers, no wrapped paths.

    A pipe or a file has any width, so that a table in it is never cut off.
    """
    from rich.console import Console

    screen = Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = _PIPE
    return screen


def styled(text: str, style: str) -> Text:
    """Text in a style such as "green" or "bold red"."""
    from rich.text import Text

    return Text(printable(text), style=style)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    title: str = "",
    text: Collection[str] = (),
) -> Table:
    """A table in the one style of all commands.

    ``text`` names the columns of words: to the left, and folded where the terminal is narrow. The
    others hold numbers: to the right, never broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(one_line(title)) if title else None, title_justify="left", box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for name in columns:
        if name in text:
            made.add_column(one_line(name), overflow="fold")
        else:
            made.add_column(one_line(name), justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(one_line(c)) if isinstance(c, str) else c for c in row))
    return made


def show(screen: Console, shown: Table) -> None:
    """Print a table, within the width of the console."""
    screen.print(shown, soft_wrap=False)


def say(screen: Console, message: str, style: str | None = None, indent: str = "") -> None:
    """A line; on a terminal broken between words, with what follows indented.

    Line breaks inside become blanks: no name in the message can pose as a line of its own.
    """
    message = one_line(message.replace("\n", " "))
    if screen.is_terminal:
        message = textwrap.fill(
            message, screen.width, subsequent_indent=indent, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
    screen.print(message, style=style)


def complain(message: str, colour: str = "yellow") -> None:
    """A line on stderr."""
    typer.secho(one_line(message.replace("\n", " ")), fg=colour, err=True)


def failed(message: object, status: int) -> typer.Exit:
    """Say on stderr what went wrong; raise the result to end with that status.

    Further lines are indented: none of them can be taken for a line of the command.
    """
    text = printable(str(message)).replace("\n", "\n  ")
    typer.secho(f"error: {text}", fg="red", bold=True, err=True)
    return typer.Exit(status)


class Progress:
    """Which step is at work: see `progress`."""

    def __init__(self, screen: Console, status: Any) -> None:
        self._screen, self._status = screen, status
        self._step, self._said = "", time.monotonic()

    def step(self, text: str) -> None:
        """A step begins."""
        self._step = text
        self._tell(text, always=True)

    def detail(self, text: str) -> None:
        """Where that step stands."""
        self._tell(f"{self._step}: {text}" if self._step else text, always=False)

    def _tell(self, text: str, always: bool) -> None:
        if self._status is not None:
            self._status.update(styled(text, "cyan"))
        elif always or time.monotonic() - self._said > _QUIET:
            self._said = time.monotonic()
            self._screen.print(one_line(text))


@contextmanager
def progress() -> Iterator[Progress]:
    """Progress on stderr: one line that changes on a terminal, else a plain line for each step.

    Details of a step come at most every ten seconds where there is no terminal. Print results after
    the end: a line that changes and another output do not go together.
    """
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield Progress(screen, None)
        return
    with screen.status("") as status:
        yield Progress(screen, status)

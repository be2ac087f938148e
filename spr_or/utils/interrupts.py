"""Ctrl-C where it may not fall between two statements, or where a library keeps it to itself."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def answered_by(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Let ``handler`` answer Ctrl-C in the block.

    Nothing changes where Ctrl-C is ignored, and in threads, since Python answers signals in the main one.
    """
    before = _handler()
    if before is None:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def held_interrupt() -> Iterator[None]:
    """Ctrl-C waits until the block has ended, and is answered then.

    For a process that is started: a `KeyboardInterrupt` inside `subprocess.Popen` leaves the child
    behind, and nobody knows it.

    Example
    -------
    >>> import subprocess, sys
    >>> child = None
    >>> try:
    ...     with held_interrupt():
    ...         child = subprocess.Popen([sys.executable, "-c", ""])
    ...     status = child.wait()
    ... finally:
    ...     if child is not None:
    ...         child.kill()
    >>> status
    0
    """
    pressed = False

    def note(signum: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True

    try:
        with answered_by(note):
            yield
    finally:
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def heard_interrupt() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C came since the block began; it is answered as before.

    For solvers that catch it and return as if they had failed.

    Example
    -------
    >>> with heard_interrupt() as pressed:
    ...     try:
    ...         signal.raise_signal(signal.SIGINT)
    ...     except KeyboardInterrupt:
    ...         pass
    >>> pressed()
    True
    """
    before, pressed = _handler(), False

    def note(signum: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        if before is not None:
            before(signum, frame)

    with answered_by(note):
        yield lambda: pressed


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that `multiprocessing` starts in the block do not get Ctrl-C; who starts them ends them.

    The terminal sends it to all processes of a command. One that is still importing then ends with a
    traceback, long before its code could ignore the signal.
    """
    if os.name != "posix":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handler() -> Callable[..., Any] | None:
    """What answers Ctrl-C; None where it is ignored, and in a thread, to which no signal comes."""
    handler = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    return handler if main and callable(handler) else None

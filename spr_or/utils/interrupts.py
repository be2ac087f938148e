"""Ctrl-C where it may not fall between two statements."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_interrupt() -> Iterator[None]:
    """Ctrl-C waits until the block has ended, and is answered then.

    For a process that is started: a `KeyboardInterrupt` inside `subprocess.Popen` leaves the child
    behind, and nobody knows it. Python answers signals in the main thread only, so elsewhere, and
    where Ctrl-C is ignored, there is nothing to hold.

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
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed = False

    def note(signum: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)

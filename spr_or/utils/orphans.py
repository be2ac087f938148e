"""Processes that end when the one that started them has ended, even if that was killed."""

from __future__ import annotations

import multiprocessing
import os
import stat
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """For a child of `multiprocessing`: end it when its parent ends, or has ended already.

    Raises ``RuntimeError`` in a process that `multiprocessing` has not started.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process is no child of multiprocessing")
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_input() -> None:
    """End this process when nobody holds the other end of the pipe that is its standard input.

    Where the standard input is no pipe, nothing happens.
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

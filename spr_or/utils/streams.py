"""Standard streams that the caller has closed."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> None:
    """Open what is closed of stdin, stdout and stderr, on the null device.

    A daemon may start a program without them. The next file that is opened would then get the number
    of one of them, and hold what libraries print; and Python has None for the stream, which libraries
    flush.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, "w" if number else "r", encoding="utf-8"))

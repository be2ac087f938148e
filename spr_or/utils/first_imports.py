"""The first import of torch without the garbage collector, which takes a third of its time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """For the imports of a command: what they make stays, so that there is nothing to collect.

    The objects are frozen afterwards: neither a later collection nor the end of Python looks at them
    again.  Where torch was imported before, nothing is changed.

    >>> with collector_paused():
    ...     import torch
    >>> gc.isenabled()
    True
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

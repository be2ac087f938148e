"""HiGHS in a separate thread, so that a time limit and Ctrl-C stop it at once."""

from __future__ import annotations

import math
from typing import Any

from spr_or.solvers.time_limit import TimeLimit
from spr_or.utils.interrupts import held_interrupt


def run_highs(highs: Any, clock: TimeLimit) -> str:
    """Run a HiGHS model for the time that is left; the model status in words.

    The solver runs in a separate thread, so that Ctrl-C reaches Python at once. HiGHS is then told to
    stop, and the ``KeyboardInterrupt`` is raised when it has stopped. A thread of its own also has
    HiGHS's threads of its own: HiGHS refuses a model that asks for another number of threads than the
    model before it in the same thread.
    """
    # HiGHS counts its time over all runs of one model, hence the sum.
    if math.isfinite(clock.limit):
        highs.setOptionValue("time_limit", highs.getRunTime() + max(clock.left(), 1e-3))
    if not highs.HandleUserInterrupt:
        highs.HandleUserInterrupt = True
    thread = None
    try:
        with held_interrupt():
            thread = highs.startSolve()
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        if thread is not None:
            highs.cancelSolve()
            with held_interrupt():  # a solver that Python leaves behind aborts the process
                thread.join()
        raise
    return highs.modelStatusToString(highs.getModelStatus())

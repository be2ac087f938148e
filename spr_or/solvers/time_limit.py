"""Time limits and Ctrl-C: a solve that is stopped still answers with what it has proven.

Every way of solving keeps its best point and bound where an ``except KeyboardInterrupt`` finds them,
and asks one `Budget` how long it has been at work and how long it may go on.
"""

from __future__ import annotations

import math
import time
from typing import Any


class Budget:
    """A stopwatch with a limit, both in seconds of wall-clock time.

    Raises ``ValueError`` for a limit that is negative or not a number.

    >>> Budget(None).spent, Budget(0).spent, Budget(60.0).left() > 59
    (False, True, True)
    """

    def __init__(self, time_limit: float | None) -> None:
        if time_limit is not None and not time_limit >= 0:
            raise ValueError(f"time_limit must be None or at least 0 seconds, got {time_limit}")
        self.limit = math.inf if time_limit is None else float(time_limit)
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the budget was opened."""
        return time.perf_counter() - self._start

    def left(self) -> float:
        """Time that remains, at least 0; inf without a limit."""
        return max(0.0, self.limit - self.seconds)

    @property
    def spent(self) -> bool:
        """Whether nothing remains."""
        return self.left() == 0


def run_highs(highs: Any, budget: Budget) -> str:
    """Run a HiGHS model for what is left of the budget; the model status in words.

    The solver runs in a thread of its own, so that Ctrl-C reaches Python at once: HiGHS is told to
    stop, awaited, and the ``KeyboardInterrupt`` passed on.
    """
    # HiGHS counts its time over all runs of one model, hence the sum.
    if math.isfinite(budget.limit):
        highs.setOptionValue("time_limit", highs.getRunTime() + max(budget.left(), 1e-3))
    if not highs.HandleUserInterrupt:
        highs.HandleUserInterrupt = True
    thread = highs.startSolve()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        highs.cancelSolve()
        thread.join()
        raise
    return highs.modelStatusToString(highs.getModelStatus())

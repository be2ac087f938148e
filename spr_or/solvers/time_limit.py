"""Time limits: a solve that is stopped still returns what it has proven.

Every solver keeps its best point and bound where an ``except KeyboardInterrupt`` can read them. One
`TimeLimit` measures its running time and the time that is left.
"""

from __future__ import annotations

import math
import time


class TimeLimit:
    """A stopwatch with a limit, both in seconds of wall-clock time.

    Raises ``ValueError`` for a limit that is negative or not a number.

    >>> TimeLimit(None).spent, TimeLimit(0).spent, TimeLimit(60.0).left() > 59
    (False, True, True)
    """

    def __init__(self, time_limit: float | None) -> None:
        if time_limit is not None and not time_limit >= 0:
            raise ValueError(f"time_limit must be None or at least 0 seconds, got {time_limit}")
        self.limit = math.inf if time_limit is None else float(time_limit)
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the stopwatch was started."""
        return time.perf_counter() - self._start

    def left(self) -> float:
        """Time that remains, at least 0; inf without a limit."""
        return max(0.0, self.limit - self.seconds)

    @property
    def spent(self) -> bool:
        """Whether nothing remains."""
        return self.left() == 0

"""Lambda in the course of a phase that has a budget, as SPR and the group lasso move it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from spr_or.pruning.budget import horizon_of, next_lam, reading_steps

EASE = 0.8  # of a lambda under which the network can hardly learn
_LOWER = 4.0  # what lambda is divided by after a collapse


class LamCourse:
    """Lambda, and what was read so far.

    Attributes
    ----------
    lam, start : the present value, and where it began
    last : lambda of the steps before the last reading
    ceiling : lambda does not rise above it
    target : the share that is to go, in percent; None: lambda stays as it is
    shares : what could go at each reading, in percent
    far : of the last reading, see `read`
    stops : after which steps of an epoch lambda is read, besides its end

    >>> course = LamCourse(1.0, epochs=10, target=50.0)
    >>> course.read(0.0)  # nothing could go yet, so it rises
    >>> round(course.lam, 6)
    3.0
    """

    def __init__(
        self, start: float, epochs: int, target: float | None = None, steps: int = 0
    ) -> None:
        """``steps`` of an epoch say whether lambda moves within epochs too, see `reading_steps`."""
        self.epochs, self.target = epochs, target
        self.stops = reading_steps(epochs, steps)
        self.shares: list[float] = []
        self.far: tuple[float, float] | None = None
        self.start_at(start)

    def start_at(self, lam: float) -> None:
        """Begin here: before the first epoch, for a lambda that is read off the network."""
        self.start = self.lam = self.last = lam
        self.ceiling = math.inf

    def is_read_after(self, step: int) -> bool:
        """Whether `read` is due when the epoch has had so many steps."""
        return self.target is not None and step in self.stops

    def rest(self, share: float) -> float:
        """What must still go, as a share of what is left when ``share`` percent could."""
        return max(0.0, (self.target or 0.0) - share) / max(100.0 - share, 1e-9)

    def read(
        self, share: float, far: tuple[float, float] | None = None, moves: bool = True
    ) -> None:
        """Take in what could go now, in percent, and move lambda by `next_lam` if it ``moves``.

        ``far``, in any unit, is how far from zero the last entity is that must still go, and the one that
        would empty its layer (`spr_or.pruning.largest_lam.distances_to_go`).  Entities often arrive at
        the same time, so that no share tells of them before; but they come nearer, and faster with a
        larger lambda.  So lambda rises no further than to where the first is zero after a tenth of the
        phase, and the second has come half its way at the next reading, at the pace since the last one, which
        is taken to grow with lambda.  For the second it also falls, to a quarter at most.
        """
        self.shares.append(share)
        self.last, before, self.far = self.lam, self.far, far
        if not moves or self.target is None:
            return
        readings = len(self.stops) + 1
        lam = next_lam(self.lam, self.start, self.shares, self.target, self.epochs, readings)
        if far is not None and before is not None:
            horizon = horizon_of(self.epochs, readings)
            (near, last), (near_before, last_before) = far, before
            if near < near_before:  # zero within the horizon at most
                lam = min(lam, self.lam * max(1.0, near / (near_before - near) / horizon))
            if last < last_before < math.inf:  # half its way until the next reading at most
                lam = min(lam, self.lam * max(0.25, 0.5 * last / (last_before - last)))
        self.lam = min(lam, self.ceiling)

    def read_within(self, steps: int) -> None:
        """From now on epochs are known to have so many steps: count time in their readings."""
        self.stops = reading_steps(self.epochs, steps)
        self.shares = [share for share in self.shares for _ in range(len(self.stops) + 1)]

    def ease(self, below: float | None = None) -> None:
        """Go on somewhat below lambda of the last steps, or ``below`` this, and never above it again."""
        if self.target is not None or below is not None:
            self.ceiling = min(self.ceiling, EASE * (self.last if below is None else below))
            self.lam = min(self.lam, self.ceiling)

    def stop(self) -> None:
        """The budget is met: lambda is 0 from now on, and nothing is read any more."""
        self.lam = self.ceiling = 0.0
        self.target = None

    def lower(self, times: int, failed: float) -> None:
        """Go on with lambda / 4^times, and stay below half of the one that ``failed``."""
        self.start_at(self.lam / _LOWER**times)
        self.ceiling = failed / 2

    def state(self) -> dict[str, Any]:
        """What `load` takes: for a checkpoint."""
        return {
            "lam": self.lam,
            "start": self.start,
            "last": self.last,
            "ceiling": self.ceiling,
            "shares": list(self.shares),
            "far": None if self.far is None else list(self.far),
            "stops": list(self.stops),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; those of older versions lack parts of it."""
        self.lam, self.shares = float(state["lam"]), list(state["shares"])
        self.start = float(state.get("start", self.start))
        self.last = float(state.get("last", self.lam))
        self.ceiling = float(state.get("ceiling", math.inf))
        self.stops = list(state.get("stops", []))
        far = state.get("far")
        self.far = None if far is None else (float(far[0]), float(far[1]))

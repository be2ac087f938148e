"""What a study shows while it works: the current layer, its gap, and a line for each finished one."""

from __future__ import annotations

from spr_or.layer_study.study import Study
from spr_or.proof.certificate import SearchProgress
from spr_or.utils.progress_bar import BarDisplay


class StudyDisplay(BarDisplay):
    """A bar on stderr, full when the layer's time is over; ``quiet`` shows nothing at all.

    >>> with StudyDisplay(quiet=True) as display:
    ...     display.layer("conv1", 1, 3, seconds=10.0)
    """

    def layer(self, name: str, number: int, count: int, seconds: float) -> None:
        """A layer begins; ``seconds`` is the time it may take."""
        self.begin(f"{number}/{count} {name}", total=seconds)

    def search(self, now: SearchProgress) -> None:
        """The progress of the search of that layer."""
        state = f"gap {100 * now.gap:.1f} %, {now.nodes} nodes, {now.open} open"
        self.bar.update(self.task, completed=now.seconds, state=state)

    def done(self, study: Study) -> None:
        """A layer is stored."""
        best = len(study.choices["best"].channels)
        self.say(
            f"{study.layer}: {best} of {study.inputs} channels, gap {100 * study.gap:.2f} %, "
            f"{study.nodes} nodes, {study.seconds:.1f} s ({study.status})"
        )

"""Limits of a search beside time: nodes and memory."""

from __future__ import annotations

import sys
from typing import NamedTuple

from spr_or.proof.certificate import SearchProgress

_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


class Limits(NamedTuple):
    """``nodes`` evaluated and ``memory_gb`` of the process, or None; asked after every round."""

    nodes: int | None = None
    memory_gb: float | None = None

    def reached(self, now: SearchProgress | None) -> str | None:
        """The status of a search that ends here, or None.

        >>> now = SearchProgress(0.1, 2.0, 1.0, 50, 3)
        >>> Limits(nodes=50).reached(now), Limits(nodes=51).reached(now)
        ('node_limit', None)
        """
        if self.nodes is not None and now is not None and now.nodes >= self.nodes:
            return "node_limit"
        if self.memory_gb is not None and most_memory_gb() >= self.memory_gb:
            return "memory_limit"
        return None


def most_memory_gb() -> float:
    """The most memory that this process has used so far, in GB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES / 1e9

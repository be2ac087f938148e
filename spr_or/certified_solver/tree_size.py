r"""How many nodes a tree will take, from how far its bound has come: whether a dearer relaxation pays.

A best-first tree raises its bound by about as much each time its number of nodes doubles.  So if m nodes
have raised it from b_0 to b_1, to reach c takes about m^{(c - b_0) / (b_1 - b_0)}.  A tree that begins at a
tighter s_0 and gains no less by a branching needs m^{(c - s_0) / (b_1 - b_0)}.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

_FIRST, _LATER = 64, 4
_MANY = 50.0  # the logarithm of a number of nodes


def looks(columns: int, last: int) -> Iterator[int]:
    """Numbers of nodes, each more than before, after which to look: the first time when they have cost
    about as much as to move curvature at the root of some columns, at last after ``last``.

    >>> list(looks(60, 1500))
    [64, 192, 768, 476]
    """
    done, following = 0, min(last, max(_FIRST, columns**2 // _FIRST))
    while True:
        yield following - done
        if following >= last:
            return
        done, following = following, min(last, _LATER * following)


def pays(nodes: int, start: float, now: float, end: float, tighter: float, dearer: float) -> bool:
    """Whether to begin again at the bound ``tighter``, with nodes that cost ``dearer`` times as much, where
    ``nodes`` raised the bound from ``start`` to ``now`` and it has to reach ``end``.

    >>> pays(10, 0.0, 1.0, 3.0, tighter=2.0, dearer=16.0)  # 990 more nodes, or 10
    True
    >>> pays(10, 0.0, 1.0, 2.0, tighter=1.0, dearer=16.0)  # 90 more nodes, or 10
    False
    """
    if tighter <= now or nodes <= 1:
        return False
    if now <= start:
        return True
    rate = math.log(nodes) / (now - start)
    plain, other = rate * (end - start), rate * max(0.0, end - tighter)
    if plain > _MANY:
        return plain - other > math.log(dearer)
    return math.exp(plain) - nodes > dearer * math.exp(other)

"""What is kept of a network: as plain data that compaction computes and a file stores."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Step:
    """One node of the network's graph and the channels of it that physically remain.

    kind: as in `graph.kind_of`; target: what it calls; channels: how many before (a "size" has
    none); kept: sorted indices. offset, around: of a "pad", the zero channels in front and the
    widths of zeros around the positions, in the order of F.pad. shift: of a convolution, linear
    layer, addition or padding, the constant (len(kept),) that replaces constant channels removed from
    its inputs; None where there are none.
    """

    kind: str
    target: str
    channels: int = 0
    kept: list[int] = field(default_factory=list)
    offset: int = 0
    around: list[int] = field(default_factory=list)
    shift: Tensor | None = field(default=None, compare=False)


RemovalPlan = dict[str, Step]
"""Name of each node, in the order of the graph, to its step."""

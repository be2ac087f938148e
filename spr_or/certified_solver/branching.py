"""Which entity to branch on: a number for each free entity, the largest is taken.

Measured against each other in docs/lab/solver.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spr_or.certified_solver.nodes import Node


class PseudoCosts:
    """What fixing each entity has raised bounds by, a unit of distance moved, over the whole tree.

    Before anything is known an entity is worth its ``price`` (N,), whatever others were worth.
    """

    def __init__(self, price: Tensor) -> None:
        self.price = price
        self.total = price.new_zeros((2, len(price)))
        self.times = price.new_zeros((2, len(price)))

    def learn(self, parent: Node, index: int, sides: tuple[Node, Node]) -> None:
        """The entity at ``index`` of an evaluated parent was moved to 0 and to 1."""
        assert parent.indicator is not None
        position, y = int(parent.position[index]), float(parent.indicator[index])
        for value, distance in enumerate((y, 1 - y)):
            gain = max(sides[value].own - parent.own, 0.0)
            self.total[value, position] += gain / max(distance, 1e-2)
            self.times[value, position] += 1

    def rates(self, position: Tensor) -> Tensor:
        """(2, n): averages of what was seen and, once, the price."""
        return (self.total[:, position] + self.price[position]) / (self.times[:, position] + 1)


Rule = Callable[[Node, PseudoCosts], Tensor]


def most_fractional(node: Node, costs: PseudoCosts) -> Tensor:
    """Nearest to 1/2."""
    assert node.indicator is not None
    return -(node.indicator - 0.5).abs()


def safe_fixing_estimate(node: Node, costs: PseudoCosts) -> Tensor:
    """The entity that the bounds forced by safe fixing say least about, weighed by its indicator:
    the largest min(y, 1 - y) among the smallest |score|."""
    assert node.indicator is not None and node.score is not None
    y = node.indicator
    return torch.minimum(y, 1 - y) - node.score.abs() / (node.score.abs().amax() + 1e-300)


def pseudo_cost(node: Node, costs: PseudoCosts) -> Tensor:
    """The product of both expected gains (Achterberg, Koch, Martin, 2005)."""
    assert node.indicator is not None
    down, up = costs.rates(node.position)
    y = node.indicator
    return (down * y).clamp(min=1e-9).log() + (up * (1 - y)).clamp(min=1e-9).log()


RULES: dict[str, Rule] = {
    "fractional": most_fractional,
    "fixing": safe_fixing_estimate,
    "pseudocost": pseudo_cost,
}


def choose(node: Node, rule: str, costs: PseudoCosts) -> int:
    """The index within the node of the free entity that the rule likes best."""
    return int(torch.where(node.free, RULES[rule](node, costs), -torch.inf).argmax())

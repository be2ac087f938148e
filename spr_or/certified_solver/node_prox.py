"""The proximal operator of a batch of nodes' penalty, with its derivative: what it depends on is kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.certified_solver.bounds import Terms
from spr_or.certified_solver.design import Design
from spr_or.formulations import projected_prox


class NodeProx(NamedTuple):
    """`projected_prox.shrink` for the B N entities of B nodes, in the coordinates of `Design.scaled`.

    upper, inverse, factor : (B N, 1), the upper limits of y, 1 / M, and c (None where all are 1)
    signed : (B N, k q) bool, weights that are not negative, or None
    """

    alpha: float
    terms: projected_prox.Terms
    upper: Tensor
    inverse: Tensor
    factor: Tensor | None
    signed: Tensor | None

    def shrink(self, V: Tensor) -> Tensor:
        """The proximal points of V (B, N, k, q)."""
        rows = projected_prox.shrink(self.rows(V), self.alpha, self.terms, self.upper, self.inverse)
        return (rows if self.factor is None else rows / self.factor).view(V.shape)

    def derivative(self, V: Tensor) -> projected_prox.Derivative:
        """Of `shrink` at V (B, N, k, q), one row for each entity."""
        rows = self.rows(V)
        found = projected_prox.derivative(rows, self.alpha, self.terms, self.inverse)
        if self.signed is None:
            return found
        held = self.signed & (rows == 0)
        return found._replace(diagonal=found.diagonal.masked_fill(held, 0.0))

    def rows(self, V: Tensor) -> Tensor:
        """V (B, N, k, q) as rows (B N, k q), stretched, and not negative where weights must not be."""
        rows = V.reshape(self.inverse.shape[0], -1)
        if self.signed is not None:
            rows = torch.where(self.signed, rows.clamp(min=0), rows)
        return rows if self.factor is None else self.factor * rows


def node_prox(design: Design, step: Tensor, terms: Terms) -> NodeProx:
    """The operator for steps (N,), and nodes whose fixings are those of ``terms``.

    What `formulations.projected.prox` computes of anything but V is computed here, once.
    """
    B = len(terms.one)
    alpha, unit, factor = design.scaled

    def column(x: Tensor) -> Tensor:
        return x.to(step).expand(B, -1).reshape(-1, 1)

    # In the coordinates c w, where the step is c^2 times as long.
    M, upper = column(factor * design.M), column(terms.one | terms.free)
    made = projected_prox.terms_of(
        column(step * unit * factor.square()), alpha, M, column(terms.one), upper
    ).stacked()
    signed = design.signed
    if signed is not None:
        signed = signed.repeat_interleave(design.shape[2], dim=1).repeat(B, 1)
    stretch = column(factor) if bool((factor != 1).any()) else None
    return NodeProx(alpha, made, upper, 1 / M, stretch, signed)

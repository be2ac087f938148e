r"""lambda_max of a network under training: the unit in which lambda means the same everywhere.

Zero is optimal for entity i against a pull p_i iff the conjugate z*(p_i / (lambda u_i)) is zero, which
is lambda u_i >= N(p_i) with N of `spr_or.formulations.least_price`. So

.. math::  \lambda_{\max} = \max_i N(p_i) / u_i

is the smallest lambda at which this holds for all entities. For a linear model at zero weights the
pull is the negative gradient of the loss. A network does not start at zero, and its mean gradient at
the start weights says little: where training has converged it vanishes. What holds an entity is

* its distance from zero. Without a loss, n proximal steps of length t act about as one of length n t.
  So over a phase whose steps add up to T, the pull is w_i / T;
* in front of a normalisation, noise. The loss does not see the scale of such an entity: its gradient
  is orthogonal to w_i and grows as 1 / ||w_i||. The steps then lengthen w_i as much as the penalty
  shortens it, until one step reaches zero. At that point the pull is
  w_i (||g_i|| / (t ||w_i||))^{1/2}, where g_i is the gradient of a batch at the start weights.

Where both apply the larger one counts. `Pulls` tells the second kind of layer by its gradients.
docs/lab/lambda.md has measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spr_or.formulations.least_price import least_price
from spr_or.pruning.gradient_passes import rows_of
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.lam_words import HELD, LEAST, START
from spr_or.pruning.module_masks import branches_of
from spr_or.pruning.regularizer import SPR

BATCHES = 8  # so many are enough to see noise and directions
# Largest |cos| between weights and gradient of a layer whose scale the loss does not see. Measured:
# below 1e-3 in front of a BatchNorm, above 0.2 elsewhere.
ORTHOGONAL = 0.01


class Pulls:
    """What holds the entities of ``spr``, from the gradients of a few batches.

    Call `add` after the backward pass of each, without SPR's part in the gradients; then `largest_lam`.
    Without any gradient it knows only distances.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1))
    >>> _ = nn.init.constant_(net[0].weight, 0.5)
    >>> spr = SPR(net, lam=0.0, alpha=0.0, M=0.5, entities={"0": "neurons"}, u="uniform")
    >>> round(Pulls(spr).largest_lam(step=0.1, total=10.0), 6)  # N(w) = M ||w||_1 = 0.5
    0.05
    """

    def __init__(self, spr: SPR) -> None:
        self.spr = spr
        self.batches = 0
        # Sums over batches of ||g_i||^2, <g_i, w_i>^2 and ||g_i||^2 ||w_i||^2.
        self._squares = torch.zeros_like(spr.importance)
        self._radial = torch.zeros_like(spr.importance)
        self._whole = torch.zeros_like(spr.importance)

    @torch.no_grad()
    def add(self) -> None:
        """Take in the ``.grad`` of the parameters."""
        weights = _rows(self.spr)
        with _gradients_as_weights(self.spr):
            gradients = _rows(self.spr)
        square = torch.cat([g.square().sum(1) for g in gradients])
        pairs = zip(gradients, weights, strict=True)
        self.batches += 1
        self._squares += square
        self._radial += torch.cat([(g * w).sum(1) for g, w in pairs]).square()
        self._whole += square * torch.cat([w.square().sum(1) for w in weights])

    def state(self) -> dict[str, Any]:
        """What `load` takes: for a checkpoint."""
        sums = {"squares": self._squares, "radial": self._radial, "whole": self._whole}
        return {"batches": self.batches} | {name: value.cpu() for name, value in sums.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.batches = int(state["batches"])
        self._squares.copy_(state["squares"])
        self._radial.copy_(state["radial"])
        self._whole.copy_(state["whole"])

    def largest_lam(self, step: float, total: float) -> float:
        """lambda_max from the present weights on, for steps of length ``step`` that add up to ``total``.

        A step is the learning rate over 1 - momentum. Raises ``ValueError`` for alpha = 1, and where
        no entity has both weights that are not zero and a price u > 0.
        """
        return float(self.lams(step, total).max())

    def starting_lam(self, step: float, total: float, target_pct: float) -> float:
        """Where lambda starts with a budget, from lambda_max and from what distances ask for.

        If the loss held nothing, the budget would be met at the end of the phase by the lambda at which
        the entities that are nearest to zero, N(w_i) / (T u_i), hold ``target_pct`` percent of the weights,
        or a layer would be empty if that comes first.
        Much less is of no use, so lambda starts at half of it at least.  What the loss holds takes a
        multiple: up to four times that, but no more than a fiftieth of lambda_max.  (The noise
        that lambda_max counts with holds less in a long phase than in a short one; distances do not rest on
        it.)  Arguments and errors as for `largest_lam`.
        """
        largest = self.largest_lam(step, total)
        unheld = min(distances_to_go(self.spr, target_pct / 100)) / total
        return max(LEAST * unheld, min(START * largest, HELD * unheld))

    @torch.no_grad()
    def lams(self, step: float, total: float) -> Tensor:
        """N(p_i) / u_i of all entities, (N,) float64, in the order of ``spr.ordered_layers()``."""
        norm = torch.cat([w.norm(dim=1) for w in _rows(self.spr)])
        gradient = (self._squares / max(1, self.batches)).sqrt()
        noise = torch.where(norm > 0, gradient / (step * norm), 0.0).sqrt()
        noise = torch.where(self._scale_unseen(), noise, 0.0)
        far = distances(self.spr)
        far = torch.where(far.isfinite(), far, 0.0)  # what has no price no lambda moves
        if not bool((far > 0).any()):
            raise ValueError(
                "no lambda makes an entity zero: the network must have weights that are not zero, "
                "and entities a price u > 0"
            )
        return far * noise.clamp(min=1 / total)

    def _scale_unseen(self) -> Tensor:
        """Which entities are of layers whose scale the loss does not see."""
        counts = [layer.count for layer in self.spr.ordered_layers()]
        parts = zip(self._radial.split(counts), self._whole.split(counts), counts, strict=True)
        return torch.cat(
            [
                (radial.sum() <= ORTHOGONAL**2 * whole.sum()).expand(count)
                for radial, whole, count in parts
            ]
        )


@torch.no_grad()
def distances(spr: SPR) -> Tensor:
    """N(w_i) / u_i, (N,) float64 in the order of ``spr.ordered_layers()``: how far entities are from zero.

    A proximal step of length t without a loss makes entity i zero iff lambda t is at least this. It is
    0 for what is zero, and infinite where u_i = 0 and w_i is not zero.
    """
    bounds = zip(_rows(spr), _bounds(spr), strict=True)
    reach = torch.cat([least_price(w, spr.alpha, M) for w, M in bounds])
    return torch.where(reach > 0, reach / spr.importance.double(), 0.0)


class ToGo(NamedTuple):
    """How far from zero two entities are: ``near``, the last one that has to go, and ``last``, the one that
    would empty its layer (infinite where there is none)."""

    near: float
    last: float = math.inf


def distances_to_go(spr: SPR, share: float) -> ToGo:
    """Of the entities that are nearest to zero and hold a ``share`` of the weights that are not zero, the
    farthest; and of the layers the one that is empty first, its farthest.

    A residual branch may go as a whole.  Entities without a price do not count.
    """
    layers, may_go = spr.ordered_layers(), branches_of(spr.layers)
    far = distances(spr).split([layer.count for layer in layers])
    sizes = torch.cat([layer.sizes for layer in layers])
    stays = [layer.name not in may_go for layer in layers]
    return to_go(far, sizes, share, stays)


def to_go(far: Sequence[Tensor], sizes: Tensor, share: float, stays: Sequence[bool]) -> ToGo:
    """The same of the distances ``far`` of each layer and the ``sizes`` of all entities; ``stays``: whether
    a layer may not be emptied.

    >>> far = [torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0])]
    >>> to_go(far, torch.tensor([1, 1, 5, 2]), 0.2, [True, True])
    ToGo(near=1.0, last=2.0)
    """
    last = (float(part.max()) for part, kept in zip(far, stays, strict=True) if kept)
    near = nearest_share(torch.cat(list(far)), sizes, share)
    return ToGo(near, min((x for x in last if x > 0), default=math.inf))


def nearest_share(far: Tensor, sizes: Tensor, share: float) -> float:
    """The largest distance among the nearest entities that hold a ``share`` of the ``sizes``.

    ``far`` (N,) and ``sizes`` (N,); entities at 0 or at infinity do not count.  0 where there are none.

    >>> nearest_share(torch.tensor([3.0, 1.0, 0.0, 2.0]), torch.tensor([1, 1, 5, 2]), 0.5)
    2.0
    """
    order = far.argsort()
    order = order[(far[order] > 0) & far[order].isfinite()]
    if len(order) == 0:
        return 0.0
    held = sizes.to(far)[order].cumsum(0)
    return float(far[order[int((held >= share * held[-1]).int().argmax())]])


def _rows(spr: SPR) -> list[Tensor]:
    """Copies of the parameters' values as rows of entities (N, k)."""
    return [rows_of(batch).clone() for batch in spr.gather()]


def _bounds(spr: SPR) -> Sequence[Tensor]:
    """M of each batch of `_rows`: (N,), or (N, k) where entities cross several layers."""
    layers = spr.ordered_layers()
    if not isinstance(layers[0], GroupEntities):
        return spr.bounds()
    return [
        layer.bounds_of_weights(bound) if bound.dim() > 1 else bound
        for layer, bound in zip(layers, spr.bounds(), strict=True)
        if isinstance(layer, GroupEntities)
    ]


@contextmanager
def _gradients_as_weights(spr: SPR) -> Iterator[None]:
    """Inside, every parameter holds its gradient, so that `SPR.gather` reads gradients."""
    parameters = {id(p): p for layer in spr.layers for p in layer.parameters}.values()
    kept = [p.data for p in parameters]
    for p in parameters:
        p.data = torch.zeros_like(p) if p.grad is None else p.grad.to(p.dtype)
    try:
        yield
    finally:
        for p, data in zip(parameters, kept, strict=True):
            p.data = data

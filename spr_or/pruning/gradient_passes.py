r"""The passes over a network's weights: from weights to SPR's value, and back to its gradient.

A *batch* is a tensor x whose dimension ``dim`` counts entities; the other dimensions hold their
weights, in whatever memory order x has. An entity enters the formula by ||w||_2 and ||w||_inf:

1. reduce every batch to these two norms,
2. evaluate `spr_or.formulations.projected.entity_terms` once for the entities of all batches,
3. spread its two derivatives back over the weights,

.. math::  \nabla_j = \lambda u \bigl(\mathrm{radial}\; w_j
           + \mathrm{peak}\; \mathrm{sign}(w_j) / n \cdot [\,|w_j| = \lVert w\rVert_\infty]\bigr)
           = w_j \bigl(r + s / n \cdot [\ldots]\bigr)

where n weights attain the maximum, r = lambda u radial and s = lambda u peak / ||w||_inf.

The functions branch on nothing but shapes, dtypes and the kind of device, and read nothing back
from it: a step can be compiled and captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.formulations import projected


class Slopes(NamedTuple):
    """What `factor` multiplies w by, per entity, shape (N,): r, s and ||w||_inf."""

    radial: Tensor
    slope: Tensor
    peak: Tensor

    def split(self, counts: Sequence[int], dtypes: Sequence[torch.dtype]) -> list[Slopes]:
        """One for each of several consecutive runs of entities."""
        runs = zip(*(column.split(list(counts)) for column in self), strict=True)
        return [
            Slopes(*(column.to(dtype) for column in run))
            for run, dtype in zip(runs, dtypes, strict=True)
        ]


def norms_and_peaks(xs: Sequence[Tensor], dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """||w||_2 and ||w||_inf of every entity of every batch, (N,) over all batches.

    >>> norms_and_peaks([torch.tensor([[3.0, -4.0]]), torch.tensor([[1.0, -2.0]])], [0, 1])
    (tensor([5., 1., 2.]), tensor([4., 1., 2.]))
    """
    norms, peaks = [], []
    for x, dim in zip(xs, dims, strict=True):
        others = _others(x, dim)
        norms.append(torch.linalg.vector_norm(x, 2, others))
        if x.device.type == "cpu":  # there ten times as fast as the maximum norm
            peaks.append(torch.maximum(x.amax(others), -x.amin(others)).abs())
        else:
            peaks.append(torch.linalg.vector_norm(x, torch.inf, others))
    return torch.cat(norms), torch.cat(peaks)


def penalties_and_slopes(
    xs: Sequence[Tensor],
    dims: Sequence[int],
    lam: Tensor,
    importance: Tensor,
    bound: Tensor,
    alpha: float,
    variant: str,
) -> tuple[Tensor, Slopes]:
    """lambda u_i z(w^i) of every entity, (N,), and what the gradient of their sum is made of.

    ``lam`` is a scalar, ``importance`` and ``bound`` are (N,) over the entities of all batches.
    """
    norm, peak = norms_and_peaks(xs, dims)
    return penalties_and_slopes_of(norm, peak, lam, importance, bound, alpha, variant)


def penalties_and_slopes_of(
    norm: Tensor,
    peak: Tensor,
    lam: Tensor,
    importance: Tensor,
    bound: Tensor,
    alpha: float,
    variant: str,
) -> tuple[Tensor, Slopes]:
    """`penalties_and_slopes` from the two norms of every entity, (N,)."""
    # The squares of weights below 1e-19 underflow; the peak is then the better norm.
    norm = torch.maximum(norm, peak)
    terms = projected.entity_terms(norm, peak, alpha, bound.to(norm), variant)
    price = lam.to(norm) * importance.to(norm)
    # Quotients by denormal numbers overflow, and infinity would spread as 0 times infinity.
    limit = torch.finfo(norm.dtype)
    largest = limit.max / 2
    slope = (price * terms.peak / peak.clamp(min=limit.tiny)).clamp(-largest, largest)
    radial = (price * terms.radial).clamp(max=largest)
    return price * terms.value, Slopes(radial, slope, peak)


def gradients(xs: Sequence[Tensor], dims: Sequence[int], slopes: Slopes) -> list[Tensor]:
    """The gradient of the penalty with respect to every batch."""
    return [
        factor(x, dim, part).mul_(x)
        for x, dim, part in zip(xs, dims, _of_batches(xs, dims, slopes), strict=True)
    ]


def add_gradients_(
    targets: Sequence[Tensor | None], xs: Sequence[Tensor], dims: Sequence[int], slopes: Slopes
) -> list[Tensor | None]:
    """Add the gradient of each batch to its target, of the batch's shape and dtype.

    Returns the gradients of the batches whose target is None, and None for the others.
    """
    rest: list[Tensor | None] = []
    for target, x, dim, part in zip(targets, xs, dims, _of_batches(xs, dims, slopes), strict=True):
        if target is None:
            rest.append(factor(x, dim, part).mul_(x))
        else:
            target.addcmul_(x, factor(x, dim, part))
            rest.append(None)
    return rest


def factor(x: Tensor, dim: int, slopes: Slopes) -> Tensor:
    """The gradient divided by w: r, and s / n more where |w_j| is the peak that n weights attain."""
    shape = _column(x, dim)
    attains = x.abs().eq_(slopes.peak.view(shape))
    ties = attains.sum(_others(x, dim), keepdim=True)
    return attains.mul_(slopes.slope.view(shape) / ties).add_(slopes.radial.view(shape))


def _of_batches(xs: Sequence[Tensor], dims: Sequence[int], slopes: Slopes) -> list[Slopes]:
    counts = [x.shape[dim] for x, dim in zip(xs, dims, strict=True)]
    return slopes.split(counts, [x.dtype for x in xs])


def _column(x: Tensor, dim: int) -> list[int]:
    return [-1 if d == dim else 1 for d in range(x.dim())]


def _others(x: Tensor, dim: int) -> list[int]:
    return [d for d in range(x.dim()) if d != dim]

r"""The passes over a network's weights: from weights to SPR's value, and back to its gradient.

A *batch* is a tensor x whose dimension ``dim`` counts entities; the other dimensions hold their
weights, in whatever memory order x has. Biases and other parameters of one number an entity stand
beside it in columns, so that x need not be copied to make room for them. An entity enters the
formula by ||w||_2 and ||w||_inf:

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


class Batch(NamedTuple):
    """Entities reduced together: ``weights``, whose dimension ``dim`` counts them, and ``extra`` (N, e).

    Entity i is slice i of ``weights`` along ``dim`` and row i of ``extra``; both have one dtype.
    """

    weights: Tensor
    dim: int
    extra: Tensor | None = None


def rows_of(batch: Batch) -> Tensor:
    """The entities of a batch as rows (N, k).

    >>> rows_of(Batch(torch.tensor([[1.0, 2.0]]), 1, torch.tensor([[3.0], [4.0]])))
    tensor([[1., 3.],
            [2., 4.]])
    """
    x, dim, extra = batch
    rows = x.movedim(dim, 0).flatten(1)
    return rows if extra is None else torch.cat([rows, extra], dim=1)


class Parts(NamedTuple):
    """Numbers for the two tensors of a `Batch`, of their shapes; None where there are none."""

    weights: Tensor | None
    extra: Tensor | None = None


class Slopes(NamedTuple):
    """What `factors` is made of, per entity, shape (N,): r, s and ||w||_inf."""

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


def norms_and_peaks(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """||w||_2 and ||w||_inf of every entity of every batch, (N,) over all batches.

    >>> bias = torch.tensor([[12.0]])
    >>> norms_and_peaks([Batch(torch.tensor([[3.0, -4.0]]), 0, bias), Batch(torch.ones(1, 2), 1)])
    (tensor([13.,  1.,  1.]), tensor([12.,  1.,  1.]))
    """
    norms, peaks = [], []
    for x, dim, extra in batches:
        others = others_of(x, dim)
        norm = torch.linalg.vector_norm(x, 2, others)
        if x.device.type == "cpu":  # there ten times as fast as the maximum norm
            peak = torch.maximum(x.amax(others), -x.amin(others)).abs()
        else:
            peak = torch.linalg.vector_norm(x, torch.inf, others)
        norm, peak = with_extra(norm, peak, extra)
        norms.append(norm)
        peaks.append(peak)
    return torch.cat(norms), torch.cat(peaks)


def with_extra(norm: Tensor, peak: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor]:
    """||w||_2 and ||w||_inf, (N,) each, of entities to which the columns ``extra`` (N, e) come.

    >>> with_extra(torch.tensor([3.0]), torch.tensor([3.0]), torch.tensor([[-4.0]]))
    (tensor([5.]), tensor([4.]))
    """
    if extra is None:
        return norm, peak
    norms = torch.cat([norm.unsqueeze(1), extra], dim=1)
    peaks = torch.cat([peak.unsqueeze(1), extra], dim=1)
    return torch.linalg.vector_norm(norms, 2, 1), peaks.abs().amax(1)


def penalties_and_slopes(
    batches: Sequence[Batch],
    lam: Tensor,
    importance: Tensor,
    bound: Tensor,
    alpha: float,
    variant: str,
) -> tuple[Tensor, Slopes]:
    """lambda u_i z(w^i) of every entity, (N,), and what the gradient of their sum is made of.

    ``lam`` is a scalar, ``importance`` and ``bound`` are (N,) over the entities of all batches.
    """
    norm, peak = norms_and_peaks(batches)
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


def gradients(batches: Sequence[Batch], slopes: Slopes) -> list[Parts]:
    """The gradient of the penalty with respect to every batch."""
    return [
        gradient(batch, part)
        for batch, part in zip(batches, of_batches(batches, slopes), strict=True)
    ]


def add_gradients_(
    targets: Sequence[Tensor | None], batches: Sequence[Batch], slopes: Slopes
) -> list[Parts]:
    """Add the gradient of each batch's weights to its target, of their shape and dtype.

    Returns what was not added: all of a batch whose target is None, and the gradients of ``extra``.
    """
    rest = []
    parts = of_batches(batches, slopes)
    for target, batch, part in zip(targets, batches, parts, strict=True):
        if target is None:
            rest.append(gradient(batch, part))
        else:
            rest.append(add_gradient_(target, batch, part))
    return rest


def gradient(batch: Batch, slopes: Slopes) -> Parts:
    """The gradient of the penalty with respect to one batch."""
    weights, extra = factors(batch, slopes)
    return Parts(weights.mul_(batch.weights), _product(extra, batch.extra))


def add_gradient_(target: Tensor, batch: Batch, slopes: Slopes) -> Parts:
    """Add the gradient of a batch's weights to ``target``; the gradient of its ``extra`` is left."""
    weights, extra = factors(batch, slopes)
    target.addcmul_(batch.weights, weights)
    return Parts(None, _product(extra, batch.extra))


def factors(batch: Batch, slopes: Slopes) -> tuple[Tensor, Tensor | None]:
    """The gradient divided by w: r, and s / n more where |w_j| is the peak that n weights attain."""
    x, dim, extra = batch
    shape = column(x, dim)
    attains = x.abs().eq_(slopes.peak.view(shape))
    ties = attains.sum(others_of(x, dim), keepdim=True)
    if extra is None:
        added = None
    else:
        extra_attains = extra.abs().eq_(slopes.peak.unsqueeze(1))
        ties = ties + extra_attains.sum(1).view(shape)
        share = (slopes.slope / ties.reshape(-1)).unsqueeze(1)
        added = extra_attains.mul_(share).add_(slopes.radial.unsqueeze(1))
    return attains.mul_(slopes.slope.view(shape) / ties).add_(slopes.radial.view(shape)), added


def _product(factor: Tensor | None, extra: Tensor | None) -> Tensor | None:
    return None if factor is None or extra is None else factor.mul_(extra)


def of_batches(batches: Sequence[Batch], slopes: Slopes) -> list[Slopes]:
    """What belongs to each batch, in its dtype."""
    counts = [batch.weights.shape[batch.dim] for batch in batches]
    return slopes.split(counts, [batch.weights.dtype for batch in batches])


def column(x: Tensor, dim: int) -> list[int]:
    """The shape in which one number for each slice of x along ``dim`` broadcasts against x."""
    return [-1 if d == dim else 1 for d in range(x.dim())]


def others_of(x: Tensor, dim: int) -> list[int]:
    """The dimensions of x besides ``dim``."""
    return [d for d in range(x.dim()) if d != dim]

"""SPR's gradient on a CPU, where a look at a number is free and moving memory is not.

`spr_or.pruning.gradient_passes` finds the weights that attain an entity's maximum by comparing all of them,
which a device that cannot be asked has to. Here the maxima of short blocks are kept from the
reduction, and only blocks that attain their entity's maximum are searched: the network's weights
are read for the norms and once more for the gradient, and nothing of their size is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spr_or.pruning.gradient_passes import (
    Batch,
    Parts,
    Slopes,
    add_gradient_,
    gradient,
    of_batches,
    penalties_and_slopes_of,
    with_extra,
)

_BLOCK = 128  # weights
_SHORTEST = 32
_LARGE = 2**17


def add_gradients_(
    targets: Sequence[Tensor | None],
    batches: Sequence[Batch],
    lam: Tensor,
    importance: Tensor,
    bound: Tensor,
    alpha: float,
    variant: str,
) -> list[Parts]:
    """Add SPR's gradient with respect to each batch's weights to its target, of equal shape and dtype.

    Returns what was not added: all of a batch whose target is None, and the gradients of ``extra``.
    The other arguments are those of `spr_or.pruning.gradient_passes.penalties_and_slopes`.
    """
    tops, peaks, norms = [], [], []
    for x, dim, extra in batches:  # a layer is read three times while it is in cache
        tops.append(_tops(x, dim))
        norm = torch.linalg.vector_norm(x, 2, [d for d in range(x.dim()) if d != dim])
        norm, peak = with_extra(norm, tops[-1].amax(1), extra)
        norms.append(norm)
        peaks.append(peak)
    norm, peak = torch.cat(norms), torch.cat(peaks)
    _, slopes = penalties_and_slopes_of(norm, peak, lam, importance, bound, alpha, variant)
    # Where the maximum has no slope it need not be found: no magnitude is -1.
    sought = torch.where(slopes.slope != 0, peak, -1.0).split([len(top) for top in tops])
    parts = of_batches(batches, slopes)
    # The last layers are still in cache.
    rest: list[Parts] = []
    for target, batch, top, sought_peak, part in reversed(
        list(zip(targets, batches, tops, sought, parts, strict=True))
    ):
        x = batch.weights
        if target is None:
            rest.append(gradient(batch, part))
            continue
        rows, target_rows = _rows(x, batch.dim), _rows(target, batch.dim)
        if rows is None or target_rows is None or x.stride() != target.stride():
            rest.append(add_gradient_(target, batch, part))
        else:
            target_rows.addcmul_(rows, part.radial.unsqueeze(1))
            rest.append(_add_peaks_(target_rows, rows, batch.extra, top, sought_peak, part))
    return rest[::-1]


def _add_peaks_(
    target: Tensor,
    x: Tensor,
    extra: Tensor | None,
    tops: Tensor,
    sought: Tensor,
    slopes: Slopes,
) -> Parts:
    """target += s / n w_j at the n weights of each row that attain its maximum; all (N, k).

    Returns the whole gradient of ``extra``, of which n counts the columns that attain it too.
    """
    n_blocks = tops.shape[1]
    index = (tops == sought.unsqueeze(1)).flatten().nonzero().squeeze(1)
    owner = index // n_blocks
    blocks = x.view(len(x) * n_blocks, -1)
    w = blocks.index_select(0, index)
    attains = w.abs().eq_(slopes.peak.index_select(0, owner).unsqueeze(1))
    ties = torch.zeros_like(slopes.slope).index_add_(0, owner, attains.sum(1))
    rest = Parts(None)
    if extra is not None:
        extra_attains = extra.abs().eq_(slopes.peak.unsqueeze(1))
        ties += extra_attains.sum(1)
        each = (slopes.slope / ties.clamp(min=1)).unsqueeze(1)  # none was counted where s = 0
        factor = extra_attains.mul_(each).add_(slopes.radial.unsqueeze(1))
        rest = Parts(None, factor.mul_(extra))
    share = (slopes.slope / ties).index_select(0, owner)
    added = attains.mul_(share.unsqueeze(1)).mul_(w)
    target.view(blocks.shape).index_add_(0, index, added)
    return rest


def _tops(x: Tensor, dim: int) -> Tensor:
    """The largest magnitude in each block of each entity, (N, blocks)."""
    rows = _rows(x, dim)
    if rows is None:
        others = [d for d in range(x.dim()) if d != dim]
        return torch.maximum(x.amax(others), x.amin(others).neg_()).unsqueeze(1)
    k = rows.shape[1]
    width = math.gcd(k, _BLOCK)
    blocks = rows.view(len(rows), -1, width if width >= _SHORTEST else k)
    return torch.maximum(blocks.amax(2), blocks.amin(2).neg_())


def _rows(x: Tensor, dim: int) -> Tensor | None:
    """x as (N, k) in the order its memory has.

    None where entities do not lie one after another, and where x is so small that comparing all
    its weights takes fewer microseconds than the calls of a search.
    """
    k = x.numel() // x.shape[dim]
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    if dim != 0 or not dense or x.numel() < _LARGE:
        return None
    return x.as_strided((x.shape[0], k), (k, 1))

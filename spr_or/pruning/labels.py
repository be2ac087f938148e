"""Labels of the elements of tensors: int64 of a tensor's shape, stretched where they do not vary.

A stretched dimension has stride 0, so labels of a whole feature map cost no more than its channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ALIVE, NEUTRAL = 0, -1
"""No atom: what the inputs write is alive whatever is masked, constants do not matter."""


def filled(shape: Sequence[int], label: int) -> Tensor:
    """One label everywhere."""
    return torch.full([1] * len(shape), label).expand(tuple(shape))


def along(labels: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """A label for each position of one dimension, (n,), at a tensor of that shape."""
    return labels.view([-1 if d == axis else 1 for d in range(len(shape))]).expand(tuple(shape))


def compressed(labels: Tensor) -> Tensor:
    """The same labels, stretched along every dimension in which they do not vary."""
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and labels.stride(dim) != 0:
            first = labels.narrow(dim, 0, 1)
            if bool((labels == first).all()):
                labels = first.expand(labels.shape)
    return labels


def small(labels: Tensor) -> Tensor:
    """Without the dimensions in which labels do not vary (each of size 1 then)."""
    for dim in range(labels.dim()):
        if labels.stride(dim) == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def together(sides: list[Tensor]) -> list[Tensor]:
    """Tensors of one shape without the dimensions in which none of them varies."""
    for dim in range(sides[0].dim()):
        if all(s.stride(dim) == 0 or s.shape[dim] == 1 for s in sides):
            sides = [s.narrow(dim, 0, 1) for s in sides]
    return sides


def distinct(labels: Tensor) -> list[int]:
    """The labels that occur."""
    return list(torch.unique(small(labels)).tolist())


def first_along(labels: Tensor, dim: int) -> Tensor:
    """One label of each position of a dimension, (n,): those of a feature belong to one class."""
    rest = [d for d in range(labels.dim()) if d != dim]
    rows = small(labels)
    rows = rows.expand([labels.shape[d] if d == dim else n for d, n in enumerate(rows.shape)])
    rows = rows.permute(dim, *rest).reshape(labels.shape[dim], -1)
    return rows.amax(1) if not bool((rows == ALIVE).any()) else torch.where(
        (rows == ALIVE).any(1), ALIVE, rows.amax(1)
    )  # fmt: skip


def to_result(labels: Tensor, pairs: dict[int, int], shape: Sequence[int], lost: int) -> Tensor:
    """Labels of an operand at the result's elements; ``lost`` where a mixed dimension had several."""
    for dim in range(labels.dim()):
        if dim not in pairs and labels.shape[dim] > 1:
            first = labels.narrow(dim, 0, 1)
            if labels.stride(dim) != 0 and not bool((labels == first).all()):
                return filled(shape, lost)
            labels = first
    order = sorted(pairs, key=pairs.__getitem__)
    targets = [pairs[d] for d in order]
    kept = labels.permute(*order, *[d for d in range(labels.dim()) if d not in pairs])
    kept = kept.reshape([labels.shape[d] for d in order]) if kept.dim() != len(order) else kept
    sizes = iter(kept.shape)
    kept = kept.reshape([next(sizes) if d in targets else 1 for d in range(len(shape))])
    return kept.expand(tuple(shape))


def joined(sides: list[Tensor], gate: bool) -> Tensor:
    """The label of what several operands make: alive where a summand is, or where all factors are."""
    sides = together(full := sides)
    best = torch.stack(sides).amax(0)
    alive = torch.stack([s == ALIVE for s in sides])
    living = best <= 0 if gate else alive.any(0)
    best = torch.where(living, ALIVE, best)
    return best.expand(full[0].shape)


def lettered(labels: Tensor, term: str, right: str, shape: Sequence[int]) -> Tensor:
    """Labels of an operand of a product at the result's elements."""
    for letter in term:
        if letter not in right:
            labels = labels.narrow(term.index(letter), 0, 1)
    order = [c for c in right if c in term]
    rest = [c for c in term if c not in right]
    kept = labels.permute([term.index(c) for c in (*order, *rest)])
    kept = kept.reshape([labels.shape[term.index(c)] for c in order])
    sizes = iter(kept.shape)
    kept = kept.reshape([next(sizes) if c in term else 1 for c in right])
    return kept.expand(tuple(shape))

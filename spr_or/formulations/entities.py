"""What can be pruned: a partition of a flat parameter vector into entities.

The solvers and the objective see entities as rows of a zero-padded matrix (N, k_max), which is the
shape that `projected` takes; zero padding changes neither norms, maxima, proximal points nor
conjugates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spr_or.formulations.checked_input import positive_per_entity


@dataclass(frozen=True, eq=False)
class Entities:
    """Disjoint index sets into a flat parameter vector theta of length ``n_parameters``.

    Attributes
    ----------
    groups : tuple of tuples of int, the indices of each entity
    n_parameters : int, length of theta
    index : int64 tensor (N, k_max), padded with ``n_parameters`` (one past the last parameter)
    sizes : int64 tensor (N,), k_i
    free : int64 tensor, the parameters in no entity (never penalised)

    >>> e = Entities.of([[0, 1], [3]], 4)
    >>> e.rows(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist(), e.free.tolist()
    ([[1.0, 2.0], [4.0, 0.0]], [2])
    """

    groups: tuple[tuple[int, ...], ...]
    n_parameters: int
    index: Tensor
    sizes: Tensor
    free: Tensor

    @classmethod
    def of(cls, groups: Iterable[Iterable[int]], n_parameters: int) -> Entities:
        """Check a partition and index it.

        Raises ``ValueError`` for no entities, an empty entity, an index that is not an integer or
        lies outside theta, and an index that occurs twice; the message names entity and index.
        """
        if not isinstance(groups, Iterable):
            raise ValueError(f"entities must be a collection of index lists, got {groups!r}")
        checked = tuple(_as_indices(group, i) for i, group in enumerate(groups))
        if not checked:
            raise ValueError("entities is empty: at least one entity is needed")
        owner: dict[int, int] = {}
        for i, group in enumerate(checked):
            if not group:
                raise ValueError(f"entity {i} is empty")
            for j in group:
                if not 0 <= j < n_parameters:
                    raise ValueError(
                        f"entity {i} holds index {j}, outside the {n_parameters} parameters "
                        f"0..{n_parameters - 1}"
                    )
                if j in owner:
                    raise ValueError(
                        f"entities overlap: index {j} is in entity {owner[j]} and in entity {i}"
                        if owner[j] != i
                        else f"entity {i} holds index {j} twice"
                    )
                owner[j] = i
        width = max(map(len, checked))
        index = torch.full((len(checked), width), n_parameters, dtype=torch.int64)
        for i, group in enumerate(checked):
            index[i, : len(group)] = torch.tensor(group)
        free = torch.tensor([j for j in range(n_parameters) if j not in owner], dtype=torch.int64)
        sizes = torch.tensor([len(group) for group in checked])
        return cls(checked, n_parameters, index, sizes, free)

    def __len__(self) -> int:
        return len(self.groups)

    def rows(self, theta: Tensor) -> Tensor:
        """theta (..., P) as rows (..., N, k_max), padded with zeros."""
        padded = torch.cat([theta, theta.new_zeros((*theta.shape[:-1], 1))], dim=-1)
        return padded[..., self.index.to(theta.device)]

    def flat(self, rows: Tensor, free: Tensor | None = None) -> Tensor:
        """The inverse of `rows`: (..., N, k_max) to (..., P); ``free`` (..., F) fills the others."""
        batch = rows.shape[:-2]
        theta = rows.new_zeros((*batch, self.n_parameters + 1))
        theta[..., self.index.to(rows.device).reshape(-1)] = rows.reshape(*batch, -1)
        if free is not None:
            theta[..., self.free.to(rows.device)] = free
        return theta[..., : self.n_parameters]


def importances(u: Any, sizes: Any) -> Tensor:
    """The importance u_i of each entity in the penalty, (N,) float64, for entities of ``sizes`` (N,).

    ``u`` is ``"uniform"`` (1 each), ``"share"`` (k_i / sum_j k_j, the share of the parameters), a
    positive number for all entities, or one per entity.  Raises ``ValueError`` for other words, other
    shapes, and numbers that are not positive.

    >>> importances("uniform", [3, 1]).tolist(), importances("share", [3, 1]).tolist()
    ([1.0, 1.0], [0.75, 0.25])
    """
    sizes = torch.as_tensor(sizes, dtype=torch.float64)
    if isinstance(u, str):
        if u == "share":
            return sizes / sizes.sum()
        if u != "uniform":
            raise ValueError(f"u must be 'uniform', 'share', or positive numbers, got {u!r}")
        u = 1.0
    return positive_per_entity(u, "u", len(sizes))


def _as_indices(group: Iterable[int], i: int) -> tuple[int, ...]:
    try:
        values = list(group)
    except TypeError:
        raise ValueError(f"entity {i} must be a collection of indices, got {group!r}") from None
    try:
        indices = tuple(int(j) for j in values)
        whole = all(j == value for j, value in zip(indices, values, strict=True))
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"entity {i} holds an index that is not an integer: {values!r}")
    return indices


def features(p: int) -> list[list[int]]:
    """Each column of X as an entity.

    >>> features(3)
    [[0], [1], [2]]
    """
    return groups(p, 1)


def groups(p: int, size: int) -> list[list[int]]:
    """Consecutive columns in entities of ``size``; the last one takes what is left.

    >>> groups(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    if p < 1 or size < 1:
        raise ValueError(f"groups needs p >= 1 and size >= 1, got p={p}, size={size}")
    return [list(range(start, min(start + size, p))) for start in range(0, p, size)]


def parameter_indices(net: nn.Module) -> dict[str, Tensor]:
    """For each named parameter, its shape filled with positions in the flat vector theta.

    theta holds the parameters one after another in the order of ``net.named_parameters()``, as
    ``torch.nn.utils.parameters_to_vector`` does.

    >>> parameter_indices(nn.Linear(2, 1))["bias"].tolist()
    [2]
    """
    indices, start = {}, 0
    for name, parameter in net.named_parameters():
        count = parameter.numel()
        indices[name] = torch.arange(start, start + count).reshape(parameter.shape)
        start += count
    return indices


def neurons(net: nn.Module) -> list[list[int]]:
    """Each hidden neuron as an entity: the incoming weights and the bias of a Linear that is not the last.

    The last layer's parameters are in no entity: its outputs are the answer and cannot be pruned.

    >>> len(neurons(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))))
    3
    """
    linears = [name for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    return _units(net, linears[:-1])


def filters(net: nn.Module) -> list[list[int]]:
    """Each filter of every Conv2d as an entity: an output channel's weights and its bias.

    >>> len(filters(nn.Sequential(nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(4, 1))))
    4
    """
    return _units(net, [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)])


def _units(net: nn.Module, layers: Sequence[str]) -> list[list[int]]:
    index = parameter_indices(net)
    result = []
    for layer in layers:
        weight = index[f"{layer}.weight" if layer else "weight"]
        bias = index.get(f"{layer}.bias" if layer else "bias")
        for o in range(weight.shape[0]):
            unit = weight[o].flatten().tolist()
            result.append(unit if bias is None else [*unit, int(bias[o])])
    if not result:
        raise ValueError("the network has no layer of the kind asked for: no entity can be made")
    return result

"""Entities that cross layers, resolved to a network's parameters and laid out for the passes.

A *piece* is one slice of one parameter. The passes reduce every parameter of a group once, where it
lies, to one number for each piece, and only these few numbers are gathered into entities: no
weight is moved, in whatever order the slices of an entity lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spr_or.pruning.gradient_passes import Batch
from spr_or.pruning.groups import EntityGroup, check_groups


@dataclass(frozen=True, eq=False)
class Part:
    """A `Member` of a group with its parameter, and the column of M that bounds its weights."""

    parameter: nn.Parameter
    dim: int
    index: Tensor
    column: int
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict)

    @cached_property
    def plain(self) -> bool:
        """Whether the slices lie in the parameter in the order of the entities."""
        flat = self.index.flatten()
        return bool((flat[1:] - flat[:-1] == 1).all())

    def rows(self) -> Tensor:
        """The weights of every entity, (N, k)."""
        x = self.parameter.detach()
        if self.plain:
            x = x.narrow(self.dim, int(self.index[0, 0]), self.index.numel())
        else:
            x = x.index_select(self.dim, self._slices(x.device))
        return x.movedim(self.dim, 0).reshape(len(self.index), -1)

    def write_(self, target: Tensor, rows: Tensor) -> None:
        """Put rows (N, k) where `rows` read them, into a tensor of the parameter's shape."""
        moved = target.movedim(self.dim, 0)
        slices = rows.reshape(self.index.numel(), *moved.shape[1:])
        if self.plain:
            moved.narrow(0, int(self.index[0, 0]), self.index.numel()).copy_(slices)
        else:
            moved.index_copy_(0, self._slices(target.device), slices.to(target.dtype))

    @property
    def width(self) -> int:
        """The weights of one entity in this parameter."""
        return self.index.shape[1] * (self.parameter.numel() // self.parameter.shape[self.dim])

    def _slices(self, device: torch.device) -> Tensor:
        # Moved once: a copy to the device at each step would stall it.
        if device not in self._on_device:
            self._on_device[device] = self.index.flatten().to(device)
        return self._on_device[device]


@dataclass(frozen=True, eq=False)
class GroupEntities:
    """The entities of an `EntityGroup` in the parameters of one network.

    Attributes
    ----------
    name : that of the group
    parts : its members
    bounded : the layers that the entities cross, one column of M each: a bound belongs to a layer,
        as in the paper, for the weights of one layer may be twenty times those of another
    kind : that of the group
    """

    name: str
    parts: tuple[Part, ...]
    bounded: tuple[str, ...]
    kind: str = "own"

    entity_dim = 0

    @property
    def count(self) -> int:
        """N, the number of entities."""
        return len(self.parts[0].index)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters that hold something of the entities, each once."""
        return tuple({id(part.parameter): part.parameter for part in self.parts}.values())

    @property
    def sizes(self) -> Tensor:
        """k_i, the number of weights of each entity: int64 (N,)."""
        return torch.full((self.count,), sum(part.width for part in self.parts))

    @property
    def pieces(self) -> int:
        """The slices of which each entity consists."""
        return sum(part.index.shape[1] for part in self.parts)

    @property
    def shape_key(self) -> tuple[object, ...]:
        """Groups with equal keys are gathered together."""
        return "group", self.pieces

    def gather(self) -> Batch:
        """A copy of the entities' weights as rows (N, k)."""
        rows = [part.rows() for part in self.parts]
        return Batch(torch.cat(rows, dim=1) if len(rows) > 1 else rows[0], 0)

    def write_(self, targets: Mapping[int, Tensor], rows: Tensor) -> None:
        """The inverse of `gather`: rows (N, k) into tensors of the parameters' shapes, by id."""
        widths = [part.width for part in self.parts]
        for part, piece in zip(self.parts, rows.split(widths, dim=1), strict=True):
            part.write_(targets[id(part.parameter)], piece)

    def peaks(self) -> Tensor:
        """The largest magnitude of every entity in each of the ``bounded`` layers, (N, L)."""
        columns: list[list[Tensor]] = [[] for _ in self.bounded]
        for part in self.parts:
            columns[part.column].append(part.rows().abs().amax(1))
        return torch.stack([torch.stack(column).amax(0) for column in columns], dim=1)

    def bounds_of_weights(self, bounds: Tensor) -> Tensor:
        """The bound of every weight in `gather`'s rows, (n, k), from those of n entities, (n, L)."""
        parts = [bounds[:, part.column].unsqueeze(1).expand(-1, part.width) for part in self.parts]
        return torch.cat(parts, dim=1)


def group_entities(model: nn.Module, groups: Sequence[EntityGroup]) -> tuple[GroupEntities, ...]:
    """The entities of ``groups`` in ``model``; ``ValueError`` as `check_groups` has it.

    >>> from spr_or.pruning.groups import Member
    >>> rows = torch.arange(3).view(3, 1)
    >>> members = tuple(Member(f"{n}.{key}", 0, rows) for n in "02" for key in ("weight", "bias"))
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3))
    >>> (group,) = group_entities(net, [EntityGroup("0", members)])
    >>> group.count, group.bounded, group.sizes.tolist()
    (3, ('0', '2'), [7, 7, 7])
    """
    check_groups(model, groups)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for group in groups:
        owners = [member.parameter.rpartition(".")[0] for member in group.members]
        bounded = tuple(dict.fromkeys(owners))
        parts = tuple(
            Part(parameters[m.parameter], m.dim, m.index.cpu(), bounded.index(owner))
            for m, owner in zip(group.members, owners, strict=True)
        )
        found.append(GroupEntities(group.name, parts, bounded, group.kind))
    return tuple(found)


class Pieces(NamedTuple):
    """Which pieces make which entity; P pieces, N entities over all groups.

    ``of_entities`` holds (n, K) matrices of pieces, one for each K, in the order of the entities;
    ``owner`` (P,) the entity of each piece, N for slices in no entity; ``bound`` (P,) its element of M.
    """

    of_entities: tuple[Tensor, ...]
    owner: Tensor
    bound: Tensor


class Window(NamedTuple):
    """The slices ``start`` to ``start + length`` of a parameter along ``dim``: all that is owned."""

    parameter: nn.Parameter
    dim: int
    start: int
    length: int

    def of(self, tensor: Tensor) -> Tensor:
        """The window of a tensor that has the parameter's shape: a view of two or more dimensions."""
        if tensor.dim() == 1:
            tensor = tensor.unsqueeze(1)
        if self.length == tensor.shape[self.dim]:
            return tensor
        return tensor.narrow(self.dim, self.start, self.length)

    @property
    def shape_key(self) -> tuple[object, ...]:
        """Windows with equal keys can be concatenated along ``dim``."""
        shape = self.parameter.shape
        return self.dim, self.parameter.dtype, (*shape[: self.dim], *shape[self.dim + 1 :])


class GroupLayout(nn.Module):
    """How the pieces of ``layers`` lie: windows on parameters, and indices that move with the device.

    Windows of one shape stand beside each other. Their order, and with it that of the pieces, is the
    same on every device.
    """

    def __init__(self, layers: Sequence[GroupEntities]) -> None:
        super().__init__()
        self.runs = _runs(_windows(layers))
        start: dict[int, int] = {}  # the piece that is slice 0 of each parameter
        total = 0
        for window in self.windows():
            start[id(window.parameter)] = total - window.start
            total += window.length
        entities = sum(layer.count for layer in layers)
        owner, bound = torch.full((total,), entities), torch.zeros(total, dtype=torch.int64)
        of_entities: dict[int, list[Tensor]] = {}
        first_entity = first_bound = 0
        for layer in layers:
            numbers, columns = torch.arange(layer.count).unsqueeze(1), len(layer.bounded)
            pieces = [part.index + start[id(part.parameter)] for part in layer.parts]
            for part, piece in zip(layer.parts, pieces, strict=True):
                owner[piece] = first_entity + numbers
                bound[piece] = first_bound + numbers * columns + part.column
            of_entities.setdefault(layer.pieces, []).append(torch.cat(pieces, dim=1))
            first_entity += layer.count
            first_bound += layer.count * columns
        self.matrices = len(of_entities)
        for i, matrices in enumerate(of_entities.values()):
            self.register_buffer(f"of_entities_{i}", torch.cat(matrices), persistent=False)
        self.owner: Tensor
        self.bound: Tensor
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer("bound", bound, persistent=False)

    def windows(self) -> list[Window]:
        """The windows in the order of the pieces."""
        return [window for run in self.runs for window in run]

    def pieces(self) -> Pieces:
        """The indices, on the layout's device."""
        matrices = tuple(self.get_buffer(f"of_entities_{i}") for i in range(self.matrices))
        return Pieces(matrices, self.owner, self.bound)

    def batches(self) -> list[Batch]:
        """The weights of all windows; on a CPU where they lie, else those of one shape in one tensor."""
        return [
            Batch(_computed([w.of(w.parameter.detach()) for w in run], run[0].dim), run[0].dim)
            for run in self._batched()
        ]

    def pairs(self, parts: Sequence[Tensor]) -> list[tuple[Window, Tensor]]:
        """Every window with its part of tensors in the shapes of `batches`."""
        return [
            (window, piece)
            for run, part in zip(self._batched(), parts, strict=True)
            for window, piece in zip(
                run, part.split([window.length for window in run], run[0].dim), strict=True
            )
        ]

    def _batched(self) -> list[list[Window]]:
        if self.owner.device.type == "cpu":
            return [[window] for window in self.windows()]
        return self.runs


def _windows(layers: Sequence[GroupEntities]) -> list[Window]:
    """One for each parameter, from its first owned slice to its last."""
    parts: dict[int, list[Part]] = {}
    for layer in layers:
        for part in layer.parts:
            parts.setdefault(id(part.parameter), []).append(part)
    windows = []
    for same in parts.values():
        first = min(int(part.index.min()) for part in same)
        last = max(int(part.index.max()) for part in same)
        windows.append(Window(same[0].parameter, same[0].dim, first, last - first + 1))
    return windows


def _runs(windows: Sequence[Window]) -> list[list[Window]]:
    runs: dict[tuple[object, ...], list[Window]] = {}
    for window in windows:
        runs.setdefault(window.shape_key, []).append(window)
    return list(runs.values())


def _computed(tensors: list[Tensor], dim: int) -> Tensor:
    """Tensors as one, in the dtype of the computation: float32 for half precision."""
    x = torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x

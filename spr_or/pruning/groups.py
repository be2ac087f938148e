"""Entities that cross layers: one channel of a stream, one attention head, one branch.

What dies together is one entity of the paper, and lies in several parameters: for a channel, the
filters of every layer that writes it, their biases, and the scale and shift of the norms behind.
A `Member` says which slices of one parameter belong to which entity, an `EntityGroup` what
belongs together.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spr_or.pruning import following_norms
from spr_or.pruning.following_norms import TRANSPOSED
from spr_or.pruning.unwrap import unwrap

CONVOLUTIONS = (*following_norms.CONVOLUTIONS, *TRANSPOSED)
# Layers and norms that a mask can name; parameters of other modules are named one by one.
_NAMED = (
    *CONVOLUTIONS, nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
KINDS = ("channels", "heads", "neurons", "blocks", "own")


@dataclass(frozen=True, eq=False)
class Member:
    """Slices of one parameter: entity i owns the slices ``index[i]`` along ``dim``.

    Attributes
    ----------
    parameter : its name in ``model.named_parameters()``
    dim : the dimension that is indexed
    index : int64 (N, m); no slice belongs to two entities

    Raises ``ValueError`` where the index is no such matrix or holds a negative number.

    >>> Member("fc.weight", 0, torch.arange(6).view(3, 2)).index.shape
    torch.Size([3, 2])
    """

    parameter: str
    dim: int
    index: Tensor

    def __post_init__(self) -> None:
        index = self.index
        if index.dtype != torch.int64 or index.dim() != 2 or index.numel() == 0:
            raise ValueError(
                f"the index of {self.parameter!r} must be int64 of shape (N, m), "
                f"not {index.dtype} of shape {tuple(index.shape)}"
            )
        if int(index.min()) < 0:
            raise ValueError(f"the index of {self.parameter!r} holds {int(index.min())}")


@dataclass(frozen=True, eq=False)
class EntityGroup:
    """N entities over the same members: entity i is the union of its slices in all of them.

    Attributes
    ----------
    name : of the first layer that writes the stream; unique among the groups of a network
    members : at least one, all of N entities
    kind : ``"channels"``, ``"heads"``, ``"neurons"``, ``"blocks"`` or ``"own"``

    Raises ``ValueError`` for members of different N, no members, or an unknown kind.

    >>> rows = torch.arange(4).view(4, 1)
    >>> members = (Member("fc.weight", 0, rows), Member("fc.bias", 0, rows))
    >>> EntityGroup("fc", members, "neurons").count
    4
    """

    name: str
    members: tuple[Member, ...]
    kind: str = "own"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be among {', '.join(KINDS)}, not {self.kind!r}")
        if not self.members:
            raise ValueError(f"group {self.name!r} has no members")
        for member in self.members:
            if len(member.index) != self.count:
                raise ValueError(
                    f"group {self.name!r} has {self.count} entities in "
                    f"{self.members[0].parameter!r}, but {len(member.index)} in "
                    f"{member.parameter!r}"
                )

    @property
    def count(self) -> int:
        """N, the number of entities."""
        return len(self.members[0].index)


def check_groups(model: nn.Module, groups: Sequence[EntityGroup]) -> None:
    """Raise ``ValueError`` unless the groups fit the model and no weight is in two entities.

    The message names what is wrong: a parameter (with the nearest name), a dimension or an index
    out of range, two groups of one name, or the two entities that overlap.

    >>> check_groups(nn.Linear(2, 2), [EntityGroup("a", (Member("wieght", 0, torch.tensor([[0]])),))])
    Traceback (most recent call last):
    ValueError: group 'a' names 'wieght', no parameter of the model; did you mean 'weight'?
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    cut: dict[int, tuple[int, str]] = {}
    owner: dict[tuple[int, int], tuple[str, int]] = {}
    for group in groups:
        for member in group.members:
            key = id(_parameter(parameters, group.name, member))
            dim, first = cut.setdefault(key, (member.dim, group.name))
            if dim != member.dim:
                raise ValueError(
                    f"entities overlap: {member.parameter!r} is cut along dimension {dim} by group "
                    f"{first!r} and along dimension {member.dim} by group {group.name!r}, and "
                    "slices along two dimensions share weights"
                )
            for entity, slices in enumerate(member.index.tolist()):
                for i in slices:
                    if (key, i) in owner:
                        other, number = owner[key, i]
                        raise ValueError(
                            f"entities overlap: slice {i} of {member.parameter!r} along dimension "
                            f"{dim} is in entity {number} of group {other!r} and in entity "
                            f"{entity} of group {group.name!r}"
                        )
                    owner[key, i] = group.name, entity
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two groups have the name {name!r}")


def _parameter(parameters: Mapping[str, nn.Parameter], group: str, member: Member) -> nn.Parameter:
    name, dim = member.parameter, member.dim
    if name not in parameters:
        near = difflib.get_close_matches(name, parameters, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"group {group!r} names {name!r}, no parameter of the model{hint}")
    parameter = parameters[name]
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ValueError(f"{name!r} is lazy: run the model once before regularising it")
    if not 0 <= dim < parameter.dim():
        raise ValueError(
            f"group {group!r} cuts {name!r} along dimension {dim}, "
            f"but its shape is {tuple(parameter.shape)}"
        )
    largest = int(member.index.max())
    if largest >= parameter.shape[dim]:
        raise ValueError(
            f"group {group!r} holds slice {largest} of {name!r}, "
            f"which has {parameter.shape[dim]} along dimension {dim}"
        )
    return parameter


def output_dim(module: nn.Module) -> int:
    """The dimension of a layer's weight that counts its outputs.

    A transposed convolution has them along dimension 1, or, with one input channel for each
    output channel, along dimension 0.

    >>> output_dim(nn.Linear(2, 3)), output_dim(nn.ConvTranspose2d(2, 3, 1))
    (0, 1)
    """
    if isinstance(module, TRANSPOSED):
        return 0 if module.groups == module.in_channels == module.out_channels > 1 else 1
    return 1 if isinstance(module, nn.Embedding) else 0


def layer_masks(
    model: nn.Module, groups: Sequence[EntityGroup], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Masks of groups as masks of modules and parameters, as `apply_masks_` and `compact` take them.

    Parameters
    ----------
    masks : group name -> bool (N,), True = keep; groups that are not named keep everything

    Returns name -> bool over the outputs of that module, or over dimension 0 of that parameter. A
    name is a module's where its weight is cut along its outputs, and a parameter's otherwise.
    Slices along another dimension, as of a position embedding, are those of "name:dim". Columns that
    read a channel do not appear: they leave with the channel.

    Raises ``ValueError`` for masks that do not fit and groups that do not fit the model.

    >>> rows = torch.arange(3).view(3, 1)
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> group = EntityGroup("0", (Member("0.weight", 0, rows), Member("1.weight", 1, rows)))
    >>> layer_masks(net, [group], {"0": torch.tensor([True, False, True])})
    {'0': tensor([ True, False,  True])}
    """
    model = unwrap(model)
    check_groups(model, groups)
    by_name = {group.name: group for group in groups}
    for name, keep in masks.items():
        _check_mask(by_name, name, keep)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = [(m, masks[g.name]) for g in groups if g.name in masks for m in g.members]
    cut = {member.parameter: member.dim for member, _ in chosen}
    found: dict[str, Tensor] = {}
    for member, keep in chosen:
        masked = _masked_name(model, member, cut)
        if masked is not None:
            count = parameters[member.parameter].shape[member.dim]
            rows = found.setdefault(masked, torch.ones(count, dtype=torch.bool))
            rows[member.index.cpu()[~keep.cpu()].flatten()] = False
    return found


def _check_mask(groups: Mapping[str, EntityGroup], name: str, keep: Tensor) -> None:
    if name not in groups:
        near = difflib.get_close_matches(name, groups, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name!r} is no group{hint}")
    count = groups[name].count
    if keep.dtype != torch.bool or keep.shape != (count,):
        raise ValueError(
            f"the mask of group {name!r} must be a bool vector of length {count}, "
            f"not {keep.dtype} of shape {tuple(keep.shape)}"
        )


def _masked_name(model: nn.Module, member: Member, cut: Mapping[str, int]) -> str | None:
    """The name that stands for the member in a mask of layers; None for slices that read."""
    owner, _, key = member.parameter.rpartition(".")
    module = model.get_submodule(owner)
    layer = isinstance(module, _NAMED) and key == "weight"
    if layer and member.dim != output_dim(module):
        return None
    if not layer and member.dim:
        return f"{member.parameter}:{member.dim}"
    weight = f"{owner}.weight" if owner else "weight"
    whole = cut.get(weight) == output_dim(module) and key in ("weight", "bias")
    return owner if whole and isinstance(module, _NAMED) else member.parameter

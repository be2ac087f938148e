"""Which slices of which parameters are the entities of a network, layer by layer.

`formulations.entities` describes entities by positions in one flat vector, for any shape of entity. The
entities of a network are far more regular: a layer's filters are the slices of one tensor along
one dimension, so a layer is reduced by one kernel and its weights never move. A partition given
by positions is served too (`PositionEntities`), at the price of gathering its weights, and so are
entities that cross layers (`spr_or.pruning.group_entities.GroupEntities`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from spr_or.formulations.entities import Entities, parameter_indices
from spr_or.pruning.gradient_passes import Batch, Parts
from spr_or.pruning.group_entities import GroupEntities, group_entities
from spr_or.pruning.groups import CONVOLUTIONS, TRANSPOSED, EntityGroup, Member, output_dim
from spr_or.pruning.ignored import Ignored, ignored_modules, is_ignored
from spr_or.pruning.unwrap import unwrap

LAYER_TYPES: dict[str, tuple[type[nn.Module], ...]] = {
    "filters": CONVOLUTIONS,
    "neurons": (nn.Linear,),
    "input_channels": CONVOLUTIONS,
}
_TYPE_NAMES = {"filters": "convolution", "neurons": "Linear", "input_channels": "convolution"}
# Found on the network's graph, as "neurons" are where an example input is given.
GROUP_KINDS = ("channels", "heads", "blocks")
EntitySpec = (
    str
    | Sequence[str]
    | Mapping[str, str]
    | Entities
    | Sequence[Sequence[int]]
    | EntityGroup
    | Sequence[EntityGroup]
)


@dataclass(frozen=True, eq=False)
class SliceEntities:
    """The entities of one layer: slice i along ``dim`` of its weight, and element i of ``extra``.

    Attributes
    ----------
    name : the layer's name in ``model.named_modules()``
    parameters : the weight, then the 1-d parameters that belong to the entities (bias, γ and β)
    dim : the dimension of the weight that counts the entities
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    dim: int

    @property
    def count(self) -> int:
        """N, the number of entities."""
        return self.parameters[0].shape[self.dim]

    @property
    def sizes(self) -> Tensor:
        """k_i, the number of weights of each entity: int64 (N,)."""
        return torch.full((self.count,), sum(p.numel() for p in self.parameters) // self.count)

    @property
    def entity_dim(self) -> int:
        """The dimension of `gather`'s weights that counts the entities."""
        return self.dim

    @property
    def shape_key(self) -> tuple[object, ...]:
        """Layers with equal keys can be concatenated along `entity_dim`."""
        shapes = [(*p.shape[: self.dim], *p.shape[self.dim + 1 :]) for p in self.parameters]
        first = self.parameters[0]
        return self.dim, first.dtype, *shapes

    def gather(self) -> Batch:
        """The weight itself, not a copy, and the other parameters as columns beside it."""
        weight, *extra = (p.detach() for p in self.parameters)
        columns = torch.stack(extra, dim=1).to(weight.dtype) if extra else None
        return Batch(weight, self.dim, columns)

    def scatter(self, parts: Parts, others_stay: bool = False) -> list[Tensor | None]:
        """The inverse of `gather`: one tensor for each parameter, of its shape; None for None.

        Every number of the parameters is in an entity, so there are no others.
        """
        extra = parts.extra
        columns = [None if extra is None else extra[:, j] for j in range(len(self.parameters) - 1)]
        return [parts.weights, *columns]


@dataclass(frozen=True, eq=False)
class PositionEntities:
    """Entities given by positions in the flat vector of the model's parameters.

    ``gather`` copies their weights into zero-padded rows (N, k_max), so this is for irregular
    entities of moderate size; whole layers are better named.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    entities: Entities
    _on_device: dict[torch.device, Entities] = field(default_factory=dict)

    entity_dim = 0

    @property
    def count(self) -> int:
        """N, the number of entities."""
        return len(self.entities)

    @property
    def sizes(self) -> Tensor:
        """k_i, the number of weights of each entity: int64 (N,)."""
        return self.entities.sizes

    @property
    def shape_key(self) -> tuple[object, ...]:
        """A key that no other object has: nothing is concatenated with it."""
        return (id(self),)

    def gather(self) -> Batch:
        """The entities' weights as zero-padded rows (N, k_max)."""
        theta = self._theta()
        return Batch(self._entities(theta.device).rows(theta), 0)

    def scatter(self, parts: Parts, others_stay: bool = False) -> list[Tensor | None]:
        """One tensor for each parameter, of its shape.

        Where a parameter is in no entity it holds zero, as a gradient does, or with ``others_stay``
        the parameter's own numbers, as new weights do.
        """
        rows = parts.weights
        if rows is None:
            return [None] * len(self.parameters)
        entities = self._entities(rows.device)
        own = self._theta()[entities.free].to(rows.dtype) if others_stay else None
        flat = entities.flat(rows, own).split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(flat, self.parameters, strict=True)]

    def _theta(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def _entities(self, device: torch.device) -> Entities:
        # Indices are moved once: a copy to the device at each step would stall it.
        if device not in self._on_device:
            e = self.entities
            index, free = e.index.to(device), e.free.to(device)
            self._on_device[device] = Entities(e.groups, e.n_parameters, index, e.sizes, free)
        return self._on_device[device]


LayerEntities = SliceEntities | PositionEntities | GroupEntities


def layer_entities(
    model: nn.Module,
    entities: EntitySpec = "filters",
    include_norm: bool = False,
    *,
    example: Any = None,
    ignored: Ignored = (),
) -> tuple[LayerEntities, ...]:
    """The entities of ``model``, one element for each layer, in the order of ``model.named_modules()``.

    Parameters
    ----------
    entities : one of

        - ``"filters"``: each output channel of every convolution, its weights and its bias;
        - ``"neurons"``: each output of every Linear but the last, whose outputs are the answer, its
          weights and its bias; with an ``example`` the hidden units of the network's graph;
        - ``"input_channels"``: each input channel of every convolution, over all its outputs;
        - ``"channels"``, ``"heads"`` or ``"blocks"``: what the network's graph says dies together; they
          need an ``example``;
        - several of these in a list (kinds that the network does not have are left out);
        - ``{layer name: one of the first three}`` for chosen layers;
        - `spr_or.pruning.groups.EntityGroup`, or a list of them: entities that cross layers;
        - `spr_or.formulations.entities.Entities`, or lists of positions in the flat vector of the model's
          parameters (`spr_or.formulations.entities.parameter_indices` gives them), for anything else.

    include_norm : whether the γ and β of the BatchNorms that follow a filter or neuron belong to
        its entity (found in the model's torch.fx graph). Groups say themselves what belongs to them.
    example : an input of the model, for entities that are found on its graph
    ignored : layers whose outputs all stay, by name, glob pattern (``"layer4.*"``) or module type; see
        `spr_or.pruning.ignored.ignored_modules`. A group that writes to such a layer is left out; the
        layer's columns are left out of groups that it only reads.

    So ``"filters"`` of Conv2d and ``"neurons"`` are the entities of
    `spr_or.formulations.entities.filters` and `neurons`: a unit with a bias left is not dead.
    Convolutions are those of one to three dimensions, transposed ones, and their subclasses. Wrappers
    (torch.compile, DataParallel) are looked through.

    Raises ``ValueError`` where nothing is found, a name or kind is unknown, a weight or bias is no
    plain parameter, entities overlap, input channels are asked of a grouped convolution, or
    filters of a grouped transposed one.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> [(layer.name, layer.count) for layer in layer_entities(net)]
    [('0', 4)]
    """
    model = unwrap(model)
    skipped = ignored_modules(model, ignored)
    if isinstance(entities, EntityGroup):
        entities = [entities]
    if entities and _all_of(entities, EntityGroup):
        return _groups(model, cast(Sequence[EntityGroup], entities), skipped)
    if isinstance(entities, Sequence) and any(isinstance(e, EntityGroup) for e in entities):
        raise ValueError("entities holds groups and other things: give groups only, or none")
    if isinstance(entities, Entities) or not (
        isinstance(entities, str | Mapping) or _all_of(entities, str)
    ):
        if skipped:
            raise ValueError(
                "ignored leaves out layers, but entities are given by positions: leave the "
                "positions of those layers out"
            )
        return (_positions(model, _partition(model, entities)),)
    named = cast(str | Sequence[str] | Mapping[str, str], entities)
    if not named:
        raise ValueError(f"entities={named!r} names no layer: nothing to regularise")
    words, graph_kinds = _by_source(named, example is not None)
    slices = _slices(model, _chosen_layers(model, words, skipped), include_norm)
    found: tuple[LayerEntities, ...] = slices
    if groups := _network_groups(model, example, graph_kinds, alone=isinstance(named, str)):
        rows = [_as_slices(model, group) for group in groups]
        if all(rows):
            unskipped = [layer for layer in rows if layer is not None and layer.name not in skipped]
            found = (*slices, *unskipped)
        else:
            as_groups = [_as_group(model, layer) for layer in slices]
            found = _groups(model, [*as_groups, *groups], skipped)
    if not found:
        raise ValueError(
            f"the model has no layer for entities={named!r}"
            f"{' besides those ignored' if skipped else ''}: {_way_out(model, named, skipped)}"
        )
    return found


def _by_source(
    entities: str | Sequence[str] | Mapping[str, str], has_example: bool
) -> tuple[Sequence[str] | Mapping[str, str], list[str]]:
    """The kinds that are slices of layers, and those found on the network's graph."""
    if isinstance(entities, Mapping):
        return entities, []
    words = [entities] if isinstance(entities, str) else list(entities)
    for word in words:
        _check_kind(word, (*LAYER_TYPES, *GROUP_KINDS))
    on_graph = [w for w in words if w in GROUP_KINDS or (w == "neurons" and has_example)]
    return [word for word in words if word not in on_graph], on_graph


def _network_groups(
    model: nn.Module, example: Any, kinds: Sequence[str], alone: bool
) -> list[EntityGroup]:
    """The groups of these kinds; where several are asked for, those that the network has."""
    if not kinds:
        return []
    if example is None:
        raise ValueError(
            f"entities={kinds[0]!r} are found on the network's graph, which needs an input: pass "
            "example=, a tensor of the shape that the model takes"
        )
    # Tracing loads much of torch: only for those who ask for it.
    from spr_or.pruning.network_groups import NoSuchEntities, network_groups

    found: list[EntityGroup] = []
    for kind in kinds:
        try:
            found += network_groups(model, example, kind)
        except NoSuchEntities:
            if alone:
                raise
    return found


def _groups(
    model: nn.Module, groups: Sequence[EntityGroup], skipped: frozenset[str]
) -> tuple[GroupEntities, ...]:
    kept = [group for group in (_unignored(model, g, skipped) for g in groups) if group is not None]
    if not kept:
        raise ValueError(
            "every group of entities writes to an ignored layer: nothing to regularise"
        )
    return group_entities(model, kept)


def _unignored(model: nn.Module, group: EntityGroup, skipped: frozenset[str]) -> EntityGroup | None:
    """The group without the columns of ignored layers; None where it writes to one of them."""
    touched = [m for m in group.members if is_ignored(m.parameter, skipped)]
    if any(not _reads(model, member) for member in touched):
        return None
    members = tuple(m for m in group.members if m not in touched)
    return EntityGroup(group.name, members, group.kind) if members else None


def _reads(model: nn.Module, member: Member) -> bool:
    """Whether the slices are columns of a layer's weight, which read a channel."""
    owner, _, key = member.parameter.rpartition(".")
    module = model.get_submodule(owner)
    layers = (*CONVOLUTIONS, nn.Linear)
    return key == "weight" and isinstance(module, layers) and member.dim != output_dim(module)


def _as_slices(model: nn.Module, group: EntityGroup) -> SliceEntities | None:
    """A group that is all the rows of one layer with its bias: read where it lies, not gathered."""
    module = dict(model.named_modules(remove_duplicate=False)).get(group.name)
    if not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        return None
    keys = ("weight",) if module.bias is None else ("weight", "bias")
    names = [member.parameter for member in group.members]
    if names != [f"{group.name}.{key}" for key in keys]:
        return None
    parameters = tuple(_plain_parameter(model, group.name, key) for key in keys)
    dim = output_dim(module)
    rows = torch.arange(parameters[0].shape[dim]).unsqueeze(1)
    whole = all(torch.equal(member.index.cpu(), rows) for member in group.members)
    return SliceEntities(group.name, parameters, dim) if whole else None


def _as_group(model: nn.Module, layer: SliceEntities) -> EntityGroup:
    """A layer's slices as a group, to stand beside groups."""
    names = {id(p): name for name, p in model.named_parameters()}
    index = torch.arange(layer.count).unsqueeze(1)
    dims = [layer.dim, *[0] * (len(layer.parameters) - 1)]
    members = [
        Member(names[id(p)], dim, index) for p, dim in zip(layer.parameters, dims, strict=True)
    ]
    return EntityGroup(layer.name, tuple(members), "own")


def _chosen_layers(
    model: nn.Module, entities: Sequence[str] | Mapping[str, str], skipped: frozenset[str]
) -> dict[str, str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(entities, Mapping):
        for name, kind in entities.items():
            _check_kind(kind, tuple(LAYER_TYPES))
            if name not in modules:
                near = difflib.get_close_matches(name, modules, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"entities names {name!r}, no module of the model{hint}")
            if not isinstance(modules[name], LAYER_TYPES[kind]):
                raise ValueError(
                    f"{kind!r} need a {_TYPE_NAMES[kind]}, "
                    f"but {name!r} is a {type(modules[name]).__name__}"
                )
        return {n: entities[n] for n in modules if n in entities and n not in skipped}
    chosen: dict[str, str] = {}
    for kind in entities:
        for name in _layer_names(modules, kind, skipped):
            if name in chosen and chosen[name] != kind:
                raise ValueError(f"entities overlap: {name!r} is in {chosen[name]!r} and {kind!r}")
            chosen[name] = kind
    return {name: chosen[name] for name in modules if name in chosen}


def _layer_names(modules: Mapping[str, nn.Module], kind: str, skipped: frozenset[str]) -> list[str]:
    """The layers whose entities are of that kind; the last linear one is the output and has none."""
    names = [name for name, m in modules.items() if isinstance(m, LAYER_TYPES[kind])]
    return [n for n in (names[:-1] if kind == "neurons" else names) if n not in skipped]


def _way_out(model: nn.Module, entities: object, skipped: frozenset[str]) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    for other in LAYER_TYPES:
        if other != entities and _layer_names(modules, other, skipped):
            return f"use {other!r}, which takes every {_TYPE_NAMES[other]}"
    return "nothing to regularise"


def _slices(
    model: nn.Module, chosen: Mapping[str, str], include_norm: bool
) -> tuple[SliceEntities, ...]:
    """The entities of chosen layers, {name: kind}; a weight of two layers counts once."""
    norms = _following_norms(model) if include_norm else {}
    found: list[SliceEntities] = []
    owner: dict[int, tuple[str, str]] = {}
    for name, kind in chosen.items():
        weight = _plain_parameter(model, name, "weight")
        module = model.get_submodule(name)
        _check_convolution_groups(module, name, kind)
        if id(weight) in owner:
            if owner[id(weight)][1] != kind:
                raise ValueError(
                    f"entities overlap: the weight of {name!r} is in {owner[id(weight)][1]!r} of "
                    f"{owner[id(weight)][0]!r} and in {kind!r}"
                )
            continue  # a weight that two modules share is one set of entities
        owner[id(weight)] = name, kind
        if kind == "input_channels":
            found.append(SliceEntities(name, (weight,), int(not isinstance(module, TRANSPOSED))))
            continue
        has_bias = module.bias is not None
        bias = [_plain_parameter(model, name, "bias")] if has_bias else []
        found.append(SliceEntities(name, (weight, *bias, *norms.get(name, [])), output_dim(module)))
    return tuple(found)


def _check_convolution_groups(module: nn.Module, name: str, kind: str) -> None:
    if getattr(module, "groups", 1) == 1:
        return
    if kind == "input_channels":
        raise ValueError(
            f"the kernels of one input channel of the grouped convolution {name!r} are no slice of "
            "its weight: use filters there, or give the entities by positions"
        )
    if isinstance(module, TRANSPOSED) and output_dim(module) == 1:
        raise ValueError(
            f"the kernels of one output channel of the grouped transposed convolution {name!r} are "
            f"no slice of its weight: leave it out by ignored=[{name!r}], or give the entities by "
            "positions"
        )


def _check_kind(kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        near = difflib.get_close_matches(str(kind), kinds, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"entities must be among {', '.join(kinds)}, not {kind!r}{hint}")


def _plain_parameter(model: nn.Module, name: str, key: str) -> nn.Parameter:
    module = model.get_submodule(name)
    parameter = dict(module.named_parameters(recurse=False)).get(key)
    if parameter is None:
        raise ValueError(
            f"{name!r} has no plain parameter {key!r} (is it parametrised?): its entities cannot "
            "be regularised. Leave it out with `ignored`, or make its weights plain before you train: "
            "spr_or.pruning.compaction.prepare.bake_weights_(model)"
        )
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ValueError(f"{name!r} is lazy: run the model once before regularising it")
    return parameter


def _following_norms(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    from spr_or.pruning.following_norms import following_norms

    return {
        layer: [p for norm in norms for p in model.get_submodule(norm).parameters(recurse=False)]
        for layer, norms in following_norms(model).items()
    }


def _partition(model: nn.Module, entities: object) -> Entities:
    if isinstance(entities, Entities):
        return entities
    total = sum(p.numel() for p in model.parameters())
    return Entities.of(cast(Sequence[Sequence[int]], entities), total)


def _positions(model: nn.Module, entities: Entities) -> PositionEntities:
    total = sum(p.numel() for p in model.parameters())
    if entities.n_parameters != total:
        raise ValueError(
            f"entities partition {entities.n_parameters} parameters, but the model has {total}"
        )
    indices = parameter_indices(model)
    used = torch.zeros(total, dtype=torch.bool)
    used[entities.index[entities.index < total]] = True
    names = [name for name, index in indices.items() if used[index].any()]
    # Only the parameters that hold an entity's weight are gathered at each step.
    kept = torch.cat([indices[name].flatten() for name in names])
    position = torch.full((total,), -1)
    position[kept] = torch.arange(len(kept))
    groups = [position[list(group)].tolist() for group in entities.groups]
    parameters = dict(model.named_parameters())
    narrowed = Entities.of(groups, len(kept))
    return PositionEntities("entities", tuple(parameters[n] for n in names), narrowed)


def _all_of(values: object, kind: type) -> bool:
    """Whether the values are a list of that kind; a list of nothing is one of every kind."""
    return isinstance(values, Sequence) and all(isinstance(value, kind) for value in values)

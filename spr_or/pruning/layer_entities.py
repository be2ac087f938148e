"""Which slices of which parameters are the entities of a network, layer by layer.

`formulations.entities` describes entities by positions in one flat vector, for any shape of entity. The
entities of a network are far more regular: a layer's filters are the slices of one tensor along
one dimension, so a layer is reduced by one kernel and its weights never move. A partition given
by positions is served too (`PositionEntities`), at the price of gathering its weights.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from spr_or.formulations.entities import Entities, parameter_indices
from spr_or.pruning.gradient_passes import Batch, Parts

LAYER_TYPES: dict[str, type[nn.Module]] = {
    "filters": nn.Conv2d,
    "neurons": nn.Linear,
    "input_channels": nn.Conv2d,
}
EntitySpec = str | Sequence[str] | Mapping[str, str] | Entities | Sequence[Sequence[int]]


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


LayerEntities = SliceEntities | PositionEntities


def layer_entities(
    model: nn.Module, entities: EntitySpec = "filters", include_norm: bool = False
) -> tuple[LayerEntities, ...]:
    """The entities of ``model``, one element for each layer, in the order of ``model.named_modules()``.

    Parameters
    ----------
    entities : one of

        - ``"filters"``: each output channel of every Conv2d, its weights and its bias;
        - ``"neurons"``: each output of every Linear but the last, whose outputs are the answer, its
          weights and its bias;
        - ``"input_channels"``: each input channel of every Conv2d, over all its outputs;
        - several of these in a list;
        - ``{layer name: one of these}`` for chosen layers;
        - `spr_or.formulations.entities.Entities`, or lists of positions in the flat vector of the model's
          parameters (`spr_or.formulations.entities.parameter_indices` gives them), for anything else.

    include_norm : whether the γ and β of the BatchNorms that follow a filter or neuron belong to
        its entity (found in the model's torch.fx graph).

    So ``"filters"`` and ``"neurons"`` are the entities of `spr_or.formulations.entities.filters` and
    `neurons`: a unit with a bias left is not dead.

    Raises ``ValueError`` where nothing is found, a name or kind is unknown, a weight or bias is no
    plain parameter, entities overlap, or input channels are asked of a grouped convolution.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> [(layer.name, layer.count) for layer in layer_entities(net)]
    [('0', 4)]
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps; its names would change
    if isinstance(entities, Entities):
        return (_positions(model, entities),)
    if not isinstance(entities, str | Mapping) and not _all_strings(entities):
        total = sum(p.numel() for p in model.parameters())
        groups = cast(Sequence[Sequence[int]], entities)
        return (_positions(model, Entities.of(groups, total)),)
    named = cast(str | Sequence[str] | Mapping[str, str], entities)
    found = _slices(model, _chosen_layers(model, named), include_norm)
    if not found:
        raise ValueError(f"entities={entities!r} names no layer: nothing to regularise")
    return found


def _chosen_layers(
    model: nn.Module, entities: str | Sequence[str] | Mapping[str, str]
) -> dict[str, str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(entities, Mapping):
        for name, kind in entities.items():
            _check_kind(kind)
            if name not in modules:
                near = difflib.get_close_matches(name, modules, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"entities names {name!r}, no module of the model{hint}")
            if not isinstance(modules[name], LAYER_TYPES[kind]):
                raise ValueError(
                    f"{kind!r} need a {LAYER_TYPES[kind].__name__}, "
                    f"but {name!r} is a {type(modules[name]).__name__}"
                )
        return {name: entities[name] for name in modules if name in entities}
    chosen: dict[str, str] = {}
    for kind in [entities] if isinstance(entities, str) else entities:
        assert isinstance(kind, str)
        _check_kind(kind)
        names = _layer_names(modules, kind)
        if not names:
            raise ValueError(
                f"the model has no layer for entities={kind!r}: {_way_out(modules, kind)}"
            )
        for name in names:
            if name in chosen and chosen[name] != kind:
                raise ValueError(f"entities overlap: {name!r} is in {chosen[name]!r} and {kind!r}")
            chosen[name] = kind
    return {name: chosen[name] for name in modules if name in chosen}


def _layer_names(modules: Mapping[str, nn.Module], kind: str) -> list[str]:
    """The layers whose entities are of that kind; the last linear one is the output and has none."""
    names = [name for name, m in modules.items() if isinstance(m, LAYER_TYPES[kind])]
    return names[:-1] if kind == "neurons" else names


def _way_out(modules: Mapping[str, nn.Module], kind: str) -> str:
    for other in LAYER_TYPES:
        if other != kind and _layer_names(modules, other):
            return f"use {other!r}, which takes its {LAYER_TYPES[other].__name__} layers"
    return "nothing to regularise"


def _slices(
    model: nn.Module, chosen: Mapping[str, str], include_norm: bool
) -> tuple[LayerEntities, ...]:
    """The entities of chosen layers, {name: kind}; a weight of two layers counts once."""
    norms = _following_norms(model) if include_norm else {}
    found: list[LayerEntities] = []
    owner: dict[int, tuple[str, str]] = {}
    for name, kind in chosen.items():
        weight = _plain_parameter(model, name, "weight")
        _check_groups(model, name, kind)
        if id(weight) in owner:
            if owner[id(weight)][1] != kind:
                raise ValueError(
                    f"entities overlap: the weight of {name!r} is in {owner[id(weight)][1]!r} of "
                    f"{owner[id(weight)][0]!r} and in {kind!r}"
                )
            continue  # a weight that two modules share is one set of entities
        owner[id(weight)] = name, kind
        if kind == "input_channels":
            found.append(SliceEntities(name, (weight,), 1))
            continue
        has_bias = model.get_submodule(name).bias is not None
        bias = [_plain_parameter(model, name, "bias")] if has_bias else []
        found.append(SliceEntities(name, (weight, *bias, *norms.get(name, [])), 0))
    return tuple(found)


def _check_groups(model: nn.Module, name: str, kind: str) -> None:
    if kind == "input_channels" and getattr(model.get_submodule(name), "groups", 1) > 1:
        raise ValueError(
            f"the kernels of one input channel of the grouped convolution {name!r} are no slice of "
            "its weight: use filters there, or give the entities by positions"
        )


def _check_kind(kind: str) -> None:
    if kind not in LAYER_TYPES:
        near = difflib.get_close_matches(str(kind), LAYER_TYPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"entities must be among {', '.join(LAYER_TYPES)}, not {kind!r}{hint}")


def _plain_parameter(model: nn.Module, name: str, key: str) -> nn.Parameter:
    module = model.get_submodule(name)
    parameter = dict(module.named_parameters(recurse=False)).get(key)
    if parameter is None:
        raise ValueError(
            f"{name!r} has no plain parameter {key!r} (is it parametrised?): its entities cannot "
            "be regularised"
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


def _all_strings(values: object) -> bool:
    return isinstance(values, Sequence) and all(isinstance(value, str) for value in values)

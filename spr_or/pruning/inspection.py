"""What pruning could remove from a network, seen before anything is trained: `inspect_network`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from spr_or.pruning.chosen_entities import chosen_entities
from spr_or.pruning.compaction.errors import CompactionError
from spr_or.pruning.compaction.facts import operands
from spr_or.pruning.compaction.inputs import Example
from spr_or.pruning.compaction.plan import Plan
from spr_or.pruning.compaction.prepare import computed_weights
from spr_or.pruning.compaction.size import Skeleton
from spr_or.pruning.compaction.trace import where_written
from spr_or.pruning.compaction.untraceable import refusal
from spr_or.pruning.compaction.weighted import WEIGHTED
from spr_or.pruning.counts import count_parameters
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.groups import TRANSPOSED, output_dim
from spr_or.pruning.ignored import Ignored, ignored_modules
from spr_or.pruning.layer_entities import GROUP_KINDS, LayerEntities
from spr_or.pruning.layer_rows import layer_label
from spr_or.pruning.module_masks import module_masks
from spr_or.pruning.output_layers import output_layers
from spr_or.pruning.unwrap import unwrap

KINDS = ("filters", "neurons", *GROUP_KINDS)


@dataclass(frozen=True)
class LayerEffect:
    """The entities of one layer, or of a group that crosses layers, and what one of them removes.

    Attributes
    ----------
    layer, label : the name in ``spr.layers``, and the same with the type where the name says little
    kind : filters, neurons, channels, heads or blocks
    count : N, the number of entities
    weights : numbers in one entity: what SPR sees
    parameters, macs : what leaves the network with one entity, columns of readers and norms
        included: the mean over half of the layer's entities, drawn at random and removed together.
        MACs are those of convolutions and linear layers for one sample.
    modules : the modules that hold weights of the entity
    """

    layer: str
    label: str
    kind: str
    count: int
    weights: int
    parameters: float
    macs: float
    modules: tuple[str, ...]


@dataclass(frozen=True)
class LeftAlone:
    """A weight that is in no entity, and why."""

    layer: str
    label: str
    reason: str


@dataclass(frozen=True)
class Obstacle:
    """An operator in front of which removed features are put back as constants.

    The features leave the layers in front of it; the operator, and what reads it, keeps its width.

    Attributes
    ----------
    operator : such as ``"aten.cumsum"``
    reason : why it cannot run on what is left
    where : the line of the user's code, "file:line: code", empty where unknown
    layers : those in front of it, whose features are put back
    times : how often it stands in the network for the same reason and line
    """

    operator: str
    reason: str
    where: str
    layers: tuple[str, ...]
    times: int


@dataclass(frozen=True)
class Inspection:
    """What `inspect_network` found.

    Attributes
    ----------
    parameters, macs : of the whole network; MACs of convolutions and linear layers for one sample
    half_parameters, half_macs : the same with half of the entities of every layer removed at random
        (of blocks: every second block)
    layers, left_alone, obstacles : in the order of the network
    """

    parameters: int
    macs: int
    half_parameters: int
    half_macs: int
    layers: tuple[LayerEffect, ...]
    left_alone: tuple[LeftAlone, ...]
    obstacles: tuple[Obstacle, ...]


def inspect_network(
    model: nn.Module,
    example: Example,
    entities: str | Sequence[str] = ("filters", "neurons"),
    ignored: Ignored = (),
) -> Inspection:
    """The entities of a network, what each removes, what is left alone, and what stays at full width.

    Nothing is trained, and the model is not changed. The layers are those that `Pruner` regularises
    with the same arguments.

    Parameters
    ----------
    example : a tensor, a tuple of positional or a dict of keyword inputs; sizes count, values do not
    entities : ``"filters"``, ``"neurons"``, ``"channels"``, ``"heads"``, ``"blocks"``, or several
    ignored : layers to leave out, by name, glob pattern or type

    Raises CompactionError (a ``ValueError``) for a network that cannot be traced, with every place in it
    that stops the tracing, and ``ValueError`` where there are no such entities.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = inspect_network(net, torch.zeros(1, 4), "neurons")
    >>> [(layer.layer, layer.count, layer.parameters) for layer in found.layers]
    [('0', 8, 7.0)]
    >>> found.left_alone[0].reason
    'it writes an output of the network'
    """
    words = (entities,) if isinstance(entities, str) else tuple(entities)
    for word in words:
        if word not in KINDS:
            raise ValueError(f"entities must be among {', '.join(KINDS)}, not {word!r}")
    inner = unwrap(model)
    try:
        skeleton = Skeleton(inner, example)
        reasons = _reasons(inner, example, ignored)
        left_out = [name for name in reasons if name]
        layers = chosen_entities(inner, example, words, ignored=left_out).of(inner)
    except CompactionError as error:
        raise refusal(inner, example, error) from error
    whole = skeleton.left({})
    plan = skeleton.plan(module_masks(inner, layers, _half_of_all(layers)))
    half = _sizes(skeleton, inner, layers, _half_of_all(layers))
    total = count_parameters(inner)
    return Inspection(
        total,
        whole.operations,
        total - (whole.parameters - half.parameters),
        half.operations,
        tuple(_effect(skeleton, inner, layer, whole) for layer in layers),
        tuple(_left_alone(inner, layers, reasons, words)),
        tuple(_obstacles(plan)),
    )


def _reasons(model: nn.Module, example: Example, ignored: Ignored) -> dict[str, str]:
    """Modules that have no entities whatever kind is asked for."""
    reasons = dict.fromkeys(sorted(ignored_modules(model, ignored)), "ignored, as asked")
    for name in computed_weights(model):
        reasons[name] = (
            "its weight is computed at each call (a hook or a parametrisation): make it plain first, "
            "spr_or.pruning.compaction.prepare.bake_weights_"
        )
    for name, module in model.named_modules():
        if isinstance(module, TRANSPOSED) and module.groups > 1 and output_dim(module) == 1:
            reasons[name] = (
                "the filters of a grouped transposed convolution are no slice of its weight"
            )
    outputs = output_layers(model, example)
    return reasons | dict.fromkeys(sorted(outputs), "it writes an output of the network")


def _half_of(layer: LayerEntities, generator: torch.Generator) -> Tensor:
    """A mask that drops half of the entities, at least one; True = keep."""
    keep = torch.ones(layer.count, dtype=torch.bool)
    keep[torch.randperm(layer.count, generator=generator)[: max(1, layer.count // 2)]] = False
    return keep


def _half_of_all(layers: Sequence[LayerEntities]) -> dict[str, Tensor]:
    """Half of each layer; of layers that are one entity, every second."""
    generator = torch.Generator().manual_seed(0)
    masks = {layer.name: _half_of(layer, generator) for layer in layers}
    single = [layer.name for layer in layers if layer.count == 1]
    return {name: keep for name, keep in masks.items() if name not in single[::2]}


def _sizes(
    skeleton: Skeleton, model: nn.Module, layers: Sequence[LayerEntities], masks: dict[str, Tensor]
) -> Any:
    return skeleton.left(module_masks(model, layers, masks))


def _effect(skeleton: Skeleton, model: nn.Module, layer: LayerEntities, whole: Any) -> LayerEffect:
    keep = _half_of(layer, torch.Generator().manual_seed(0))
    left = _sizes(skeleton, model, [layer], {layer.name: keep})
    gone = int((~keep).sum())
    modules = dict(model.named_modules())
    return LayerEffect(
        layer.name,
        layer_label(layer.name, modules[layer.name]) if layer.name in modules else layer.name,
        _kind(layer, modules),
        layer.count,
        int(layer.sizes[0]),
        (whole.parameters - left.parameters) / gone,
        (whole.operations - left.operations) / gone,
        tuple(_owners(model, layer.parameters)),
    )


def _kind(layer: LayerEntities, modules: dict[str, nn.Module]) -> str:
    if isinstance(layer, GroupEntities) and layer.kind != "own":
        return layer.kind
    return "neurons" if isinstance(modules.get(layer.name), nn.Linear) else "filters"


def _owners(model: nn.Module, parameters: Iterable[nn.Parameter]) -> list[str]:
    """The modules that hold the parameters, each once, in their order."""
    names = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}
    return list(dict.fromkeys(names[id(p)] for p in parameters))


def _left_alone(
    model: nn.Module,
    layers: Sequence[LayerEntities],
    reasons: dict[str, str],
    words: Sequence[str],
) -> Iterable[LeftAlone]:
    """Weights of two or more dimensions that are in no entity."""
    taken = {id(p) for layer in layers for p in layer.parameters}
    modules = dict(model.named_modules())
    told: set[str] = set()
    for parameter_name, parameter in model.named_parameters():
        owner, _, key = parameter_name.rpartition(".")
        holder = _holder(owner, reasons)
        name = holder if key == "weight" or holder in reasons else parameter_name
        if id(parameter) in taken or parameter.dim() < 2 or name in told:
            continue
        told.add(name)
        module = modules.get(name)
        label = name if module is None else layer_label(name, module) or type(module).__name__
        yield LeftAlone(name, label, reasons.get(holder) or _other_reason(module, words))


def _holder(module: str, reasons: dict[str, str]) -> str:
    """The nearest module around that there is a reason for; parametrisations lie inside of their layer."""
    place = module
    while place and place not in reasons:
        place = place.rpartition(".")[0]
    return place if place in reasons and place else module


def _other_reason(module: nn.Module | None, words: Sequence[str]) -> str:
    asked = " or ".join(words)
    if module is None:
        return f"a parameter of its own, in none of the {asked}"
    if set(words) <= set(GROUP_KINDS):
        return (
            f"in none of the {asked}: its features reach an output of the network, or an operator "
            "that they cannot be followed through"
        )
    if isinstance(module, nn.Linear) and "neurons" in words:
        return "it is no hidden layer between two others: a sum, attention or an output reads it"
    return f"{type(module).__name__} has no {asked}"


def _obstacles(plan: Plan) -> Iterable[Obstacle]:
    """Operators in front of which something is put back; equal ones are counted."""
    found: dict[tuple[str, str, str], list[str]] = {}
    times: dict[tuple[str, str, str], int] = {}
    for stop in plan.obstacles():
        key = stop.operator.removesuffix(".default"), stop.reason, where_written(stop.node)
        times[key] = times.get(key, 0) + 1
        found.setdefault(key, []).extend(_writers(plan, stop.node))
    for key, layers in found.items():
        yield Obstacle(*key, tuple(dict.fromkeys(layers)), times[key])


def _writers(plan: Plan, node: fx.Node) -> list[str]:
    """The layers that write what is put back in front of a node."""
    reads = plan.decisions[node].reads
    waiting = [
        x
        for x, keep in zip(operands(node, plan.facts), reads, strict=True)
        if any(k is not None for k in plan.kept[x]) and any(k is None for k in keep)
    ]
    seen, names = set(waiting), []
    while waiting:
        x = waiting.pop()
        if x.op == "call_function" and x.target in WEIGHTED:
            names += _weight_owners(x.args[1])
            continue
        narrowed = [s for s in x.all_input_nodes if any(k is not None for k in plan.kept[s])]
        waiting += [s for s in narrowed if s not in seen]
        seen |= set(narrowed)
    return names[::-1]


def _weight_owners(weight: Any) -> list[str]:
    """The modules whose parameters a weight is made of."""
    if weight.op == "get_attr":
        return [str(weight.target).rpartition(".")[0]]
    return [name for source in weight.all_input_nodes for name in _weight_owners(source)]

r"""A network without some of its entities, and how its numbers lie in those of the original.

Training that shrinks goes on with a smaller network, while checkpoints, masks and reports speak of
the original one. A `Narrowing` holds the smaller network and the place of each of its numbers in the
original, so weights, momentum and BatchNorm statistics move between both without a change:

    part = whole[rows][:, columns],      whole[rows][:, columns] = part,  and 0 elsewhere.

What is removed must be zero in the original: the filter, its bias, and the scale and shift of the norm
behind it. Then both networks compute the same in training too, and have the same gradients.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spr_or.pruning.chosen_entities import ChosenEntities
from spr_or.pruning.compaction.api import CompactionWarning, compact
from spr_or.pruning.compaction.outputs import difference_of, tolerance
from spr_or.pruning.groups import EntityGroup, Member
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.masks import apply_masks_, filter_rows
from spr_or.pruning.module_masks import groups_of, module_masks
from spr_or.pruning.per_entity import crossed
from spr_or.pruning.regularizer import SPR
from spr_or.utils.full_float32 import full_float32

Kept = dict[str, list[list[int] | None]]

_SAMPLES = 8  # images on which both are compared


class CannotShrink(ValueError):
    """A network whose training would not be the same without the removed entities."""


class Narrowing(NamedTuple):
    """A smaller ``network``; ``kept`` says where its parameters and buffers stood in the original.

    ``kept`` is {name: indices for each dimension, None for all}; ``masks`` are {layer: bool (N,)} over
    the original's regularised layers, True for entities that are left. ``held`` are parameters with bool
    masks of what is removed and yet there, because an operator needs its full width.
    """

    network: nn.Module
    kept: Kept
    masks: dict[str, Tensor]
    held: list[tuple[Tensor, Tensor]]

    @torch.no_grad()
    def hold(self) -> None:
        """Zero what is removed and yet there; call it after each step, as what `hold_masks` gives."""
        for parameter, gone in self.held:
            parameter.masked_fill_(gone, 0)

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What is left of a tensor that has the shape of the original's ``name``."""
        for dim, index in enumerate(self.kept[name]):
            if index is not None:
                whole = whole.index_select(dim, torch.tensor(index, device=whole.device))
        return whole

    def put_(self, name: str, whole: Tensor, part: Tensor, rest: float | None = 0.0) -> None:
        """The inverse of `part`, in place; what is removed becomes ``rest``, None leaves it."""
        if rest is not None and any(index is not None for index in self.kept[name]):
            whole.fill_(rest)
        places = [
            torch.arange(size) if index is None else torch.tensor(index)
            for size, index in zip(whole.shape, self.kept[name], strict=True)
        ]
        if places:
            whole[torch.meshgrid(*places, indexing="ij")] = part.to(whole)
        else:
            whole.copy_(part)


def narrow(
    model: nn.Module,
    layers: Sequence[LayerEntities],
    masks: Mapping[str, Tensor],
    example: Any,
) -> Narrowing:
    """``model`` without the entities that ``masks`` (True = keep) remove, which must be zero in it.

    layers: the entities of the model, as ``spr.layers``. masks: bool (N,) for each of them. The model
    is not changed; the smaller network has its weights and statistics and is in its mode.

    Raises `CannotShrink` where the smaller network would not train as the original does: it has
    parameters of its own, or other outputs, in evaluation or in training mode.
    """
    twin = copy.deepcopy(model)
    _fill_zeros_(twin)  # so that nothing but the masked entities goes
    by_module = module_masks(twin, _same_layers(model, twin, layers), dict(masks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompactionWarning)
        network = compact(twin, by_module, example)
    kept = _within_groups(network.meta["kept"], model)  # type: ignore[arg-type, index]
    left = {name: keep.cpu() for name, keep in masks.items()}
    unknown = sorted(set(dict(network.named_parameters())) - set(kept))
    if unknown:
        raise CannotShrink(
            f"the smaller network would have parameters that the original has not: {unknown[0]}"
        )
    found = Narrowing(network, kept, left, [])
    found.held.extend(_still_there(found, twin, by_module, example))
    read_(found, model)
    network.train(model.training)
    for training in (False, True):
        _compare(model, network, example, training)
    return found


def _within_groups(kept: Kept, model: nn.Module) -> Kept:
    """The same for weights: those of a convolution in groups have positions of one group only.

    Compaction counts them over the whole input. Raises `CannotShrink` where groups keep others than
    each other.
    """
    found = dict(kept)
    for path, layer in model.named_modules():
        name = f"{path}.weight"
        groups = getattr(layer, "groups", 1)
        if groups == 1 or name not in kept or kept[name][1] is None:
            continue
        width = layer.weight.shape[1]
        each = [
            {i % width for i in kept[name][1] or () if i // width == group}
            for group in range(groups)
        ]
        alive = [positions for positions in each if positions]
        if any(positions != alive[0] for positions in alive):
            raise CannotShrink(f"the groups of {path!r} would keep different channels")
        inside = sorted(alive[0]) if alive and len(alive[0]) < width else None
        found[name] = [kept[name][0], inside, *kept[name][2:]]
    return found


@torch.no_grad()
def read_(narrowing: Narrowing, whole: nn.Module) -> None:
    """Fill the smaller network from the original."""
    source = whole.state_dict()
    for name, tensor in narrowing.network.state_dict().items():
        if name in narrowing.kept:
            tensor.copy_(narrowing.part(name, source[name]))
        elif name in source and source[name].shape == tensor.shape:
            tensor.copy_(source[name])


@torch.no_grad()
def write_(narrowing: Narrowing, whole: nn.Module) -> None:
    """Fill the original from the smaller network: zeros, and statistics of nothing, where it has none."""
    target = whole.state_dict()
    for name, tensor in narrowing.network.state_dict().items():
        if name in narrowing.kept:
            rest = 1.0 if name.endswith("running_var") else 0.0
            narrowing.put_(name, target[name], tensor, rest)
        elif name in target and target[name].shape == tensor.shape:
            target[name].copy_(tensor)


@torch.no_grad()
def read_optimizer_(
    narrowing: Narrowing,
    part: torch.optim.Optimizer,
    whole: torch.optim.Optimizer,
    model: nn.Module,
) -> None:
    """Give the smaller network's optimiser the state of ``whole``, of ``model``: momentum and the like."""
    originals = dict(model.named_parameters())
    for name, parameter in narrowing.network.named_parameters():
        original = originals[name]

        def moved(value: Tensor, name: str = name, parameter: Tensor = parameter) -> Tensor:
            own = torch.empty_like(parameter, dtype=value.dtype)
            return own.copy_(narrowing.part(name, value))

        _copy_state_(part, parameter, whole, original, moved)


@torch.no_grad()
def write_optimizer_(
    narrowing: Narrowing,
    part: torch.optim.Optimizer,
    whole: torch.optim.Optimizer,
    model: nn.Module,
) -> None:
    """The inverse of `read_optimizer_`; the momentum of what is removed becomes zero."""
    originals = dict(model.named_parameters())
    for name, parameter in narrowing.network.named_parameters():
        original = originals[name]

        def moved(value: Tensor, name: str = name, original: Tensor = original) -> Tensor:
            own = torch.zeros_like(original, dtype=value.dtype)
            narrowing.put_(name, own, value)
            return own

        _copy_state_(whole, original, part, parameter, moved)


def _copy_state_(
    to: torch.optim.Optimizer,
    target: nn.Parameter,
    of: torch.optim.Optimizer,
    source: nn.Parameter,
    moved: Callable[[Tensor], Tensor],
) -> None:
    """Copy a parameter's state from one optimiser to another; what has its shape is ``moved``."""
    for key, value in of.state.get(source, {}).items():
        if torch.is_tensor(value):
            value = moved(value) if value.shape == source.shape else value.clone()
        to.state[target][key] = value


def _still_there(
    found: Narrowing, model: nn.Module, by_module: Mapping[str, Tensor], example: Any
) -> list[tuple[Tensor, Tensor]]:
    """Parameters of the smaller network with what is removed in them and yet there, as bool masks.

    An operator may need its input at full width.
    """
    marks = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in marks.parameters():
            parameter.fill_(1)
    apply_masks_(marks, by_module, example)
    marked = dict(marks.named_parameters())
    pairs = [
        (p, found.part(name, marked[name]) == 0) for name, p in found.network.named_parameters()
    ]
    return [(parameter, gone) for parameter, gone in pairs if bool(gone.any())]


def narrowed_entities(
    narrowing: Narrowing, model: nn.Module, layers: Sequence[LayerEntities], chosen: ChosenEntities
) -> ChosenEntities:
    """The entities that are left, in the smaller network; ``layers`` and ``chosen`` are the original's.

    Raises `CannotShrink` where all are gone.
    """
    alive = {name: keep for name, keep in narrowing.masks.items() if bool(keep.any())}
    if not alive:
        raise CannotShrink("nothing is left of the regularised layers")
    groups = groups_of(model, layers)
    if groups:
        left = [_narrowed_group(narrowing, g, alive[g.name]) for g in groups if g.name in alive]
        return ChosenEntities(left, chosen.include_norm, ())
    modules = dict(narrowing.network.named_modules())
    missing = [name for name in alive if name not in modules]
    if missing:
        raise CannotShrink(f"the smaller network has no layer {missing[0]!r}")
    for name, keep in alive.items():
        there, count = len(filter_rows(modules[name])), int(keep.sum())
        if there != count:
            raise CannotShrink(f"of layer {name!r} {there} entities stay, not {count}")
    kinds = {n: "neurons" if isinstance(modules[n], nn.Linear) else "filters" for n in alive}
    return ChosenEntities(kinds, chosen.include_norm, ())


def numbers_of_left(spr: SPR, values: Tensor, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``spr.bound`` or ``spr.importance`` of the entities that are left, by layer: (n,) or (n, L)."""
    left = {}
    for layer, rows in by_layer(spr, values):
        keep = masks[layer.name].to(rows.device)
        if bool(keep.any()):
            left[layer.name] = rows[keep]
    return left


def by_layer(spr: SPR, values: Tensor) -> Iterable[tuple[LayerEntities, Tensor]]:
    """Each layer of ``spr`` with its part of ``bound`` (n L,) or ``importance`` (n,): views."""
    layers = spr.ordered_layers()
    width = len(values) // sum(layer.count for layer in layers)
    bounds = values is spr.bound or width > 1
    widths = [crossed(layer) if bounds else 1 for layer in layers]
    sizes = [layer.count * w for layer, w in zip(layers, widths, strict=True)]
    for layer, w, rows in zip(layers, widths, values.split(sizes), strict=True):
        yield layer, rows if w == 1 else rows.view(layer.count, w)


def _narrowed_group(narrowing: Narrowing, group: EntityGroup, keep: Tensor) -> EntityGroup:
    """The group's entities that are left, by their indices in the smaller network."""
    members = []
    for member in group.members:
        index = member.index[keep.to(member.index.device)]
        if member.parameter not in narrowing.kept:
            continue  # nothing of the layer is left
        left = narrowing.kept[member.parameter][member.dim]
        if left is not None:
            place = {old: new for new, old in enumerate(left)}
            index = torch.tensor([[place.get(i, -1) for i in row] for row in index.tolist()])
            if bool((index < 0).any()):
                raise CannotShrink(
                    f"an entity of {group.name!r} is left without {member.parameter!r}"
                )
        members.append(Member(member.parameter, member.dim, index))
    if len({m.parameter.rpartition(".")[0] for m in members}) < len(
        {m.parameter.rpartition(".")[0] for m in group.members}
    ):
        raise CannotShrink(f"entities of {group.name!r} lose a layer of their own")
    return EntityGroup(group.name, tuple(members), group.kind)


def _same_layers(
    model: nn.Module, twin: nn.Module, layers: Sequence[LayerEntities]
) -> Sequence[LayerEntities]:
    """The layers of a copy; only groups refer to parameters that `module_masks` looks for."""
    groups = groups_of(model, layers)
    if not groups:
        return layers
    from spr_or.pruning.group_entities import group_entities

    return group_entities(twin, groups)


@torch.no_grad()
def _fill_zeros_(model: nn.Module) -> None:
    """Small random numbers where a parameter is zero, of which compaction would make use."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        scale = float(parameter.abs().max()) or 1.0
        noise = torch.rand(parameter.shape, generator=generator).add_(0.5).mul_(1e-2 * scale)
        parameter.copy_(torch.where(parameter == 0, noise.to(parameter), parameter))


def _compare(whole: nn.Module, part: nn.Module, example: Any, training: bool) -> None:
    """Raise `CannotShrink` where the outputs differ by more than rounding; random ones say nothing."""
    shape = (_SAMPLES, *example.shape[1:])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(example)
    one, again, other = (_outputs(m, images, training, seed) for m, seed in
                         ((whole, 0), (whole, 1), (part, 0)))  # fmt: skip
    if training and difference_of(one, again) > 0:
        return
    difference = difference_of(one, other)
    if difference > tolerance(whole):
        mode = "training" if training else "evaluation"
        raise CannotShrink(f"in {mode} mode the outputs would differ by {difference:.2g}")


def _outputs(model: nn.Module, images: Tensor, training: bool, seed: int) -> list[Tensor]:
    copied = copy.deepcopy(model).train(training)
    with torch.no_grad(), full_float32(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [copied(images)]

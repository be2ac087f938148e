r"""Gates: a factor for each entity on its channels, which methods train beside the weights.

The factor :math:`g_i` multiplies the channel of entity i behind the norm that follows its layer, for a
norm would undo a factor in front of it; where no norm follows, at the layer's own output. A group of
entities has its gates at every layer or norm that writes its channels, a residual branch one gate where
it ends. At the end gates are folded into scales and shifts, or weights and biases, without changing what
the network computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spr_or.pruning.budget import EntityNumbers
from spr_or.pruning.counts import Example
from spr_or.pruning.following_norms import CONVOLUTIONS, LAYERS, NORMS, TRANSPOSED, following_norms
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.groups import output_dim
from spr_or.pruning.layer_entities import LayerEntities, SliceEntities
from spr_or.pruning.unwrap import unwrap
from spr_or.training.method import PruningTask

_WRITERS = (*LAYERS, nn.Embedding)


@dataclass(frozen=True, eq=False)
class Place:
    """Where gates are multiplied: the output of ``module``.

    ``entity`` (C,) names the entity of each channel, N for channels in none; None where channel i is
    entity i.
    """

    module: Any
    entity: Tensor | None = None

    def factors(self, gate: Tensor) -> Tensor:
        """The factor of each channel, (C,), from the gates (N,)."""
        if self.entity is None:
            return gate
        return torch.cat([gate, gate.new_ones(1)])[self.entity]


@dataclass(eq=False)
class Gates:
    """Gates of several layers in one parameter, as hooks of a network.

    Attributes
    ----------
    values : (n,), the gates of all layers in their order; ones in the beginning
    sizes : how many of them each layer has
    effective : what multiplies the channels, as a function of ``values``
    """

    values: nn.Parameter
    sizes: list[int]
    places: list[list[Place]]
    effective: Callable[[Tensor], Tensor]
    _now: tuple[Tensor, ...] = ()
    _hooks: list[Any] = field(default_factory=list)

    def attach(self, model: nn.Module) -> None:
        """Let the gates act in each forward pass of ``model``."""

        def refresh(module: nn.Module, inputs: Any) -> None:
            self._now = self.effective(self.values).split(self.sizes)

        self._hooks.append(model.register_forward_pre_hook(refresh))
        for number, places in enumerate(self.places):
            for place in places:
                self._hooks.append(place.module.register_forward_hook(self._hook(number, place)))

    def _hook(self, number: int, place: Place) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        dim = channel_dim(place.module)

        def multiply(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            factors = place.factors(self._now[number]).to(output.dtype)
            behind = output.dim() - 1 - dim if dim >= 0 else -1 - dim
            return output * factors.view(-1, *[1] * behind)

        return multiply

    def of_entities(self, numbers: Tensor, layers: Sequence[LayerEntities]) -> EntityNumbers:
        """Numbers for all gates (n,) by the names of the first layers that have them."""
        parts = numbers.detach().split(self.sizes)
        return {layer.name: part for layer, part in zip(layers, parts, strict=False)}

    def detach(self) -> None:
        """Remove the hooks; the network computes without gates."""
        while self._hooks:
            self._hooks.pop().remove()
        self._now = ()

    @torch.no_grad()
    def fold(self, keep: Sequence[Tensor]) -> None:
        """Multiply the gates into the network and remove the hooks.

        ``keep`` holds a mask (N,) for each layer, True = stays. An entity that stays with a gate
        of zero would be dead, and compaction would take it beyond the budget: it gets the smallest factor
        of its layer that is not zero, or one.
        """
        factors = self.effective(self.values).split(self.sizes)
        for gate, stays, places in zip(factors, keep, self.places, strict=True):
            alive = _alive(gate, stays.to(gate.device))
            for place in places:
                module, scale = place.module, place.factors(alive)
                dim = 0 if isinstance(module, NORMS) else output_dim(module)
                shape = [-1 if d == dim else 1 for d in range(module.weight.dim())]
                module.weight.mul_(scale.view(shape).to(module.weight.dtype))
                if getattr(module, "bias", None) is not None:
                    module.bias.mul_(scale.to(module.bias.dtype))
        self.detach()


def _alive(gate: Tensor, stays: Tensor) -> Tensor:
    """Gates of which none is zero where ``stays``."""
    size = torch.where(gate == 0, torch.inf, gate.abs()).amin()
    return torch.where(stays & (gate == 0), torch.where(size.isinf(), 1.0, size), gate)


def add_gates(
    model: nn.Module,
    layers: Sequence[LayerEntities],
    example: Example,
    effective: Callable[[Tensor], Tensor] = lambda values: values,
) -> Gates:
    """Gates of one on every entity of ``layers``, acting in each forward pass of ``model``.

    Raises ``ValueError`` for entities that are no outputs of modules: input channels, positions,
    parameters that no layer or norm holds, and for norms that have no scale to fold a gate into or that
    follow two gated layers.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU()).eval()
    >>> x = torch.rand(1, 1, 4, 4)
    >>> gates = add_gates(net, layer_entities(net), x)
    >>> with torch.no_grad():
    ...     _ = gates.values.copy_(torch.tensor([0.0, 0.5]))
    >>> gated = net(x)
    >>> gates.fold([torch.tensor([False, True])])
    >>> net[1].weight.tolist(), torch.allclose(net(x), gated)
    ([0.0, 0.5], True)
    """
    inner = unwrap(model)
    norms = following_norms(inner, example)
    places = [gate_places(inner, layer, norms) for layer in layers]
    _check_norms(inner, layers, places)
    sizes = [layer.count for layer in layers]
    device = next(inner.parameters()).device
    gates = Gates(nn.Parameter(torch.ones(sum(sizes), device=device)), sizes, places, effective)
    gates.attach(model)
    return gates


def channel_dim(module: Any) -> int:
    """The dimension of a module's output that holds its channels.

    >>> channel_dim(nn.Conv2d(1, 1, 1)), channel_dim(nn.BatchNorm1d(2)), channel_dim(nn.LayerNorm(2))
    (-3, 1, -1)
    """
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return -1 - len(module.kernel_size)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        own = type(module).forward not in (nn.LayerNorm.forward, nn.RMSNorm.forward)
        return 1 if own else -1  # a subclass as LayerNorm2d, see `following_norms.scales`
    return 1 if isinstance(module, NORMS) else -1


def gate_places(model: nn.Module, layer: LayerEntities, norms: dict[str, list[str]]) -> list[Place]:
    """Where the gates of a layer's entities act; ``norms`` of `following_norms`.

    Raises ``ValueError`` for entities that are no outputs of modules.
    """
    if isinstance(layer, GroupEntities):
        return _places_of_group(model, layer, norms)
    module = dict(model.named_modules()).get(layer.name)
    if (
        not isinstance(layer, SliceEntities)
        or not isinstance(module, LAYERS)
        or layer.dim != output_dim(module)
    ):
        raise ValueError(
            f"the entities of {layer.name!r} are not the outputs of a layer, so they have no channels "
            "for gates: use filters, neurons, channels or blocks"
        )
    behind = norms.get(layer.name, [])
    return [Place(model.get_submodule(name)) for name in behind] or [Place(module)]


def _places_of_group(
    model: nn.Module, group: GroupEntities, norms: dict[str, list[str]]
) -> list[Place]:
    """The norms of the group, and its layers without such a norm behind; for a branch the last."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for part in group.parts:
        owner, _, key = names[id(part.parameter)].rpartition(".")
        module = model.get_submodule(owner)
        if not isinstance(module, (*_WRITERS, *NORMS)) or key not in ("weight", "bias"):
            raise ValueError(
                f"the entities of {group.name!r} hold {names[id(part.parameter)]!r}, which is no "
                "output of a layer, so gates do not reach it: use filters or neurons"
            )
        if isinstance(module, NORMS) or part.dim == output_dim(module) or key == "bias":
            found.setdefault(owner, part.index)
    normed = {name for name in found if any(norm in found for norm in norms.get(name, []))}
    places = [
        Place(model.get_submodule(name), _entity_of_channels(model.get_submodule(name), index))
        for name, index in found.items()
        if name not in normed
    ]
    return places[-1:] if group.kind == "blocks" else places


def _entity_of_channels(module: Any, index: Tensor) -> Tensor | None:
    weight = module.weight
    count = weight.shape[0 if isinstance(module, NORMS) else output_dim(module)]
    entity = torch.full((count,), len(index))
    entity[index.flatten()] = torch.arange(len(index)).repeat_interleave(index.shape[1])
    return None if torch.equal(entity, torch.arange(len(index))) else entity.to(weight.device)


def _check_norms(
    model: nn.Module, layers: Sequence[LayerEntities], places: Sequence[Sequence[Place]]
) -> None:
    names = {module: name for name, module in model.named_modules()}
    gated: dict[nn.Module, str] = {}
    for layer, found in zip(layers, places, strict=True):
        for place in found:
            if getattr(place.module, "weight", None) is None:
                raise ValueError(
                    f"the norm {names[place.module]!r} behind {layer.name!r} has no scale, so a gate "
                    "cannot be folded into it: make it affine, or leave the layer out by spr.ignored"
                )
            if isinstance(layer, SliceEntities) and isinstance(place.module, NORMS):
                other = gated.setdefault(place.module, layer.name)
                if other != layer.name:
                    raise ValueError(
                        f"the norm {names[place.module]!r} follows {other!r} and {layer.name!r}: gates "
                        "of one would act on the other, so leave one of them out by spr.ignored"
                    )


def kept_share(task: PruningTask) -> float:
    """The share of entities, the same in all layers, with which the budget is met.

    Which entities of a layer stay is drawn with the task's seed.
    """
    dice = torch.Generator().manual_seed(task.seed)
    drawn = {layer.name: torch.rand(layer.count, generator=dice) for layer in task.layers}
    masks = task.cut(drawn, "layers").masks.values()
    return sum(int(keep.sum()) for keep in masks) / sum(len(keep) for keep in masks)


def price_to_zero(task: PruningTask, momentum: float, share: float) -> float:
    """The weight of an L1 norm that takes a gate from one to zero in that share of the phase.

    It does so by itself, with steps of the phase's learning rates and ``momentum``.
    """
    way = sum(task.rate(epoch) for epoch in range(task.epochs)) * task.steps / (1 - momentum)
    return 1 / max(share * way, 1e-12)

r"""Better masks for single layers: the set of channels from which the next convolution loses the least.

A layer whose entities are the input channels of one convolution poses the problem of `spr-or layers`:
keep as many as now, and reproduce the convolution's output X W best. X are its inputs with all other
masks in place and this layer whole; of the outputs only those count that stay. The branch and bound
chooses the set (`spr_or.layer_study.channel_scores`). Weights V for a set, the present one too, come from

.. math:: \min_V \lVert X_{kept} V - Y \rVert^2,

with Y the outputs under all masks but this layer's, or those without any masks (He, Zhang, Sun, *Channel
pruning for accelerating very deep neural networks*, ICCV 2017, take the second).

What a convolution loses is not what the network loses. So all of these are tried, the present weights
too, and the best is kept if the loss of other images falls. Layers follow each other in the order of the
network, each seeing what was done before it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spr_or.layer_study.activations import Patches, sample_patches
from spr_or.layer_study.channel_scores import channel_scores
from spr_or.layer_study.refit import moments_of, refitted, shifting_norm, write_
from spr_or.methods.common.consumers import Consumer, consumer_of
from spr_or.pruning.budget import Masks
from spr_or.pruning.counts import Example
from spr_or.pruning.entity_gates import Batch, EntityGates
from spr_or.pruning.following_norms import following_norms
from spr_or.pruning.layer_entities import LayerEntities
from spr_or.pruning.network_groups import features
from spr_or.solvers.time_limit import TimeLimit

MAX_CHANNELS = 64  # larger layers keep their set and may get new weights


class LayerSets(NamedTuple):
    """Masks, in how many layers the set is new and in how many the weights are, and the loss that judged.

    ``proven``: how many of the new sets are the optimum of their layer's problem, to a gap of 10^-3.
    """

    masks: Masks
    new_sets: int
    new_weights: int
    proven: int
    loss_before: float
    loss_after: float


def readers(
    model: nn.Module, layers: Sequence[LayerEntities], example: Example
) -> dict[str, Consumer]:
    """For each of ``layers`` with a problem of its own, the convolution that reads it.

    Raises ``ValueError`` if there is none.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3))
    >>> readers(net, layer_entities(net), torch.zeros(2, 1, 8, 8)).keys()
    dict_keys(['0'])
    """
    found = features(model, example)
    consumers = {
        layer.name: consumer
        for layer in layers
        if (consumer := consumer_of(model, layer, found)) is not None
    }
    if not consumers:
        raise ValueError(
            "there is no convolution that reads only one layer's entities, among "
            f"{', '.join(layer.name for layer in layers)}"
        )
    return consumers


def improve_by_layers(
    model: nn.Module,
    layers: Sequence[LayerEntities],
    masks: Masks,
    seen: Iterable[Batch],
    judged: Batch,
    example: Example,
    layer_seconds: float = 10.0,
    seconds: float = 120.0,
    fits: Callable[[Masks], bool] = lambda masks: True,
) -> LayerSets:
    """Choose sets and weights layer by layer, as long as the loss on ``judged`` falls.

    model: with the weights of all entities; convolutions that get new weights are changed in place, with
    zeros for what has gone, and so is the bias or the running mean behind them. masks: True = keep, (N,)
    for each of ``layers``. seen: images for the inputs of convolutions; judged: others. ``seconds``
    limits all searches, ``layer_seconds`` each. Each layer keeps its number of entities, and ``fits(masks)``
    tells which sets may be taken.

    Raises ``ValueError`` where no layer has such a problem, see `readers`.

    >>> from spr_or.pruning.layer_entities import layer_entities
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 6), nn.Flatten())
    >>> layers, keep = layer_entities(net, {"0": "filters"}), torch.tensor([True, True, False])
    >>> batch = torch.randn(64, 1, 8, 8), torch.randint(2, (64,))
    >>> found = improve_by_layers(net, layers, {"0": keep}, [batch], batch, batch[0][:2])
    >>> int(found.masks["0"].sum()), found.loss_after <= found.loss_before
    (2, True)
    """
    consumers = readers(model, layers, example)
    network = _Network(model, layers, example)
    uncut, images, clock = copy.deepcopy(model), list(seen), TimeLimit(seconds)
    present = {name: keep.cpu() for name, keep in masks.items()}
    before = loss = network.loss(present, judged)
    new_sets = new_weights = proven = 0
    for number, (name, reader) in enumerate(consumers.items()):
        if not 0 < int(present[name].sum()) < len(present[name]):
            continue
        limit = min(layer_seconds, clock.left() / (len(consumers) - number))
        layer = network.layer(reader.name)
        options = [
            option
            for option in _options(network, uncut, present, name, reader, images, limit)
            if torch.equal(option.keep, present[name]) or fits(present | {name: option.keep})
        ]
        losses = []
        for option in options:
            with layer.tried(option):
                losses.append(network.loss(present | {name: option.keep}, judged))
        if not losses or not min(losses) < loss:
            continue
        loss = min(losses)
        best = options[losses.index(loss)]
        layer.write(best)
        same = torch.equal(best.keep, present[name])
        new_sets, new_weights = new_sets + (not same), new_weights + (best.weights is not None)
        proven += best.proven and not same
        present[name] = best.keep
    found = {name: keep.to(masks[name].device) for name, keep in present.items()}
    return LayerSets(found, new_sets, new_weights, proven, before, loss)


class _Option(NamedTuple):
    """A set ``keep`` (N,) with the present weights of its reader, or with V and c of `refitted`."""

    keep: Tensor
    weights: tuple[Tensor, Tensor] | None
    proven: bool


def _options(
    network: _Network,
    uncut: nn.Module,
    masks: Masks,
    name: str,
    reader: Consumer,
    images: list[Batch],
    seconds: float,
) -> Iterator[_Option]:
    """The present and the best set of a layer, each with all weights that are tried."""
    opened = masks | {name: torch.ones_like(masks[name])}
    with network.masked(opened):
        X, W = sample_patches(network.model, [reader.name], images)[reader.name]
    whole = sample_patches(uncut, [reader.name], images)[reader.name].X @ W
    stays = network.outputs_left(masks, reader.name)
    moments = [moments_of(X, Y, network.layer(reader.name).shifts) for Y in (X @ W, whole)]
    sets = [(masks[name], False)]
    if len(reader.entity) <= MAX_CHANNELS and bool(stays.any()):
        size = int(masks[name].sum())
        with contextlib.suppress(ValueError):  # an output that never varies
            patches = Patches(X, W[:, stays])
            found = channel_scores(reader.name, patches, len(reader.entity), size, seconds)
            best = torch.zeros_like(masks[name])
            best[reader.entity[found.scores.argsort(descending=True)[:size]]] = True
            if not torch.equal(best, masks[name]):
                sets.append((best, found.proven))
                yield _Option(best, None, found.proven)
    for keep, proven in sets:
        columns = keep[reader.entity].repeat_interleave(len(W) // len(reader.entity))
        for moment in moments:
            yield _Option(keep, refitted(moment, columns), proven)


class _Network:
    """A network whose masks are gates."""

    def __init__(self, model: nn.Module, layers: Sequence[LayerEntities], example: Example) -> None:
        self.model = model
        self.names = [layer.name for layer in layers]
        self.gates = EntityGates(model, layers, example)
        self.following = following_norms(model, example)

    def _present(self, masks: Masks) -> Tensor:
        return torch.cat([masks[name] for name in self.names])

    def masked(self, masks: Masks) -> contextlib.AbstractContextManager[None]:
        """The network under masks until it is left."""
        device = next(self.model.parameters()).device
        return self.gates.gated(self._present(masks).float().unsqueeze(0).to(device))

    def loss(self, masks: Masks, batch: Batch) -> float:
        """The mean cross-entropy under masks."""
        return self.gates.loss(self._present(masks), batch)

    def outputs_left(self, masks: Masks, name: str) -> Tensor:
        """Which outputs of a convolution no mask silences, bool (c_out,)."""
        padded = torch.cat([self._present(masks), torch.ones(1, dtype=torch.bool)])
        left = torch.ones(len(self.model.get_submodule(name).weight), dtype=torch.bool)  # type: ignore[arg-type]
        for gated in self.following.get(name) or [name]:
            if gated in self.gates.entities:
                left &= padded[self.gates.entities[gated].cpu()]
        return left

    def layer(self, name: str) -> _Reader:
        """The convolution that reads a layer's entities, and what can take a constant."""
        convolution = self.model.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        return _Reader(convolution, shifting_norm(self.model, name, self.following))


class _Reader(NamedTuple):
    """A convolution and the norm behind it that can take a constant, if there is one."""

    convolution: nn.Conv2d
    norm: nn.Module | None

    @property
    def shifts(self) -> bool:
        """Whether a constant can be added to its outputs."""
        return self.convolution.bias is not None or self.norm is not None

    def write(self, option: _Option) -> None:
        """Give it the weights of an option."""
        if option.weights is not None:
            write_(self.convolution, *option.weights, self.norm)

    @contextlib.contextmanager
    def tried(self, option: _Option) -> Iterator[None]:
        """The weights of an option until it is left."""
        written = [self.convolution.weight, self.convolution.bias]
        written.append(getattr(self.norm, "running_mean", None))
        tensors = [tensor for tensor in written if tensor is not None]
        before = [tensor.detach().clone() for tensor in tensors]
        try:
            self.write(option)
            yield
        finally:
            with torch.no_grad():
                for tensor, old in zip(tensors, before, strict=True):
                    tensor.copy_(old)

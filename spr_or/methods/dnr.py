r"""DNR: entities die by magnitude and return by momentum (Kundu et al. 2021, arXiv:2011.03083).

From the first epoch on, only as many entities live as the budget allows. After each epoch a share r of
those of each layer dies, the shortest first, and as much as the budget allows returns. Layer l gets places
in proportion to its normalised momentum

.. math::  \mu_l = \frac{\operatorname{mean}_{i\ \mathrm{alive}} \lVert m_i \rVert_2 / \sqrt{k_i}}
                        {\sum_{l'} \operatorname{mean}_{i\ \mathrm{alive}} \lVert m_i \rVert_2 / \sqrt{k_i}}

where m is the running mean of gradients, and in a layer the dead of the largest ||m_i|| return. Masks hold
in training. The loss has the hybrid regulariser, dynamic L2 after ADMM,

.. math::  \frac{\rho}{2} \sum_l \lVert W_l - Z_l + U_l \rVert^2

with Z the projection of W + U on the sparsity that the next epoch will ask of the layer, and
U <- U + W - Z after each epoch. With ``adversarial`` = e the loss is the mean of those of the
images and of images moved by e sign(gradient), the fast gradient sign method.

Our reading of the abstract and of sparse momentum (Dettmers, Zettlemoyer 2019, arXiv:1907.04840), which
the momentum rule resembles: the paper starts from new weights and a random mask, here the dense network
is masked by magnitude; what returns has the weights it died with; and an entity that no gradient reaches
(a whole channel of zeros, or a zero filter in front of a ReLU) is ranked by the last momentum it had.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from spr_or.methods.common.entity_rows import entity_rows
from spr_or.methods.common.entity_writes import add_to_gradients_, gradient_rows, scale_, write_
from spr_or.methods.common.first_gradients import first_gradients
from spr_or.pruning.budget import EntityNumbers, Masks
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask

_DECAY = 0.9  # of the running mean of gradients


class Keys(MethodKeys):
    """Keys of DNR."""

    # Share of a layer's living entities that dies after the first epoch; falls as a half cosine.
    rate: float = Field(default=0.3, ge=0, lt=1)
    rho: float = Field(default=1e-3, ge=0)  # weight of the dynamic L2 regulariser
    # Size of the attack by FGSM, in units of the images as the network sees them; 0: clean images only.
    adversarial: float = Field(default=0.0, ge=0)


def lengths(rows: Tensor) -> Tensor:
    """||w_i|| / sqrt(k) of rows (N, k).

    >>> lengths(torch.tensor([[3.0, 4.0, 0.0, 0.0]])).tolist()
    [2.5]
    """
    return rows.norm(dim=1) / math.sqrt(rows.shape[1])


def dying(alive: Tensor, length: Tensor, share: float, least: int) -> Tensor:
    """Which of the living die: that share of them, rounded down, the shortest; ``least`` stay.

    >>> alive = torch.tensor([True, True, True, False, True])
    >>> dying(alive, torch.tensor([3.0, 1.0, 2.0, 0.0, 4.0]), 0.5, least=3).tolist()
    [False, True, False, False, False]
    """
    living = int(alive.sum())
    number = max(0, min(int(share * living), living - least))
    order = torch.where(alive, length, math.inf).argsort(stable=True)
    goes = torch.zeros_like(alive)
    goes[order[:number]] = True
    return goes


def layer_momentum(momentum: EntityNumbers, alive: Masks) -> dict[str, float]:
    """The normalised momentum of each layer, from that of its entities, (N,); equal where all is zero.

    >>> layer_momentum({"a": torch.tensor([1.0, 9.0]), "b": torch.tensor([3.0])},
    ...     {"a": torch.tensor([True, False]), "b": torch.tensor([True])})
    {'a': 0.25, 'b': 0.75}
    """
    means = {
        name: float(m[alive[name]].mean()) if bool(alive[name].any()) else 0.0
        for name, m in momentum.items()
    }
    total = sum(means.values())
    return {name: mean / total if total > 0 else 1 / len(means) for name, mean in means.items()}


def places(share: float, dead: Tensor, momentum: Tensor, length: Tensor) -> Tensor:
    """How early each dead entity of a layer returns, (N,) in [0, 1]; 1 for those that live.

    Taking the largest of all layers shares places out in proportion to their ``share``: the j-th of a
    layer has share / j (D'Hondt). In a layer the largest momentum returns first, at equal ones the
    longest.

    >>> dead = torch.tensor([True, False, True])
    >>> places(0.5, dead, torch.tensor([1.0, 0.0, 2.0]), torch.zeros(3)).tolist()
    [0.25, 1.0, 0.5]
    """
    by_length = length.argsort(descending=True, stable=True)
    order = by_length[momentum[by_length].argsort(descending=True, stable=True)]
    order = order[dead[order]]
    result = torch.ones(len(dead), dtype=torch.float64)
    result[order] = share / torch.arange(1, len(order) + 1, dtype=torch.float64)
    return result


def attacked_loss(model: torch.nn.Module, images: Tensor, labels: Tensor, size: float) -> Tensor:
    """The loss on images moved by ``size`` in the sign of its gradient, each pixel."""
    seen = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(seen), labels), seen)
    return F.cross_entropy(model(images + size * gradient.sign()), labels)


class Rewiring:
    """Masks, momentum and the regulariser's target of a network's entities, between epochs and in them."""

    def __init__(self, task: PruningTask, keys: Keys) -> None:
        self.task, self.keys = task, keys
        self.layers = task.layers
        rows = entity_rows(self.layers)
        self.kept = {name: values.clone() for name, values in rows.items()}  # what returns
        batches = list(first_gradients(task, self.layers))
        pairs = zip(rows, zip(*batches, strict=True), strict=True)
        self.momentum = {name: torch.stack(gradients).mean(0) for name, gradients in pairs}
        self.dual = {name: torch.zeros_like(values) for name, values in rows.items()}
        self.alive = {
            name: keep.to(rows[name].device)
            for name, keep in task.cut(self._of(lengths, rows), "layers").masks.items()
        }
        self.anchor = {name: torch.zeros_like(values) for name, values in rows.items()}  # Z - U
        self._aim(rows, self._share(0))

    def _of(self, function: Any, rows: dict[str, Tensor]) -> EntityNumbers:
        return {name: function(values) for name, values in rows.items()}

    def _share(self, epoch: int) -> float:
        """The share that dies after an epoch; nothing after the last one."""
        last = self.task.epochs - 1
        if epoch >= last:
            return 0.0
        return self.keys.rate * (1 + math.cos(math.pi * epoch / last)) / 2

    def _least(self, name: str) -> int:
        return max(1, self.task.limits[name].least)

    @torch.no_grad()
    def _aim(self, rows: dict[str, Tensor], share: float) -> None:
        """Project W + U on the sparsity to come, and move U; of the dead both are zero."""
        for name, values in rows.items():
            alive = self.alive[name]
            wanted = (values + self.dual[name]) * alive.unsqueeze(1)
            stays = alive & ~dying(alive, lengths(wanted), share, self._least(name))
            target = wanted * stays.unsqueeze(1)
            self.dual[name].copy_(wanted - target)
            self.anchor[name].copy_(target - self.dual[name])

    @torch.no_grad()
    def after_backward(self) -> None:
        """Take in the gradients; then add the regulariser's, and clear those of the dead."""
        rows = entity_rows(self.layers)
        for layer in self.layers:
            gradient = gradient_rows(layer)
            momentum = self.momentum[layer.name]
            seen = gradient.any(1, keepdim=True)  # else the last momentum counts
            momentum.copy_(torch.where(seen, momentum.lerp(gradient, 1 - _DECAY), momentum))
            pull = (rows[layer.name] - self.anchor[layer.name]).mul_(self.keys.rho)
            # The optimiser does not see the gradients of the dead: behind a norm they are huge.
            alive = self.alive[layer.name].unsqueeze(1)
            add_to_gradients_(layer, torch.where(alive, pull, -gradient))

    @torch.no_grad()
    def hold(self) -> None:
        """Make the dead zero."""
        for layer in self.layers:
            scale_(layer, self.alive[layer.name].to(layer.parameters[0].dtype))

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> dict[str, Any]:
        """Let entities die and return; returns how many did."""
        share, before = self._share(epoch), {n: keep.clone() for n, keep in self.alive.items()}
        rows = {name: values.clone() for name, values in entity_rows(self.layers).items()}
        for name, values in rows.items():
            self.kept[name].copy_(torch.where(before[name].unsqueeze(1), values, self.kept[name]))
        died = 0
        if share:
            length = self._of(lengths, self.kept)
            momentum = self._of(lengths, self.momentum)
            goes = {n: dying(a, length[n], share, self._least(n)) for n, a in before.items()}
            of_layers = layer_momentum(momentum, before)
            order = {}
            for name, alive in before.items():
                stays = (alive & ~goes[name]).cpu()
                early = places(of_layers[name], ~stays, momentum[name].cpu(), length[name].cpu())
                # Those that live come after all that are dead, the shortest first, should the
                # budget ask for more.
                rank = length[name].double().cpu() / (1 + float(length[name].max()))
                order[name] = torch.where(stays, 2 + rank, early)
            for name, keep in self.task.cut(order).masks.items():
                self.alive[name].copy_(keep)
            died = sum(int((before[n] & ~self.alive[n]).sum()) for n in before)
            for layer in self.layers:
                fresh = self.kept[layer.name] * self.alive[layer.name].unsqueeze(1)
                write_(layer, fresh)
                rows[layer.name] = fresh
        returned = sum(int((self.alive[n] & ~before[n]).sum()) for n in before)
        self._aim(rows, self._share(epoch + 1))
        return {"died": died, "returned": returned}

    def scores(self) -> EntityNumbers:
        """The lengths of the living, above those of the dead."""
        length = self._of(lengths, entity_rows(self.layers))
        return {name: self.alive[name] * (1 + length[name]) for name in length}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        names = ("kept", "momentum", "dual", "anchor", "alive")
        return {n: {layer: t.clone() for layer, t in getattr(self, n).items()} for n in names}

    def load(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        for name, tensors in state.items():
            for layer, tensor in getattr(self, name).items():
                tensor.copy_(tensors[layer])


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Train with masks that move; score by what lives."""
    wires = Rewiring(task, keys)
    term = None
    if keys.adversarial:

        def term(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            attacked = attacked_loss(task.model, images, labels, keys.adversarial)
            return (attacked - F.cross_entropy(logits, labels)) / 2

    def before_epoch(epoch: int) -> None:
        wires.hold()

    return PruningPlan(
        scores=wires.scores,
        trains=True,
        term=term,
        before_epoch=before_epoch,
        after_backward=wires.after_backward,
        after_step=wires.hold,
        after_epoch=wires.after_epoch,
        state=wires.state,
        load=wires.load,
    )


METHOD = Method(
    title="DNR",
    kind="dynamic",
    paper="Kundu, Nazemi, Beerel, Pedram 2021 (ASP-DAC), arXiv:2011.03083",
    plan=plan,
    keys=Keys,
    differs="our reading; starts from the dense network, entities return with their weights, clean loss",
)

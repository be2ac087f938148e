r"""Proximal SGD: the step of SGD with momentum, then the proximal operator of SPR.

.. math::  w \leftarrow \operatorname{prox}_{t_i z}\bigl(w - \eta\, d\bigr), \qquad
           t_i = s\, \eta\, \lambda u_i

with d the direction of SGD (momentum, weight decay) and s = (1 - dampening) / (1 - momentum). A
constant gradient g moves SGD with momentum by s eta g a step in the long run; with this s the
regularizer is weighed against the loss as lambda says, and a zero entity stays zero exactly if
the loss's gradient is in lambda u_i times the subdifferential of z at 0.

Entities become exactly zero, so no threshold is needed, and |w_j| <= M holds after every step.
Weights of no entity take the step of SGD, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.formulations import projected
from spr_or.pruning import prox_passes
from spr_or.pruning.gradient_passes import Batch, Parts, rows_of
from spr_or.pruning.group_entities import GroupEntities
from spr_or.pruning.regularizer import SPR

# The proximal operator is defined for positive steps; below this one it is the projection on the
# box |w| <= M, which is what lambda = 0 asks for.
_SMALLEST_STEP = 1e-12
_PADDED = 4  # times the weights


class ProxSGD(torch.optim.SGD):
    """`torch.optim.SGD` whose step ends with the proximal operator of an `SPR`.

    Parameters
    ----------
    params : a model, or parameters or parameter groups as any optimizer takes them. Those in no
        entity of ``spr`` are plain SGD.
    spr : gives entities, lambda, alpha, M and u; do not add its value or gradient to the loss too.
    lr, momentum, weight_decay, nesterov, dampening : as in `torch.optim.SGD`.
    scale : s in the module's docstring; None for (1 - dampening) / (1 - momentum).

    Set the attribute ``proximal`` to False for steps of plain SGD, as in fine-tuning.

    The momentum of a zero entity is kept, not cleared: it is the average of the loss's gradients
    there, which decides when the entity returns. Cleared, an entity would need a gradient
    1 / (1 - momentum) times as large to come back. State, state dict and schedulers are those of
    SGD; lambda is in ``spr.state_dict()``.

    The proximal operator of an entity has one learning rate. So parameter groups may split a layer
    (biases without weight decay, say), if their learning rate, momentum and dampening are equal.
    Learning rates that are tensors on an accelerator are not compared, because that would stall the
    step; the weight's group then decides.

    Pickled and copied, it takes ``spr`` along. Copy or pickle the model in one call with it, as in
    ``copy.deepcopy((model, optimizer))``, so that they go on sharing parameters.

    Raises ``ValueError`` for a variant without a proximal operator, a scale that is not positive, a
    learning rate that is not finite, a parameter of ``spr`` that is in no parameter group, and, here or
    in `step`, groups of one layer whose rates differ.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    >>> optimizer = ProxSGD(net, SPR(net, lam=20.0, alpha=0.5, M=1.0), lr=0.1)
    >>> net[0].weight.grad = torch.zeros_like(net[0].weight)
    >>> optimizer.step()
    >>> int(net[0].weight.count_nonzero())
    0
    """

    def __init__(
        self,
        params: nn.Module | Any,
        spr: SPR,
        lr: float | Tensor,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
        scale: float | None = None,
    ) -> None:
        if spr.variant != "exact":
            raise ValueError(
                f"ProxSGD needs an SPR with variant='exact': {spr.variant!r} is not convex and has "
                "no proximal operator"
            )
        if scale is not None and not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        super().__init__(
            params.parameters() if isinstance(params, nn.Module) else params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
        for group in self.param_groups:
            if not math.isfinite(group["lr"]):  # SGD refuses a negative one
                raise ValueError(f"lr must be finite, got {group['lr']}")
        self.spr = spr
        self.scale = scale
        self.proximal = True
        self._layer_groups()

    def __getstate__(self) -> dict[str, Any]:
        # The base class keeps what torch's own optimisers have, and nothing else.
        return super().__getstate__() | {
            "spr": self.spr,
            "scale": self.scale,
            "proximal": self.proximal,
        }

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of SGD, then one of the proximal operator; returns what ``closure`` returns."""
        if not self.proximal:
            return super().step(closure)
        groups = self._layer_groups()  # an error comes before anything has moved
        loss = super().step(closure)
        self._shrink(groups)
        return loss

    @torch.no_grad()
    def _shrink(self, groups: list[dict[str, Any]]) -> None:
        """Replace every entity by its proximal point; ``groups`` as in `_layer_groups`."""
        steps = self._steps(groups, self.spr.lam)
        if prox_passes.fits(self.spr.layers):
            prox_passes.apply_(self._plan, prox_passes.shrinking(self._plan, steps))
            return
        batches = self.spr.gather()
        pairs = self._within_bounds(
            batches, self._new_weights(batches, self._points(batches, steps))
        )
        torch._foreach_copy_([p for p, _ in pairs], [part for _, part in pairs])

    @cached_property
    def _plan(self) -> prox_passes.Plan:
        return prox_passes.Plan(self.spr)

    def _points(self, batches: list[Batch], steps: Tensor) -> list[Tensor]:
        """The proximal points of each batch's entities, as rows (N, k)."""
        rows = [rows_of(batch) for batch in batches]
        return _at_once(rows, steps, self._bounds(), self.spr.alpha)

    @torch.no_grad()
    def zero_after_shrinking(self, lam: float) -> Tensor:
        """Which entities are zero after one proximal step from the present weights: bool (N,).

        In the order of ``spr.ordered_layers()``; nothing is changed.

        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1))
        >>> _ = nn.init.constant_(net[0].weight, 0.5)
        >>> spr = SPR(net, lam=0.0, alpha=0.0, M=0.5, entities="neurons")
        >>> optimizer = ProxSGD(net, spr, lr=0.1)  # t = 0.1 lambda / 2, and t / M against 0.5
        >>> optimizer.zero_after_shrinking(4.9).any(), optimizer.zero_after_shrinking(5.1).all()
        (tensor(False), tensor(True))
        """
        steps = self._steps(self._layer_groups(), torch.full_like(self.spr.lam, lam))
        if prox_passes.fits(self.spr.layers):
            return prox_passes.shrinking(self._plan, steps).indicator == 0
        return torch.cat([(rows == 0).all(1) for rows in self._points(self.spr.gather(), steps)])

    def _new_weights(
        self, batches: list[Batch], rows: list[Tensor]
    ) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters that may change, with the values that ``rows`` give their entities."""
        parts = [_unrows(batch, row) for batch, row in zip(batches, rows, strict=True)]
        pairs = self.spr.scatter(parts, others_stay=True)
        return [(p, part) for p, part in pairs if p.requires_grad]

    def _within_bounds(
        self, batches: list[Batch], pairs: list[tuple[nn.Parameter, Tensor]]
    ) -> list[tuple[nn.Parameter, Tensor]]:
        """``pairs`` in the parameters' dtype; rounding to half precision must not pass M."""
        if not any(p.dtype in (torch.bfloat16, torch.float16) for p, _ in pairs):
            return pairs
        bounds = [
            bound(0, len(rows)).expand_as(rows)
            for bound, rows in zip(self._bounds(), map(rows_of, batches), strict=True)
        ]
        # A weight of no entity is paired with itself, so it is its own bound.
        limits = self._new_weights(batches, bounds)
        return [
            (p, _towards_zero(part.to(p.dtype), limit.abs()))
            for (p, part), (_, limit) in zip(pairs, limits, strict=True)
        ]

    def _bounds(self) -> list[_Bounds]:
        """M of the weights of each batch's rows."""
        layers = [layer for layer in self.spr.ordered_layers() if isinstance(layer, GroupEntities)]
        bounds = self.spr.bounds()
        if not layers:
            return [_Bounds(bound) for bound in bounds]
        return [_Bounds(bound, layer) for bound, layer in zip(bounds, layers, strict=True)]

    def _steps(self, groups: list[dict[str, Any]], lam: Tensor) -> Tensor:
        """t_i of every entity, (N,)."""
        price = lam * self.spr.importance
        if all(group is groups[0] for group in groups):
            steps = price * self._rate(groups[0])
        else:
            parts = price.split([layer.count for layer in self.spr.ordered_layers()])
            pairs = zip(parts, groups, strict=True)
            steps = torch.cat([part * self._rate(group) for part, group in pairs])
        return steps.clamp(min=_SMALLEST_STEP)

    def _rate(self, group: dict[str, Any]) -> float | Tensor:
        scale = self.scale
        if scale is None:
            scale = (1 - group["dampening"]) / (1 - group["momentum"])
        return group["lr"] * scale

    def _layer_groups(self) -> list[dict[str, Any]]:
        """The parameter group whose rate the entities of each layer of ``spr`` have."""
        number_of = {
            p: number for number, group in enumerate(self.param_groups) for p in group["params"]
        }
        groups = []
        for layer in self.spr.ordered_layers():
            numbers = [number_of.get(p) for p in layer.parameters]
            if None in numbers:
                missing = layer.parameters[numbers.index(None)]
                raise ValueError(_in_no_group(layer.name, missing))
            first, *others = (self.param_groups[n] for n in numbers if n is not None)
            for number, other in zip(numbers[1:], others, strict=True):
                if other is not first and not _same_rate(first, other):
                    raise ValueError(
                        f"the parameters of layer {layer.name!r} are entities of spr, but lie in "
                        f"parameter group {numbers[0]} ({_shown(first)}) and in parameter group "
                        f"{number} ({_shown(other)}): the proximal step of an entity has one rate, "
                        "so make these equal, or put the layer into one parameter group"
                    )
            groups.append(first)
        return groups


def _in_no_group(layer: str, parameter: Tensor) -> str:
    message = (
        f"a parameter of shape {tuple(parameter.shape)} of layer {layer!r} belongs to an entity of "
        "spr, but is in no parameter group of ProxSGD: "
    )
    if parameter.requires_grad:
        return message + "add it to one, or leave the layer out of SPR's entities"
    return message + (
        "it is frozen. Pass all parameters of the model (frozen ones stay as they are), leave the "
        "layer out of SPR's entities, or call requires_grad_(True) on it to train it"
    )


def _same_rate(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two groups shrink alike; tensors on an accelerator count as equal unseen."""
    rates = [group["lr"] for group in (one, other)]
    unseen = any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates)
    return (unseen or float(rates[0]) == float(rates[1])) and all(
        one[key] == other[key] for key in ("momentum", "dampening")
    )


def _shown(group: dict[str, Any]) -> str:
    rest = f"momentum {group['momentum']:g}, dampening {group['dampening']:g}"
    return f"lr {float(group['lr']):g}, {rest}"


def _unrows(batch: Batch, rows: Tensor) -> Parts:
    """The inverse of `rows_of`: rows (N, k) in the shapes of the batch."""
    x, dim, extra = batch
    moved = x.movedim(dim, 0).shape
    k = moved[1:].numel()
    return Parts(rows[:, :k].reshape(moved).movedim(0, dim), None if extra is None else rows[:, k:])


def _towards_zero(w: Tensor, limit: Tensor) -> Tensor:
    """w, where it is beyond ``limit`` by rounding the nearest number of its dtype below that."""
    return torch.where(w.abs() > limit, torch.nextafter(w, torch.zeros_like(w)), w)


class _Bounds(NamedTuple):
    """M of a batch's entities, (n,), or (n, L) for the layers that the entities of ``group`` cross."""

    bound: Tensor
    group: GroupEntities | None = None

    def __call__(self, start: int, stop: int) -> Tensor:
        """M of some entities' weights, (n, 1) or (n, k)."""
        bound = self.bound[start:stop]
        if self.group is None or bound.dim() == 1:
            return bound.unsqueeze(1)
        return self.group.bounds_of_weights(bound)


def _prox(rows: Tensor, steps: Tensor, bounds: Tensor, alpha: float) -> Tensor:
    """Proximal points of rows (n, k) under bounds (n, 1) or (n, k)."""
    per_entity = bounds.shape[1] == 1
    return projected.prox(rows, steps, alpha, bounds.squeeze(1) if per_entity else bounds)


def _at_once(
    rows: list[Tensor], steps: Tensor, bounds: list[_Bounds], alpha: float
) -> list[Tensor]:
    """The proximal points of each batch (N, k), in one padded call: an accelerator pays for each kernel.

    Rows of very different widths go in several calls, for the padding would be most of the work.
    """
    width = max(x.shape[1] for x in rows)
    split = width * sum(map(len, rows)) > _PADDED * sum(x.numel() for x in rows)
    calls: dict[int, list[int]] = {}
    for i, x in enumerate(rows):
        calls.setdefault(x.shape[1].bit_length() if split else 0, []).append(i)
    step = steps.split([len(x) for x in rows])
    shrunk: dict[int, Tensor] = {}
    for call in calls.values():
        limits = [bounds[i](0, len(rows[i])) for i in call]
        width = max(rows[i].shape[1] for i in call)
        if any(limit.shape[1] > 1 for limit in limits):
            limits = [
                F.pad(limit.expand_as(rows[i]), (0, width - rows[i].shape[1]), value=1.0)
                for i, limit in zip(call, limits, strict=True)
            ]
        padded = torch.cat([F.pad(rows[i], (0, width - rows[i].shape[1])) for i in call])
        points = _prox(padded, torch.cat([step[i] for i in call]), torch.cat(limits), alpha)
        for i, part in zip(call, points.split([len(rows[i]) for i in call]), strict=True):
            shrunk[i] = part[:, : rows[i].shape[1]].to(rows[i].dtype)
    return [shrunk[i] for i in range(len(rows))]

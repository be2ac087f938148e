r"""Proximal SGD: the step of SGD with momentum, then the proximal operator of SPR.

.. math::  w \leftarrow \operatorname{prox}_{t_i z}\bigl(w - \eta\, d\bigr), \qquad
           t_i = s\, \eta\, \lambda u_i

with d the direction of SGD (momentum, weight decay) and s = (1 - dampening) / (1 - momentum). A
constant gradient g moves SGD with momentum by s eta g a step in the long run; with this s the
regularizer is weighed against the loss as lambda says, and a zero entity stays zero exactly if
the loss's gradient is in lambda u_i times the subdifferential of z at 0.

Entities become exactly zero, so no threshold is needed, and |w_j| <= M holds after every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spr_or import projected
from spr_or.regularizer import SPR


class ProxSGD(torch.optim.SGD):
    """`torch.optim.SGD` whose step ends with the proximal operator of an `SPR`.

    Parameters
    ----------
    params : a model, or parameters or parameter groups as any optimizer takes them. Those in no
        entity of ``spr`` are plain SGD.
    spr : gives entities, lambda, alpha, M and u; do not add its value or gradient to the loss too.
    lr, momentum, weight_decay, nesterov, dampening : as in `torch.optim.SGD`.
    scale : s in the module's docstring; None for (1 - dampening) / (1 - momentum).

    The momentum of a zero entity is kept, not cleared: it is the average of the loss's gradients
    there, which decides when the entity returns. Cleared, an entity would need a gradient
    1 / (1 - momentum) times as large to come back. State, state dict and schedulers are those of
    SGD; lambda is in ``spr.state_dict()``.

    Raises ``ValueError`` for a variant without a proximal operator, a scale that is not positive,
    or parameters of ``spr`` that no group optimises.

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
        self.spr = spr
        self.scale = scale
        self._group_of_layers()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of SGD, then one of the proximal operator; returns what ``closure`` returns."""
        loss = super().step(closure)
        self._shrink()
        return loss

    @torch.no_grad()
    def _shrink(self) -> None:
        spr = self.spr
        price = spr.lam * spr.importance
        start = 0
        for layer, group in self._group_of_layers():
            entities = slice(start, start + layer.count)
            start += layer.count
            scale = self.scale
            if scale is None:
                scale = (1 - group["dampening"]) / (1 - group["momentum"])
            x = layer.gather().movedim(layer.entity_dim, 0)
            rows = x.flatten(1)
            step = price[entities] * (group["lr"] * scale)
            step = step.clamp(min=1e-12)  # lambda = 0 leaves the box |w| <= M
            shrunk = projected.prox(rows, step, spr.alpha, spr.bound[entities])
            shrunk = shrunk.view(x.shape).movedim(0, layer.entity_dim)
            for parameter, part in zip(layer.parameters, layer.scatter(shrunk), strict=True):
                parameter.copy_(part)

    def _group_of_layers(self) -> list[tuple[Any, dict[str, Any]]]:
        group_of = {id(p): group for group in self.param_groups for p in group["params"]}
        pairs = []
        for layer in self.spr._ordered():
            try:
                groups = [group_of[id(p)] for p in layer.parameters]
            except KeyError:
                raise ValueError(
                    f"the parameters of layer {layer.name!r} are in spr but in no parameter group"
                ) from None
            pairs.append((layer, groups[0]))
        return pairs

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
import torch.nn.functional as F
from torch import Tensor, nn

from spr_or.formulations import projected
from spr_or.pruning.regularizer import SPR

# The proximal operator is defined for positive steps; below this one it is the projection on the
# box |w| <= M, which is what lambda = 0 asks for.
_SMALLEST_STEP = 1e-12
_PIECE = 2**17  # weights


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
    or a layer of ``spr`` whose parameters are not all in one parameter group.

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
        self._groups()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of SGD, then one of the proximal operator; returns what ``closure`` returns."""
        loss = super().step(closure)
        self._shrink()
        return loss

    @torch.no_grad()
    def _shrink(self) -> None:
        """Replace every entity by its proximal point."""
        spr = self.spr
        xs, dims = spr.gather()
        moved = [x.movedim(dim, 0) for x, dim in zip(xs, dims, strict=True)]
        rows = [x.flatten(1) for x in moved]
        shrink = _in_pieces if rows[0].device.type == "cpu" else _at_once
        shrunk = [
            part.reshape(x.shape).movedim(0, dim)
            for part, x, dim in zip(
                shrink(rows, self._steps(), spr.bound, spr.alpha), moved, dims, strict=True
            )
        ]
        pairs = [(p, part) for p, part in spr.scatter(shrunk) if p.requires_grad]
        torch._foreach_copy_([p for p, _ in pairs], [part for _, part in pairs])

    def _steps(self) -> Tensor:
        """t_i of every entity, (N,)."""
        price = self.spr.lam * self.spr.importance
        groups = self._groups()
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

    def _groups(self) -> list[dict[str, Any]]:
        """The parameter group of each layer of ``spr``."""
        group_of = {p: group for group in self.param_groups for p in group["params"]}
        groups = []
        for layer in self.spr.ordered_layers():
            found = [group_of.get(p) for p in layer.parameters]
            if found[0] is None or any(group is not found[0] for group in found):
                raise ValueError(
                    f"the parameters of layer {layer.name!r} are entities of spr, so they must all "
                    "be in one parameter group of ProxSGD"
                )
            groups.append(found[0])
        return groups


def _in_pieces(rows: list[Tensor], steps: Tensor, bounds: Tensor, alpha: float) -> list[Tensor]:
    """The proximal points of each batch (N, k), in pieces whose temporaries a CPU's cache holds."""
    counts = [len(x) for x in rows]
    shrunk = []
    for x, step, bound in zip(rows, steps.split(counts), bounds.split(counts), strict=True):
        count = max(1, _PIECE // x.shape[1])
        pieces = zip(x.split(count), step.split(count), bound.split(count), strict=True)
        shrunk.append(torch.cat([projected.prox(w, t, alpha, m) for w, t, m in pieces]))
    return shrunk


def _at_once(rows: list[Tensor], steps: Tensor, bounds: Tensor, alpha: float) -> list[Tensor]:
    """The same in one call, padded to one width: an accelerator pays for each kernel."""
    width = max(x.shape[1] for x in rows)
    padded = torch.cat([F.pad(x, (0, width - x.shape[1])) for x in rows])
    shrunk = projected.prox(padded, steps, alpha, bounds).split([len(x) for x in rows])
    return [part[:, : x.shape[1]].to(x.dtype) for part, x in zip(shrunk, rows, strict=True)]

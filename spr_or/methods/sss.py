r"""SSS, Sparse Structure Selection: scaling factors that an L1 norm makes zero (Huang, Wang 2018).

Data-Driven Sparse Structure Selection for Deep Neural Networks, ECCV 2018, arXiv:1707.01213. Each entity
has a factor :math:`\lambda_i`, one in the beginning, on its channels (`spr_or.methods.common.gates`), and

.. math:: \min_{w, \lambda} L(w, \lambda) + \gamma \sum_i |\lambda_i|

Weights take the shared SGD. The factors take the paper's form of accelerated proximal gradient, in which
one gradient at the extrapolated factors suffices (its equations 10 to 12):

.. math::

    z &= S_{\eta\gamma}\bigl(\lambda - \eta \nabla_\lambda L\bigr), \\
    v &\leftarrow z - \lambda + \mu v, \\
    \lambda &\leftarrow \max(0,\ z + \mu v)

with the soft threshold S, the learning rate η and the momentum μ. Factors stay non-negative, as in the
authors' code. Those that are zero go first, the longest so first of all; then by rising factor.
All factors start at one and may reach zero in the same step: then only as many do as the budget lacks,
those with the smallest value before the threshold, and the others stay where they were, without velocity.

What differs: the paper tries several γ and takes what comes out. Here the budget is given, so γ comes
from the phase's length, and the L1 norm rests while as many factors are zero as the budget asks for.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from spr_or.methods.common.gates import add_gates, price_to_zero
from spr_or.methods.common.soft_threshold import soft_threshold
from spr_or.methods.common.zero_gates import zero_gates
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask

MOMENTUM = 0.9


class Keys(MethodKeys):
    """The keys of SSS."""

    gamma: float | None = Field(None, gt=0)  # weight of the L1 norm; by default from `reach`
    # Share of the phase in which the L1 norm by itself would take a factor from one to zero.
    reach: float = Field(0.5, gt=0, le=10)


def apg_step(
    factors: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    rate: Tensor | float,
    price: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """New factors and velocity, (n,) each, after a step with the soft threshold rate · price.

    >>> one = torch.ones(2)
    >>> factors, velocity = apg_step(one, torch.tensor([0.0, 9.0]), 0 * one, 0.1, 1.0)
    >>> [round(x, 4) for x in factors.tolist()], [round(x, 4) for x in velocity.tolist()]
    ([0.81, 0.0], [-0.1, -1.0])
    """
    z = soft_threshold(factors - rate * gradient, rate * price)
    velocity = z - factors + MOMENTUM * velocity
    return (z + MOMENTUM * velocity).clamp(min=0), velocity


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Train with the factors; score by what is left of them."""
    gates = add_gates(task.model, task.layers, task.example)
    price = keys.gamma or price_to_zero(task, MOMENTUM, keys.reach)
    factors = gates.values
    zeros = zero_gates(task, factors)
    velocity = torch.zeros_like(factors.data)
    rate = torch.zeros((), device=factors.device)  # a tensor, as a CUDA graph demands

    def begin(epoch: int) -> None:
        rate.fill_(task.rate(epoch))

    @torch.no_grad()
    def step() -> None:
        assert factors.grad is not None
        now = price * (zeros.lacking(factors) > 0)
        unshrunk = factors - rate * factors.grad
        new, speed = apg_step(factors, factors.grad, velocity, rate, now)
        held = zeros.held(factors, new == 0, unshrunk)
        factors.copy_(torch.where(held, factors, new))
        velocity.copy_(speed.masked_fill(held, 0.0))
        zeros.count(factors, unshrunk)
        factors.grad = None

    def state() -> dict[str, Any]:
        return {
            "factors": factors.detach().clone(),
            "velocity": velocity.clone(),
            **zeros.state(),
        }

    @torch.no_grad()
    def load(state: dict[str, Any]) -> None:
        factors.copy_(state["factors"])
        velocity.copy_(state["velocity"])
        zeros.load(state)

    return PruningPlan(
        scores=lambda: gates.of_entities(zeros.scores(factors.detach()), task.layers),
        trains=True,
        after_backward=step,
        before_epoch=begin,
        after_epoch=lambda epoch: {"zero_factors_pct": 100 * float((factors == 0).float().mean())},
        state=state,
        load=load,
        finish=lambda masks: gates.fold([masks[layer.name] for layer in task.layers]),
    )


METHOD = Method(
    title="SSS",
    kind="regulariser",
    paper="Huang, Wang 2018, ECCV, arXiv:1707.01213",
    plan=plan,
    keys=Keys,
    differs=(
        "the weight of the L1 norm follows from the length of the phase, and it rests while as many "
        "factors are zero as the budget asks for; training goes on from the dense network"
    ),
)

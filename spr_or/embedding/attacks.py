"""Look for what a proof excludes: inputs of a box, at random and along the gradient, in torch itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]
_STEPS = 30


def margin(outputs: Tensor, label: int) -> Tensor:
    """The largest output of another class minus that of ``label``: (B, q) to (B,). Positive: another wins.

    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), 0).item()
    -1.0
    """
    others = outputs.clone()
    others[:, label] = -torch.inf
    return others.amax(1) - outputs[:, label]


def inside(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The ends of a float64 box in another dtype, rounded inward: nothing between them is outside."""
    low, high = lower.to(dtype), upper.to(dtype)
    up, down = torch.full_like(low, torch.inf), torch.full_like(high, -torch.inf)
    low = torch.where(low.double() < lower, torch.nextafter(low, up), low)
    high = torch.where(high.double() > upper, torch.nextafter(high, down), high)
    return low, torch.maximum(low, high)


def strongest_attack(
    net: nn.Module,
    score: Score,
    lower: Tensor,
    upper: Tensor,
    randoms: int = 10_000,
    restarts: int = 50,
    seed: int = 0,
) -> tuple[float, Tensor]:
    """The largest score of the outputs that was found in a box, and its input.

    Half of the random inputs are uniform in the box, half are corners of it. The best of them and further
    random ones then take 30 steps of projected gradient ascent by the sign.

    net : in evaluation mode; lower, upper : float64, of one input's shape

    >>> net = nn.Identity()
    >>> best, x = strongest_attack(net, lambda y: y[:, 0], torch.zeros(2).double(), torch.ones(2).double())
    >>> best, x[0].item()
    (1.0, 1.0)
    """
    dtype = next((p.dtype for p in net.parameters()), torch.float32)
    low, high = inside(lower, upper, dtype)
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand((randoms, *low.shape), generator=generator, dtype=dtype)
    u[randoms // 2 :] = (u[randoms // 2 :] > 0.5).to(dtype)
    tried = torch.minimum(torch.maximum(low + u * (high - low), low), high)
    with torch.no_grad():
        scores = score(net(tried))
    best = scores.topk(min(restarts // 2, randoms)).indices
    x = torch.cat([tried[best], tried[: restarts - len(best)]])
    reached, climbed = climb(net, score, x, low, high)
    top = float(scores.max())
    return (reached, climbed) if reached > top else (top, tried[scores.argmax()])


def climb(
    net: nn.Module, score: Score, x: Tensor, low: Tensor, high: Tensor
) -> tuple[float, Tensor]:
    """The largest score on the way of inputs x (B, …) along the sign of the gradient, inside a box.

    >>> climb(nn.Identity(), lambda y: y[:, 0], torch.zeros(1, 1), torch.zeros(1), torch.ones(1))[0]
    1.0
    """
    step = (high - low) * (1.25 / _STEPS)
    top, found = float("-inf"), x[0]
    for taken in range(_STEPS + 1):
        x = x.detach().requires_grad_()
        scores = score(net(x))
        highest = scores.detach().max(0)
        if float(highest.values) > top:
            top, found = float(highest.values), x[highest.indices].detach()
        if taken < _STEPS:
            (slope,) = torch.autograd.grad(scores.sum(), x)
            x = torch.minimum(torch.maximum(x.detach() + step * slope.sign(), low), high)
    return top, found

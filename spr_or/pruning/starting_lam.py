r"""Where lambda starts when a budget steers it, from the network and the length of the phase.

Without a loss, n proximal steps with t = s eta lambda u_i shrink an entity about as one step with n t
does. So the lambda at which one step makes an entity zero, divided by n, is the one at which n
steps do. The loss resists, and `next_lam` raises lambda until enough goes; a start that is too high
would remove what hardly comes back.
"""

from __future__ import annotations

from spr_or.pruning.budget import HORIZON
from spr_or.pruning.prox_sgd import ProxSGD

_FACTOR = 4.0
_LOWEST, _HIGHEST = 1e-12, 1e12
_HALVINGS = 5  # of the exponent: lambda to a factor of 1.05


def starting_lam(optimizer: ProxSGD, steps: int) -> float:
    """Lambda at which a tenth of the phase would make half of the entities zero, without a loss.

    ``steps`` are those of the whole phase, at the present learning rate. Entities that are zero
    already do not count. Raises ``ValueError`` where no lambda makes half of them zero.

    >>> from torch import nn
    >>> from spr_or.pruning.regularizer import SPR
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    >>> _ = nn.init.constant_(net[0].weight, 0.5)
    >>> spr = SPR(net, lam=0.0, alpha=0.0, M=0.5)  # t = 0.1 lambda / 2, and t / M against 0.5
    >>> round(starting_lam(ProxSGD(net, spr, lr=0.1), steps=100), 1)
    0.5
    """
    if optimizer.spr.alpha == 1:
        raise ValueError(
            "alpha = 1 puts no price on entities, so no lambda removes one: lower alpha"
        )
    living = ~optimizer.zero_after_shrinking(0.0)

    def enough(lam: float) -> bool:
        return 2 * int((optimizer.zero_after_shrinking(lam) & living).sum()) >= int(living.sum())

    high = 1.0
    while high < _HIGHEST and not enough(high):
        high *= _FACTOR
    while high > _LOWEST and enough(high / _FACTOR):
        high /= _FACTOR
    if not bool(living.any()) or high >= _HIGHEST:
        raise ValueError(
            "no lambda makes half of the entities zero: the network must have weights that are not "
            "zero, and entities a price u > 0"
        )
    low = high / _FACTOR
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high / max(1.0, steps / HORIZON)

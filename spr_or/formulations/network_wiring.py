"""Which weight stands between which input and output of a layer, and what follows from it.

Everything is found by running the layers themselves on one-hot inputs. So torch defines stride,
padding and dilation, and there is no second implementation of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spr_or.formulations.entities import parameter_indices
from spr_or.formulations.problem import SparseTrainingProblem


class Wiring(NamedTuple):
    """Where theta's entries stand in an affine layer: 1 + position in theta, or 0 for none.

    weight : int64 (inputs, *output shape), between an input and an output
    bias : int64 (*output shape), of an output
    unit : int64 (*output shape), the neuron or channel that an output belongs to
    """

    weight: Tensor
    bias: Tensor
    unit: Tensor


def wirings(net: nn.Sequential, shape: torch.Size) -> list[Wiring | None]:
    """The `Wiring` of each Linear and Conv2d, None for the other layers, on samples of ``shape``.

    With every weight set to its own number, a layer returns that number wherever a one-hot input
    meets an output: between one input and one output stands at most one weight.

    >>> net = nn.Sequential(nn.Linear(2, 1))
    >>> w = wirings(net, torch.Size([2]))[0]
    >>> w.weight.tolist(), w.bias.tolist()
    ([[1], [2]], [3])
    """
    position = parameter_indices(net)
    result: list[Wiring | None] = []
    for k, layer in enumerate(net):
        one_hot = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            result.append(None)
            shape = layer(one_hot[:1]).shape[1:]
            continue
        names = [name for name, _ in layer.named_parameters()]
        code = {name: position[f"{k}.{name}"].double() + 1 for name in names}
        none = {name: torch.zeros_like(value) for name, value in code.items()}
        weight = functional_call(layer, {**none, "weight": code["weight"]}, (one_hot,))
        bias = functional_call(layer, {**code, "weight": none["weight"]}, (one_hot[:1],))[0]
        shape = bias.shape
        axis = 0 if isinstance(layer, nn.Conv2d) else -1
        count = torch.arange(shape[axis])
        unit = (count.view(-1, 1, 1) if axis == 0 else count).expand(shape)
        result.append(Wiring(weight.long(), bias.long(), unit))
    return result


def scaled_weights(problem: SparseTrainingProblem) -> list[int]:
    r"""Positions j of network weights that some optimum has at :math:`|w_j| = M_{free}`.

    A ReLU is positively homogeneous: for s >= 1, dividing the weights and the bias into a unit by s
    and multiplying the weights out of it by s leaves f as it is.  The division shrinks ||w^i||^2 and
    keeps |w| <= M y; if the only weight v out of the unit is in no entity, the multiplication costs
    nothing either, so that s = M_free / |v| never raises the objective, in (1) as in (4), for any y.
    (Where v = 0, set the weights into the unit to 0 and v to M_free.)  Going from the last layer to
    the first makes this hold for all such v at once, because a step shrinks only weights that its
    predecessors scaled down, and later steps change no unit behind them.

    Only the sign of such a weight is left to choose, which makes its product with an activation
    linear; where it is true of all weights behind the data layer, training is a *convex* MIQP.  With
    several weights out of a unit the largest would reach M_free, but nothing says which: none is listed.

    >>> from spr_or.formulations.entities import neurons
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> X = torch.eye(2)
    >>> p = SparseTrainingProblem.network(net, X, [0, 1], neurons(net), lam=0.1, alpha=0.5, M=2)
    >>> scaled_weights(p)
    [9, 10, 11]
    """
    net = problem.net
    if net is None:
        return []
    free = set(problem.entities.free.tolist())
    wired = wirings(net, problem.X.shape[1:])
    affine = [k for k, wiring in enumerate(wired) if wiring is not None]
    found = []
    for k, following in zip(affine, affine[1:], strict=False):
        here, there = wired[k], wired[following]
        assert here is not None and there is not None
        units = torch.stack([here.unit == u for u in here.unit.unique()]).double()
        # What lies between two affine layers (ReLU, Flatten, AvgPool2d) maps positive to positive.
        reached = net[k + 1 : following](units).flatten(1) > 0
        if (reached.sum(0) > 1).any():
            continue  # an average over units: they do not scale one by one
        for inputs in reached:
            out = there.weight.flatten(1)[inputs]
            leaving = out[out > 0].unique().tolist()
            if len(leaving) == 1 and leaving[0] - 1 in free:
                found.append(leaving[0] - 1)
    return found

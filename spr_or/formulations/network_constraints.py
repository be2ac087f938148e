r"""A small ``nn.Sequential`` as constraints: f(X; w) for all samples, with all weights as variables.

A `LayerValues` is what flows between layers: for each sample and unit a number (data) or a model variable,
with an interval that contains it for every admissible w.  Per sample m and unit o,

* **Linear, Conv2d**   z_mo = sum_i w_{k(i,o)} x_mi + b_o, where k(i, o) is the weight between input i
  and output o (`wiring.wirings`).  Linear in w on the data, bilinear behind it.  With |w_j| <= B_j
  (M of the parameter's entity, or M_free), |z_mo| <= sum_i B_{k(i,o)} max|x_mi| + B_{b_o}.
* **AvgPool2d, Flatten**   z_m = A' x_m, with the fixed matrix A that the layer is.
* **ReLU**   a = max(0, z) on L <= z <= U with L < 0 < U, by one binary s:

  .. math::  a \ge z, \quad a \ge 0, \quad a \le z - L (1 - s), \quad a \le U s .

  Where the interval fixes the sign, a = z (L >= 0) or a = 0 (U <= 0) and no binary is made.  With
  |w_j| <= M_i y_i the interval shrinks with the indicators, whence also a <= sum_i share_i y_i + rest
  (three neurons, six samples: a tenth of the nodes).
* **Weights of known size** (`wiring.scaled_weights`), w_j = M_free (2 sigma_j - 1) with sigma_j
  binary: the product with L <= x <= U is M_free (2 q - x) with q = sigma_j x, which is linear,

  .. math::  L \sigma \le q \le U \sigma, \qquad
             x - U (1 - \sigma) \le q \le x - L (1 - \sigma) .

The intervals are the encoding's own big-M: they come from the data and the bounds on the weights,
sample by sample and unit by unit, never from a default constant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spr_or.formulations.network_wiring import scaled_weights, wirings
from spr_or.formulations.problem import SparseTrainingProblem


@dataclass(frozen=True, eq=False)
class LayerValues:
    """The values between two layers, and intervals that contain them.

    values : n lists of numbers or Pyomo variables, one entry for each unit
    lower, upper : (n, units) float64
    share : (n, units, N + 1) float64, |value| <= sum_i share_i y_i + share_N: what each entity, and
        in the last column everything else, can contribute
    shape : of one sample as torch sees it, e.g. (channels, height, width)
    """

    values: list[list[Any]]
    lower: Tensor
    upper: Tensor
    share: Tensor
    shape: torch.Size


def predictions(model: Any, problem: SparseTrainingProblem) -> LayerValues:
    """Add f(X; w) to a Pyomo model with variables ``w``; the result holds f, shape (n, q).

    Every layer has a block ``layer[k]`` with its variables: ``z`` for an affine layer or a pooling,
    ``a`` and the binary ``fires`` for a ReLU, indexed by sample and unit; ``q`` for products with a
    weight of known size, indexed by weight, sample and unit.  A linear model is the one layer of its
    weights.
    """
    import pyomo.environ as pyo

    bound = bound_by_entity(problem)
    data = problem.X.flatten(1)
    share = torch.zeros(*data.shape, len(problem.entities) + 1, dtype=torch.float64)
    share[..., -1] = data.abs()
    signal = LayerValues(data.tolist(), data, data, share, problem.X.shape[1:])
    _fix_scale(model, problem)
    if problem.net is None:
        model.layer = pyo.Block([0])
        weight = torch.arange(1, problem.entities.n_parameters + 1).view(data.shape[1], -1)
        none = torch.zeros_like(weight[0])
        return _affine(model, model.layer[0], signal, weight, none, bound, 1.0)
    model.layer = pyo.Block(range(len(problem.net)))
    wired = wirings(problem.net, signal.shape)
    for k, (layer, wiring) in enumerate(zip(problem.net, wired, strict=True)):
        block = model.layer[k]
        if wiring is not None:
            signal = _affine(
                model, block, signal, wiring.weight, wiring.bias, bound, problem.bias_input
            )
        elif isinstance(layer, nn.ReLU):
            signal = _relu(model, block, signal)
        elif isinstance(layer, nn.Flatten):
            flat = torch.Size([signal.shape.numel()])
            signal = replace(signal, shape=flat)
        else:
            signal = _fixed(block, signal, layer)
    return signal


def bound_by_entity(problem: SparseTrainingProblem) -> Tensor:
    """B with |w_j| <= sum_i B_ji y_i + B_jN, shape (P, N + 1): M_i in the column of w_j's entity.

    A parameter in no entity has M_free in the last column; every row has one entry.
    """
    count = len(problem.entities)
    B = torch.zeros(problem.entities.n_parameters, count + 1, dtype=torch.float64)
    B[problem.entities.free, count] = problem.M_free
    for i, group in enumerate(problem.entities.groups):
        B[list(group), i] = problem.M[i]
    return B


def _fix_scale(model: Any, problem: SparseTrainingProblem) -> None:
    """w_j = M_free (2 sigma_j - 1) for the weights of `wiring.scaled_weights`, sigma_j binary."""
    import pyomo.environ as pyo

    size = problem.M_free
    scaled = scaled_weights(problem)
    model.sign = pyo.Var(scaled, domain=pyo.Binary)
    model.scale = pyo.Constraint(scaled, rule=lambda m, j: m.w[j] == size * (2 * m.sign[j] - 1))


def _affine(
    model: Any, block: Any, x: LayerValues, weight: Tensor, bias: Tensor, bound: Tensor, one: float
) -> LayerValues:
    """z_mo = sum_i w_{k(i,o)} x_mi + b_o with |z_mo| <= sum_i B_{k(i,o)} max|x_mi| + B_{b_o}.

    ``one`` is what a bias is multiplied with.
    """
    k = weight.flatten(1)
    B = torch.cat([torch.zeros_like(bound[:1]), bound])
    size = torch.maximum(x.lower.abs(), x.upper.abs())
    share = torch.einsum("mi,ioe->moe", size, B[k]) + one * B[bias.flatten()]
    reach = share.sum(-1)
    # A bias is the weight of one more input, which is constant.
    inputs = [[*row, one] for row in x.values]
    columns = torch.cat([k, bias.view(1, -1)]).T.tolist()
    meets = [[(i, code - 1) for i, code in enumerate(column) if code > 0] for column in columns]
    _signed_products(model, block, x, {pair for pairs in meets for pair in pairs})

    def product(m: int, i: int, j: int) -> Any:
        value = inputs[m][i]
        if (m, i, j) in block.q:
            return float(bound[j, -1]) * (2 * block.q[m, i, j] - value)
        return 0.0 if isinstance(value, float) and value == 0 else model.w[j] * value

    def row(m: int, o: int) -> Any:
        return _sum(product(m, i, j) for i, j in meets[o])

    return _signal(block, row, -reach, reach, share, bias.shape)


def _signed_products(model: Any, block: Any, x: LayerValues, meets: set[tuple[int, int]]) -> None:
    """q_mij = sigma_j x_mi for the weights whose size is known; see the top of this file."""
    import pyomo.environ as pyo

    L, U = x.lower.tolist(), x.upper.tolist()
    triples = [
        (m, i, j)
        for m, values in enumerate(x.values)
        for i, j in sorted(meets)
        if j in model.sign and not isinstance(values[i], float)
    ]
    block.q = pyo.Var(triples)
    block.product = pyo.ConstraintList()
    for m, i, j in triples:
        q, s, v = block.q[m, i, j], model.sign[j], x.values[m][i]
        block.product.add(q >= L[m][i] * s)
        block.product.add(q <= U[m][i] * s)
        block.product.add(q >= v - U[m][i] * (1 - s))
        block.product.add(q <= v - L[m][i] * (1 - s))


def _fixed(block: Any, x: LayerValues, layer: nn.Module) -> LayerValues:
    """z_m = A' x_m for a layer without weights and with no negative entry in A: an average."""
    image = layer(torch.eye(x.shape.numel(), dtype=torch.float64).view(-1, *x.shape))
    A = image.flatten(1)
    columns = A.T.tolist()

    def row(m: int, o: int) -> Any:
        return _sum(a * x.values[m][i] for i, a in enumerate(columns[o]) if a != 0)

    share = torch.einsum("mie,io->moe", x.share, A)
    return _signal(block, row, x.lower @ A, x.upper @ A, share, image.shape[1:])


def _relu(model: Any, block: Any, x: LayerValues) -> LayerValues:
    """a = max(0, z). Numbers stay numbers; where the sign of z is known, no binary is needed."""
    import pyomo.environ as pyo

    L, U = x.lower.tolist(), x.upper.tolist()
    units = [(m, o) for m, row in enumerate(x.values) for o in range(len(row))]
    split = [(m, o) for m, o in units if L[m][o] < 0 < U[m][o]]

    def reach(m: int, o: int) -> Any:
        *entities, rest = x.share[m, o].tolist()
        return rest + _sum(c * model.y[i] for i, c in enumerate(entities) if c > 0)

    block.a = pyo.Var(split, bounds=lambda _, m, o: (0, U[m][o]))
    block.fires = pyo.Var(split, domain=pyo.Binary)
    z, a, s = x.values, block.a, block.fires
    block.above = pyo.Constraint(split, rule=lambda _, m, o: a[m, o] >= z[m][o])
    block.silent = pyo.Constraint(split, rule=lambda _, m, o: a[m, o] <= U[m][o] * s[m, o])
    block.firing = pyo.Constraint(
        split, rule=lambda _, m, o: a[m, o] <= z[m][o] - L[m][o] * (1 - s[m, o])
    )
    block.reach = pyo.Constraint(split, rule=lambda _, m, o: a[m, o] <= reach(m, o))
    values = [
        [
            a[m, o] if (m, o) in a else (value if L[m][o] >= 0 else 0.0)
            for o, value in enumerate(row)
        ]
        for m, row in enumerate(z)
    ]
    return replace(x, values=values, lower=x.lower.clamp(min=0), upper=x.upper.clamp(min=0))


def _signal(
    block: Any, row: Any, lower: Tensor, upper: Tensor, share: Tensor, shape: torch.Size
) -> LayerValues:
    """Name the expressions ``row(m, o)`` by variables z with bounds; numbers stay numbers."""
    import pyomo.environ as pyo

    L, U = lower.tolist(), upper.tolist()
    values = [[row(m, o) for o in range(len(bounds))] for m, bounds in enumerate(L)]
    named = [
        (m, o) for m, v in enumerate(values) for o, e in enumerate(v) if not isinstance(e, float)
    ]
    block.z = pyo.Var(named, bounds=lambda _, m, o: (L[m][o], U[m][o]))
    block.affine = pyo.Constraint(named, rule=lambda _, m, o: block.z[m, o] == values[m][o])
    for m, o in named:
        values[m][o] = block.z[m, o]
    return LayerValues(values, lower, upper, share, shape)


def _sum(terms: Iterable[Any]) -> Any:
    import pyomo.environ as pyo

    return pyo.quicksum(terms, start=0.0)

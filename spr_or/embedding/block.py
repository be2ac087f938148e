r"""The Pyomo block of a network: inputs and outputs as variables, one binary for each undecided neuron.

For a ReLU a = max(0, z) with z = A x + b and L <= z <= U,

.. math::  a \ge z, \quad a \ge 0, \quad a \le z - L (1 - s), \quad a \le U s, \qquad s \in \{0, 1\},

where L < 0 < U; else a = z (L >= 0) or a = 0 (U <= 0), and no binary is made.  For the largest z of a window,

.. math::  a \ge z_i, \qquad a \le z_i + (U_{\max} - L_i)(1 - s_i), \qquad \sum_i s_i = 1,

over the members whose U reaches the largest L of the window; a single one of these is a itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from spr_or.embedding.bounds import Bounds
from spr_or.embedding.errors import EmbeddingError
from spr_or.embedding.feed_forward import FeedForward, Form

# Solvers keep rows to about 1e-6, and numbers to 16 digits.  SCIP gives up at 1e12.
LARGEST = 1e10


class Embedded(NamedTuple):
    """What a block was made of, kept as ``block.network``.

    values : for each value of the network a Pyomo variable, or 0.0 for a neuron that is always off
    """

    network: FeedForward
    bounds: Bounds
    values: list[Any]


def build_block(network: FeedForward, bounds: Bounds) -> Any:
    """A Pyomo block with the variables ``inputs`` and ``outputs``, counted from 0.

    Its other variables are indexed by (activation, unit): ``z`` (rows of a form), ``a`` (values), ``fires``
    (binary, ReLU) and ``chosen`` (binary, member of a maximum).  ``block.network`` is an `Embedded`.

    Raises `EmbeddingError` where a number of the network can exceed `LARGEST`.
    """
    import pyomo.environ as pyo

    _need_moderate(network, bounds)
    block = pyo.Block(concrete=True)
    block.inputs = pyo.Var(range(network.inputs))
    _bound(block.inputs, bounds.lower, bounds.upper)
    for i, variable in block.inputs.items():  # solvers give no value to one that stands in no row
        variable.set_value(float(bounds.lower[i]))
    values: list[Any] = list(block.inputs.values())
    for name, domain in (("z", pyo.Reals), ("a", pyo.Reals)):
        block.add_component(name, pyo.Var(pyo.Any, domain=domain, dense=False))
    for name in ("fires", "chosen"):
        block.add_component(name, pyo.Var(pyo.Any, domain=pyo.Binary, dense=False))
    block.rows = pyo.ConstraintList()
    for k, step in enumerate(network.activations):
        (_maximum if step.windows is not None else _relu)(block, k, step, bounds.before[k], values)
    block.outputs = pyo.Var(range(len(network.output)))
    _bound(block.outputs, *bounds.output)
    for o, output in block.outputs.items():
        block.rows.add(output == affine(network.output, o, values))
    block.network = Embedded(network, bounds, values)
    return block


def embedded(block: Any) -> Embedded:
    """What a block was made of; ``ValueError`` for anything that `build_block` did not make."""
    made = getattr(block, "network", None)
    if not isinstance(made, Embedded):
        raise ValueError(f"a block that embed returned is needed, got {type(block).__name__}")
    return made


def affine(form: Form, row: int, values: list[Any]) -> Any:
    """One row of A x + b as a linear Pyomo expression of the values so far."""
    from pyomo.core.expr import LinearExpression

    part = slice(*form.matrix.indptr[row : row + 2])
    pairs = zip(form.matrix.indices[part], form.matrix.data[part].tolist(), strict=True)
    terms = [(c, values[j]) for j, c in pairs if c and not isinstance(values[j], float)]
    return LinearExpression(
        constant=float(form.offset[row]),
        linear_coefs=[c for c, _ in terms],
        linear_vars=[v for _, v in terms],
    )


def binaries(block: Any) -> int:
    """How many binary variables a block has."""
    return len(block.fires) + len(block.chosen)


def _relu(block: Any, k: int, step: Any, ends: Any, values: list[Any]) -> None:
    L, U = (end.tolist() for end in ends)
    so_far = list(values)
    for i in range(len(step.form)):
        if U[i] <= 0:
            values.append(0.0)
            continue
        z = affine(step.form, i, so_far)
        a = _variable(block.a, (k, i), max(L[i], 0.0), U[i])
        values.append(a)
        if L[i] >= 0:
            block.rows.add(a == z)
            continue
        named, s = _variable(block.z, (k, i), L[i], U[i]), block.fires[k, i]
        block.rows.add(named == z)
        block.rows.add(a >= named)
        block.rows.add(a <= named - L[i] * (1 - s))
        block.rows.add(a <= U[i] * s)


def _maximum(block: Any, k: int, step: Any, ends: Any, values: list[Any]) -> None:
    L, U = (end.tolist() for end in ends)
    so_far = list(values)
    for o in range(step.count):
        window = step.windows.indices[slice(*step.windows.indptr[o : o + 2])].tolist()
        floor, ceiling = max(L[i] for i in window), max(U[i] for i in window)
        members = [i for i in window if U[i] >= floor]
        if len(members) == 1 or floor >= ceiling:
            values.append(
                _defined(block, (k, o), affine(step.form, members[0], so_far), floor, ceiling)
            )
            continue
        a = _variable(block.a, (k, o), floor, ceiling)
        values.append(a)
        for i in members:
            z = _named(block, (k, i), affine(step.form, i, so_far), L[i], U[i])
            block.rows.add(a >= z)
            block.rows.add(a <= z + (ceiling - L[i]) * (1 - block.chosen[k, o, i]))
        block.rows.add(_total(block.chosen[k, o, i] for i in members) == 1)


def _defined(block: Any, at: tuple[int, int], z: Any, low: float, high: float) -> Any:
    """A value that equals an expression: its variable."""
    a = _variable(block.a, at, low, high)
    block.rows.add(a == z)
    return a


def _named(block: Any, at: tuple[int, int], z: Any, low: float, high: float) -> Any:
    """The variable of a row, which stands in several windows but is defined once."""
    if at in block.z:
        return block.z[at]
    made = _variable(block.z, at, low, high)
    block.rows.add(made == z)
    return made


def _variable(family: Any, at: tuple[int, ...], low: float, high: float) -> Any:
    made = family[at]
    made.setlb(low)
    made.setub(high)
    return made


def _total(terms: Iterable[Any]) -> Any:
    import pyomo.environ as pyo

    return pyo.quicksum(terms)


def _bound(variables: Any, lower: np.ndarray, upper: np.ndarray) -> None:
    for i, variable in variables.items():
        variable.setlb(float(lower[i]))
        variable.setub(float(upper[i]))


def _need_moderate(network: FeedForward, bounds: Bounds) -> None:
    places = [step.place for step in network.activations]
    pairs = zip([*places, "the output"], [*bounds.before, bounds.output], strict=True)
    for place, (low, high) in pairs:
        size = np.maximum(abs(low), abs(high))
        wrong = ~(size <= LARGEST)
        if wrong.any():
            i = int(wrong.argmax())
            raise EmbeddingError(
                f"{place}: number {i} can lie between {low[i]:g} and {high[i]:g}, and solvers need numbers "
                f"up to {LARGEST:g}: narrow input_bounds, or scale inputs and weights"
            )

r"""Between which numbers every value of a network stays while its inputs stay in a box.

* **interval**   a form z = A x + b on l <= x <= u lies between :math:`A^+ l + A^- u + b` and
  :math:`A^+ u + A^- l + b`, widened by what torch can miss it by (`feed_forward.Form.slack`).  No float
  activation lies outside.
* **lp**   the interval, tightened layer by layer by linear programs (`lp_bounds`); as safe.
* **data**   what the activations of given samples showed, and nothing more: not safe.  Inside the box other
  activations can occur, and a model with such bounds excludes the inputs that cause them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from spr_or.embedding.feed_forward import Array, FeedForward, Form


class Bounds(NamedTuple):
    """Intervals that hold everything a network computes.

    lower, upper : of all values: inputs, then activations, (N,)
    before : for each activation the interval of its form z, lower and upper (m,)
    output : the interval of the outputs, lower and upper (q,)
    safe : whether no input of the box can lead outside
    """

    lower: Array
    upper: Array
    before: tuple[tuple[Array, Array], ...]
    output: tuple[Array, Array]
    safe: bool

    def undecided(self, step: int) -> Array:
        """Which rows of an activation's form can have either sign, bool (m,)."""
        low, high = self.before[step]
        return (low < 0) & (high > 0)


# Tightens the interval of the form of activation k, given all bounds of what stands before it.
Tighten = Callable[[int, Array, Array, "list[tuple[Array, Array]]"], tuple[Array, Array]]


def interval_bounds(
    network: FeedForward, lower: Array, upper: Array, tighten: Tighten | None = None
) -> Bounds:
    """Bounds by interval arithmetic; lower and upper, float64 (inputs,), are the box of the inputs.

    >>> from spr_or.embedding.reading import read_network
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    >>> _ = nn.init.constant_(net[0].weight, 2.0)
    >>> found = interval_bounds(read_network(net, (1,)), np.array([-1.0]), np.array([1.0]))
    >>> [round(float(end[0]), 4) for end in found.output]
    [0.0, 2.0]
    """
    before: list[tuple[Array, Array]] = []
    for k, step in enumerate(network.activations):
        low, high = form_interval(step.form, lower, upper, network.unit)
        before.append((low, high))
        if tighten is not None:
            before[k] = tighten(k, lower, upper, before)
        ends = [step.apply(end[None])[0] for end in before[k]]
        lower, upper = np.concatenate([lower, ends[0]]), np.concatenate([upper, ends[1]])
    output = form_interval(network.output, lower, upper, network.unit)
    return Bounds(lower, upper, tuple(before), output, True)


def form_interval(form: Form, lower: Array, upper: Array, unit: float) -> tuple[Array, Array]:
    """The interval of a form on a box, rounded outward: lower and upper, (m,)."""
    width = form.matrix.shape[1]
    low, high = lower[:width], upper[:width]
    positive, negative = form.matrix.maximum(0), form.matrix.minimum(0)
    slack = form.slack(np.maximum(abs(low), abs(high)), unit)
    return (
        positive @ low + negative @ high + form.offset - slack,
        positive @ high + negative @ low + form.offset + slack,
    )


def data_bounds(network: FeedForward, lower: Array, upper: Array, samples: Array) -> Bounds:
    """The least and largest of all that the samples (n, inputs) lead to; marked as not safe."""
    before, outputs = network.evaluate(samples)
    made = [step.apply(z) for step, z in zip(network.activations, before, strict=True)]
    x = np.concatenate([samples, *made], axis=1)
    count = network.inputs
    return Bounds(
        np.concatenate([lower, x[:, count:].min(0)]),
        np.concatenate([upper, x[:, count:].max(0)]),
        tuple((z.min(0), z.max(0)) for z in before),
        (outputs.min(0), outputs.max(0)),
        False,
    )

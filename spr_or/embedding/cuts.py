r"""Stronger rows for single neurons, found at the root: the cuts of Anderson et al.

For a = max(0, w x + b) on l <= x <= u and its binary s, any set I of inputs gives the valid row

.. math::  a \le \sum_{i \in I} w_i \bigl(x_i - \breve l_i (1 - s)\bigr)
           + \Bigl(b + \sum_{i \notin I} w_i \breve u_i\Bigr) s,

with :math:`\breve l_i, \breve u_i` = l_i, u_i where w_i >= 0 and u_i, l_i where w_i < 0.  Together they
describe the hull of one neuron; the most violated one at a point takes i into I where
:math:`w_i x_i < w_i (\breve l_i (1 - s) + \breve u_i s)` (Anderson, Huchette, Ma, Tjandraatmadja, Vielma,
Strong mixed-integer programming formulations for trained neural networks, Mathematical Programming 183,
2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spr_or.embedding.block import embedded
from spr_or.embedding.solving import root_bound

_VIOLATED = 1e-4  # by how much a row has to be broken to be worth its place


def add_cuts(model: Any, block: Any, rounds: int = 5) -> int:
    """Solve the relaxation of ``model``, add the violated cuts of ``block``, again; how many were added.

    The cuts go into ``block.cuts``.  They are valid for every objective, and chosen for the present one.

    Raises ValueError for a block that `embed` did not make, and for a model that HiGHS cannot relax: one
    without an objective, or a nonconvex one.
    """
    import pyomo.environ as pyo

    embedded(block)
    if next(model.component_data_objects(pyo.Objective, active=True), None) is None:
        raise ValueError("the model has no objective, for which cuts could be chosen: add it first")
    if block.component("cuts") is None:
        block.cuts = pyo.ConstraintList()
    added = 0
    for _ in range(rounds):
        if np.isnan(root_bound(model)):
            return added
        new = _violated(block)
        for row in new:
            block.cuts.add(row)
        added += len(new)
        if not new:
            break
    return added


def _violated(block: Any) -> list[Any]:
    """The most violated cut of each neuron with a binary, at the values of the variables."""
    made = embedded(block)
    x = np.array([v if isinstance(v, float) else v.value or 0.0 for v in made.values])
    rows = []
    for (k, i), s in block.fires.items():
        step = made.network.activations[k]
        part = slice(*step.form.matrix.indptr[i : i + 2])
        inputs, w = step.form.matrix.indices[part], step.form.matrix.data[part]
        low, high = made.bounds.lower[inputs], made.bounds.upper[inputs]
        low, high = np.where(w >= 0, low, high), np.where(w >= 0, high, low)
        share = s.value or 0.0
        inside = w * x[inputs] < w * (low * (1 - share) + high * share)
        # a <= constant + gain s + sum of w x over the inside
        constant = -float((w * low)[inside].sum())
        gain = float(step.form.offset[i] + (w * low)[inside].sum() + (w * high)[~inside].sum())
        limit = constant + gain * share + float((w * x[inputs])[inside].sum())
        if x[step.first + i] - limit <= _VIOLATED:
            continue
        terms = [
            (float(c), made.values[j])
            for c, j in zip(w[inside], inputs[inside], strict=True)
            if not isinstance(made.values[j], float)
        ]
        a = made.values[step.first + i]
        rows.append(a <= constant + gain * s + sum(c * v for c, v in terms))
    return rows

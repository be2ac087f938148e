"""Networks Linear, ReLU, Linear with one output, whose hidden neurons are interchangeable."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spr_or.formulations import bigm
from spr_or.formulations.entities import neurons, parameter_indices
from spr_or.formulations.problem import SparseTrainingProblem


class Places(NamedTuple):
    """Where the parameters of N hidden neurons stand in theta.

    rows : (N, k) int64, weights and bias into each neuron, in the order of the problem's entities
    out : (N,) int64, the weight out of each neuron
    bias : int, of the output
    """

    rows: Tensor
    out: Tensor
    bias: int


def reason_against(problem: SparseTrainingProblem) -> str:
    """Why a problem is not of this kind; empty if it is.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> X = torch.eye(2)
    >>> p = SparseTrainingProblem.network(net, X, [0, 1], neurons(net), lam=0.1, alpha=0.5, M=2)
    >>> reason_against(p)
    ''
    >>> p = SparseTrainingProblem.network(net, X, [0, 1], neurons(net), lam=0.1, alpha=0, M=2)
    >>> reason_against(p)
    'alpha must be positive'
    """
    net = problem.net
    if net is None or [type(layer) for layer in net] != [nn.Linear, nn.ReLU, nn.Linear]:
        return "the network must be Linear, ReLU, Linear"
    first, last = net[0], net[2]
    if last.out_features != 1 or first.bias is None or last.bias is None:
        return "the network must have one output and biases"
    if sorted(map(sorted, problem.entities.groups)) != sorted(map(sorted, neurons(net))):
        return "the entities must be the hidden neurons"
    if len(set(problem.u.tolist())) > 1 or len(set(problem.M.tolist())) > 1:
        return "all neurons must have the same u and M"
    return "" if problem.alpha > 0 else "alpha must be positive"


def need_one_hidden_layer(problem: SparseTrainingProblem, route: str) -> None:
    """Raise ``ValueError`` with `reason_against`, if there is one, in the name of ``route``."""
    reason = reason_against(problem)
    if reason:
        raise ValueError(f"{route} cannot take {problem.name!r}: {reason}")


def places(problem: SparseTrainingProblem) -> Places:
    """The `Places` of a problem without a `reason_against`."""
    assert problem.net is not None
    index = parameter_indices(problem.net)
    rows = torch.tensor([sorted(group) for group in problem.entities.groups])
    # The bias of a neuron comes behind all weights, so the first entry of a row is its first weight.
    neuron = rows[:, 0] // index["0.weight"].shape[1]
    return Places(rows, index["2.weight"].flatten()[neuron], int(index["2.bias"]))


def canonical(problem: SparseTrainingProblem, theta: Tensor) -> Tensor:
    """The same network theta (P,) with every |v| = M_free out of a neuron, and neurons in order.

    In order: positive v first; among equal signs used neurons first, then the larger first weight.
    A neuron that contributes nothing is not used: its weights become 0 and its v M_free.
    No step raises the objective: see `spr_or.formulations.network_wiring.scaled_weights`.
    """
    where = places(problem)
    rows, out = theta[where.rows], theta[where.out]
    rows = rows * (out.abs() / problem.M_free).unsqueeze(1)
    used = (rows != 0).any(1)
    sign = torch.where(used & (out < 0), -1.0, 1.0).to(theta)
    keys = zip((-sign).tolist(), (~used).tolist(), (-rows[:, 0]).tolist(), strict=True)
    order = [i for _, i in sorted((key, i) for i, key in enumerate(keys))]
    result = theta.clone()
    result[where.rows] = rows[order]
    result[where.out] = sign[order] * problem.M_free
    return result


def value(problem: SparseTrainingProblem, theta: Tensor) -> float:
    """The objective of (1) at theta (P,), with the indicators 1 where a weight is not 0."""
    rows = problem.entities.rows(theta)
    used = (rows != 0).any(-1).to(rows)
    with torch.no_grad():
        return float(problem.objective(theta, bigm.penalty(rows, used, problem.alpha)))

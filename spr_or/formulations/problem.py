r"""The sparse training problem that the three formulations share.

.. math::  \min_{w, y}\; \frac1n \sum_m \ell(f(x_m; w), y_m)
           + \lambda \sum_i u_i \bigl[\alpha \lVert w^i\rVert^2 + (1-\alpha) y_i\bigr],
           \qquad -M_i y_i \le w^i_j \le M_i y_i,\; y_i \in \{0, 1\}

(eq. (1)-(3) of arXiv 2206.14056), where f is linear or a small ReLU network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spr_or.formulations import projected
from spr_or.formulations.checked_input import (
    finite_array,
    finite_number,
    positive_per_entity,
)
from spr_or.formulations.entities import Entities, _as_indices, importances
from spr_or.formulations.losses import LOSSES
from spr_or.formulations.support_rules import SupportRules, support_rules

ENCODABLE = (nn.Linear, nn.Conv2d, nn.ReLU, nn.Flatten, nn.AvgPool2d)


@dataclass(frozen=True, eq=False, repr=False)
class SparseTrainingProblem:
    """Data, loss, entities and penalty of one problem; make it with `linear` or `network`.

    Attributes (tensors are float64 on the CPU unless said otherwise)
    ----------
    X : (n, p), or (n, ...) as the network takes it
    y : (n, q); for softmax (n,) int64
    loss : a name in `spr_or.formulations.losses.LOSSES`
    entities : `Entities` of theta, the flat vector of all weights.  Linear: theta = W.flatten() with
        W (p, q); network: the parameters in the order of ``net.named_parameters()``.
    lam, alpha : floats, lambda > 0 and alpha in [0, 1]
    M, u : (N,), bound on the weights and importance of each entity
    M_free : bound on the parameters in no entity (networks only)
    net : the network in float64, or None for a linear model
    name : shown in tables and plots
    bias_input : what the biases of a network are multiplied with, 1 but for a network in other units:
        ReLU networks are positively homogeneous in the data and this number together
    rules : what is asked of supports (linear models only), or None
    nonnegative : (p,) bool, the columns whose weights must not be negative, or None
    sample_weight : (n,), weights of the samples with mean 1 (logistic loss), or None.  With the squared loss
        the rows of X and y hold the roots of the weights as factors.
    """

    X: Tensor
    y: Tensor
    loss: str
    entities: Entities
    lam: float
    alpha: float
    M: Tensor
    u: Tensor
    M_free: float
    net: nn.Sequential | None
    name: str
    bias_input: float = 1.0
    rules: SupportRules | None = None
    nonnegative: Tensor | None = None
    sample_weight: Tensor | None = None

    @classmethod
    def linear(
        cls,
        X: Any,
        y: Any,
        entities: Iterable[Iterable[Any]],
        loss: str = "squared",
        *,
        lam: float,
        alpha: float,
        M: Any,
        u: Any = "uniform",
        free: Iterable[int] = (),
        M_free: float | None = None,
        sample_weight: Any = None,
        required: Iterable[int] = (),
        max_entities: int | None = None,
        needs: Mapping[int, Iterable[int]] | None = None,
        forbidden: Iterable[Iterable[int]] = (),
        nonnegative: Iterable[int] = (),
        name: str = "linear",
    ) -> SparseTrainingProblem:
        """A linear model f(x) = x W.

        Parameters
        ----------
        X : array-like (n, p)
        y : array-like (n,), or (n, q) for the squared and absolute loss; -1/+1 for hinge and
            logistic; class numbers 0..q-1 for softmax; at least 0 for poisson
        entities : a partition of the p columns, as lists of column numbers; with q > 1 outputs a
            column stands for all q of its weights, and a pair (column, output) for a single one
        M : a positive number, or one for each entity
        u : the importances: ``"uniform"`` (1 each), ``"share"`` (k_i / sum k), a positive number, or
            one for each entity; see `spr_or.formulations.entities.importances`
        free : the columns in no entity, which are not penalised: a column of ones is an intercept.  Their
            weights are bounded by ``M_free`` (default: the largest M)
        sample_weight : positive, (n,), for the squared, logistic and poisson loss; divided by their mean
        required : entities that every solution uses
        max_entities : the most entities that a solution uses
        needs : {entity: entities}: one that is used only together with all of those
        forbidden : lists of entities, supports that do not count
        nonnegative : columns whose weights must not be negative

        Raises ``ValueError``; the message names the argument, the place and the value.

        >>> X = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
        >>> p = SparseTrainingProblem.linear(X, [1, 0], [[0, 1], [2]], lam=0.1, alpha=0.5, M=2)
        >>> len(p.entities), p.convex
        (2, True)
        >>> p
        <linear: X (2, 3), 2 entities, squared loss, lam=0.1, alpha=0.5>
        """
        data = finite_array(X, "X")
        if data.dim() != 2:
            raise ValueError(f"X must have shape (n, p), got {tuple(data.shape)}")
        target, q = _targets(y, loss, data.shape[0])
        unpenalised = _columns(free, data.shape[1], "free")
        partition = _column_partition(entities, data.shape[1], q, unpenalised)
        settings = _penalty_settings(partition, lam, alpha, M, u, M_free)
        weights = None
        if sample_weight is not None:
            weights = _sample_weights(sample_weight, loss, data.shape[0])
            if loss == "squared":
                root = weights.sqrt().unsqueeze(1)
                data, target, weights = data * root, target * root, None
        signs = torch.zeros(data.shape[1], dtype=torch.bool)
        signs[_columns(nonnegative, data.shape[1], "nonnegative")] = True
        return cls(
            data, target, loss, partition, *settings, None, name,
            rules=support_rules(len(partition), required, max_entities, needs, forbidden),
            nonnegative=signs if bool(signs.any()) else None, sample_weight=weights,
        )  # fmt: skip

    @classmethod
    def network(
        cls,
        net: nn.Sequential,
        X: Any,
        y: Any,
        entities: Iterable[Iterable[int]],
        loss: str = "squared",
        *,
        lam: float,
        alpha: float,
        M: Any,
        M_free: float | None = None,
        u: Any = "share",
        name: str = "network",
    ) -> SparseTrainingProblem:
        """A small ``nn.Sequential`` of Linear, Conv2d, ReLU, Flatten and AvgPool2d, all layers free.

        ``entities`` are index lists into the flat parameter vector: `spr_or.formulations.entities.neurons`,
        `filters`, or your own from `parameter_indices`.  Parameters in no entity are not penalised;
        they are bounded by ``M_free`` (default: the largest M), which an exact method needs.  The
        importances ``u`` are by default each entity's share of the parameters, as in
        `spr_or.pruning.regularizer.SPR`: with the same lambda, alpha and M both have the same
        penalty.  The weights that ``net`` holds are not used.  Other arguments and errors as in
        `linear`; X has the shape (n, ...) that the network takes.

        >>> from spr_or.formulations.entities import neurons
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> X = torch.eye(2)
        >>> p = SparseTrainingProblem.network(net, X, [0, 1], neurons(net), lam=0.1, alpha=0.5, M=2)
        >>> len(p.entities), p.convex, p.entities.free.tolist()
        (3, False, [9, 10, 11, 12])
        """
        data = finite_array(X, "X")
        target, q = _targets(y, loss, data.shape[0])
        private = _checked_network(net, data, q)
        count = sum(p.numel() for p in private.parameters())
        partition = Entities.of(entities, count)
        settings = _penalty_settings(partition, lam, alpha, M, u, M_free)
        return cls(data, target, loss, partition, *settings, private, name)

    def __repr__(self) -> str:
        """One line: the data would fill a terminal."""
        shape, count = tuple(self.X.shape), len(self.entities)
        penalty = f"lam={self.lam:g}, alpha={self.alpha:g}"
        return f"<{self.name}: X {shape}, {count} entities, {self.loss} loss, {penalty}>"

    @property
    def n(self) -> int:
        """The number of samples."""
        return self.X.shape[0]

    @property
    def n_outputs(self) -> int:
        """q, the number of outputs of the model."""
        return int(self.y.max()) + 1 if self.loss == "softmax" else self.y.shape[1]

    @property
    def plain(self) -> bool:
        """Whether there are no rules, signs, weights of samples or free columns: what every solver takes."""
        asked = (self.rules, self.nonnegative, self.sample_weight)
        return all(x is None for x in asked) and (
            self.net is not None or not len(self.entities.free)
        )

    @property
    def convex(self) -> bool:
        """Whether the objective is convex for fixed indicators: linear models are, networks not."""
        return self.net is None

    def need_plain(self, route: str) -> None:
        """Raise ``ValueError`` where ``route`` would leave out what is asked for beyond the penalty."""
        if not self.plain:
            raise ValueError(
                f"{route} knows no rules for supports, signs, weights of samples or free columns, and "
                f"{self.name!r} has some: use spr_or.branch_and_bound, or SCIP on the big-M model"
            )

    def predict(self, theta: Tensor, samples: Tensor | None = None) -> Tensor:
        """f(X; theta): theta (P,) -> (n, q); for linear models also (..., P) -> (..., n, q).

        ``samples``: an index tensor that restricts X, as in a minibatch.
        """
        X = self.X if samples is None else self.X[samples]
        if self.net is None:
            return X @ theta.reshape(*theta.shape[:-1], X.shape[1], self.n_outputs)
        parameters = self.parameters(theta)
        if self.bias_input != 1:
            parameters = {
                name: value * self.bias_input if name.endswith("bias") else value
                for name, value in parameters.items()
            }
        return torch.func.functional_call(self.net, parameters, (X,))

    def parameters(self, theta: Tensor) -> dict[str, Tensor]:
        """theta (P,) as the network's named parameters (differentiable views)."""
        assert self.net is not None
        named = dict(self.net.named_parameters())
        parts = theta.split([p.numel() for p in named.values()])
        return {k: part.view_as(p) for (k, p), part in zip(named.items(), parts, strict=True)}

    def loss_value(self, theta: Tensor, samples: Tensor | None = None) -> Tensor:
        """The mean loss, shape () (or the batch shape of theta); ``samples`` as in `predict`."""
        y = self.y if samples is None else self.y[samples]
        values = LOSSES[self.loss].value(self.predict(theta, samples), y)
        if self.sample_weight is not None:
            values = values * (
                self.sample_weight if samples is None else self.sample_weight[samples]
            )
        return values.mean(-1)

    def objective(self, theta: Tensor, penalty: Tensor) -> Tensor:
        """Mean loss + lambda sum_i u_i penalty_i, for the (N,) penalties of any formulation.

        ``penalty`` comes from `bigm.penalty`, `perspective.penalty` or `projected.value`.
        """
        return self.loss_value(theta) + self.lam * (self.u * penalty).sum(-1)

    def projected_objective(self, theta: Tensor, variant: str = "exact") -> Tensor:
        """The objective of formulation (5) at theta."""
        rows = self.entities.rows(theta)
        return self.objective(theta, projected.value(rows, self.alpha, self.M, variant))

    def dual_bound(
        self, nu: Tensor, lower: float | Tensor = 0.0, upper: float | Tensor = 1.0
    ) -> Tensor:
        r"""D(nu) <= optimum of the linear problem with lower <= y <= upper, for any nu (..., n, q).

        D(nu) = -(1/n) sum_m l*(nu_m) - lambda sum_i u_i z*(-(X' nu)_i / (n lambda u_i)), by Fenchel
        duality (docs/explanation/derivation.md).  With lower = 0, upper = 1 it bounds the
        relaxation, hence the MIP.  -inf where nu leaves the domain of l*.  Linear models only
        (``ValueError``).
        """
        if not self.convex:
            raise ValueError("the Fenchel dual bound exists only for linear models")
        self.need_plain("the Fenchel dual bound")
        conjugate = LOSSES[self.loss].conjugate(nu, self.y).mean(-1)
        scale = (self.n * self.lam * self.u).unsqueeze(-1)
        slope = -self.entities.rows((self.X.mT @ nu).flatten(-2)) / scale
        z = projected.conjugate(slope, self.alpha, self.M, lower=lower, upper=upper)
        return -conjugate - self.lam * (self.u * z).sum(-1)


def _penalty_settings(
    entities: Entities, lam: Any, alpha: Any, M: Any, u: Any, M_free: Any
) -> tuple[float, float, Tensor, Tensor, float]:
    """lam, alpha, M, u and M_free as `SparseTrainingProblem` holds them."""
    lam, alpha = finite_number(lam, "lam"), finite_number(alpha, "alpha")
    if not lam > 0:
        raise ValueError(f"lam must be positive, got {lam}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    bound = positive_per_entity(M, "M", len(entities))
    importance = importances(u, entities.sizes)
    free = float(bound.max()) if M_free is None else finite_number(M_free, "M_free")
    if not free > 0:
        raise ValueError(f"M_free must be positive, got {free}")
    return lam, alpha, bound, importance, free


def _targets(y: Any, loss: str, n: int) -> tuple[Tensor, int]:
    """Targets in the shape the loss takes, and the number of outputs."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    target = finite_array(y, "y")
    if target.shape[0] != n:
        raise ValueError(f"X has {n} samples but y has {target.shape[0]}")
    if target.dim() == 1:
        target = target.unsqueeze(1)
    many = loss in ("squared", "absolute")
    if target.dim() != 2 or (target.shape[1] > 1 and not many):
        wanted = "(n,) or (n, q)" if many else "(n,)"
        raise ValueError(f"y must have shape {wanted} for the {loss} loss, got {np.shape(y)}")
    if loss in ("hinge", "logistic"):
        wrong = (target.abs() != 1).nonzero()
        if len(wrong):
            i = int(wrong[0, 0])
            raise ValueError(
                f"y must be -1 or +1 for the {loss} loss, got {target[i, 0]:g} at index {i}"
            )
    if loss == "poisson":
        wrong = (target < 0).nonzero()
        if len(wrong):
            i = int(wrong[0, 0])
            raise ValueError(
                f"y must be at least 0 for the poisson loss, got {target[i, 0]:g} at index {i}"
            )
        if not bool(target.any()):
            raise ValueError("y is 0 everywhere: the poisson loss has no best rate")
    if loss == "softmax":
        classes = target.squeeze(1)
        wrong = ((classes < 0) | (classes != classes.round())).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(
                f"y must hold class numbers 0, 1, ... for the softmax loss, "
                f"got {classes[i]:g} at index {i}"
            )
        return classes.long(), int(classes.max()) + 1
    return target, target.shape[1]


def _columns(values: Iterable[int], p: int, name: str) -> list[int]:
    """Checked column numbers."""
    found = list(_as_indices(values, 0)) if values is not None else []
    for j in found:
        if not 0 <= j < p:
            raise ValueError(f"{name} names column {j}; there are 0 to {p - 1}")
    return found


def _sample_weights(values: Any, loss: str, n: int) -> Tensor:
    """Weights with mean 1, (n,)."""
    if loss not in ("squared", "logistic", "poisson"):
        raise ValueError(
            f"sample_weight: only with the squared, logistic and poisson loss, got {loss!r}"
        )
    weights = finite_array(values, "sample_weight")
    if weights.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), got {tuple(weights.shape)}")
    if not bool((weights > 0).all()):
        m = int((weights <= 0).nonzero()[0])
        raise ValueError(
            f"sample_weight must be positive, got {weights[m]:g} at index {m}; leave such samples out"
        )
    return weights / weights.mean()


def _column_partition(
    entities: Iterable[Iterable[Any]], p: int, q: int, free: Sequence[int] = ()
) -> Entities:
    """Column groups, or groups of (column, output) pairs, as entities of W.flatten()."""
    if not isinstance(entities, Iterable):
        raise ValueError(f"entities must be a collection of column lists, got {entities!r}")
    groups = [list(group) if isinstance(group, Iterable) else [group] for group in entities]
    if any(np.ndim(j) > 0 for group in groups for j in group):
        flat = [
            [index for j in group for index in _cells(j, i, p, q)] for i, group in enumerate(groups)
        ]
    else:
        flat = [
            [j * q + o for j in group for o in range(q)] for group in Entities.of(groups, p).groups
        ]
    partition = Entities.of(flat, p * q)
    loose = sorted({int(j) // q for j in partition.free})
    missing = [j for j in loose if j not in free]
    if missing:
        raise ValueError(
            f"entities must cover every column of X: {_some(missing)} belong to none (for an intercept "
            "centre X and y, or add a column of ones and name it in free)"
        )
    taken = [j for j in free if j not in loose]
    if taken:
        raise ValueError(f"free names {_some(taken)}, which belong to entities")
    return partition


def _cells(j: Any, i: int, p: int, q: int) -> list[int]:
    if np.ndim(j) == 0:
        (column,) = _as_indices([j], i)
        return [column * q + o for o in range(q)]
    pair = _as_indices(j, i)
    if len(pair) != 2 or not (0 <= pair[0] < p and 0 <= pair[1] < q):
        raise ValueError(
            f"entity {i} holds {pair}, not a (column, output) pair within {p} columns, {q} outputs"
        )
    return [pair[0] * q + pair[1]]


def _some(values: Sequence[int], most: int = 5) -> str:
    listed = ", ".join(map(str, values[:most]))
    return listed if len(values) <= most else f"{listed} and {len(values) - most} more"


def _checked_network(net: nn.Sequential, X: Tensor, q: int) -> nn.Sequential:
    """A private float64 copy of a network that `network_constraints` can write as constraints."""
    if not isinstance(net, nn.Sequential):
        raise ValueError(f"net must be a torch.nn.Sequential, got {type(net).__name__}")
    for position, layer in enumerate(net):
        where = f"layer {position} of the network, {layer}"
        if type(layer) not in ENCODABLE:
            known = ", ".join(kind.__name__ for kind in ENCODABLE)
            raise ValueError(f"{where}, cannot be written as constraints: known layers are {known}")
        if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros"):
            raise ValueError(f"{where}: only groups=1 and padding_mode='zeros' can be encoded")
        if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
            raise ValueError(
                f"{where}: only Flatten() over all but the sample dimension is encoded"
            )
        if isinstance(layer, nn.AvgPool2d) and (layer.ceil_mode or layer.divisor_override):
            raise ValueError(f"{where}: ceil_mode and divisor_override cannot be encoded")
    private = copy.deepcopy(net).double().cpu()
    try:
        with torch.no_grad():
            output = private(X)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the network does not take X of shape {tuple(X.shape)}: {error}"
        ) from None
    if output.shape != (X.shape[0], q):
        raise ValueError(
            f"the network returns shape {tuple(output.shape)}, but y needs ({X.shape[0]}, {q})"
        )
    return private

r"""The data of a linear problem in entity order: one padded block of columns an entity.

Weights are W (..., N, k, q): entity, column within the entity (padded with zeros), output.  A sample's
prediction is the sum over entities and columns of x W.  Where the Gram matrix fits, the squared loss
needs no samples any more:

.. math::  \tfrac1n\lVert XW - Y\rVert^2 = \langle W, GW\rangle - 2\langle C, W\rangle + c_0,
           \qquad G = X'X/n,\; C = X'Y/n,\; c_0 = \lVert Y\rVert^2/n .
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.formulations.support_rules import SupportRules

_SMALL = 256  # columns: up to here a whole product costs less than to look which ones are used


class Moments(NamedTuple):
    """G (P, P), C (P, q), c0 () of the squared loss, over P = N k padded columns.

    Padded columns have a unit diagonal and nothing else, so that G stays as regular as the data.
    """

    G: Tensor
    C: Tensor
    c0: Tensor


@dataclass(frozen=True, eq=False)
class Design:
    """Columns of some entities of a problem.

    Attributes
    ----------
    X : (n, p) all columns, on the device; Y : (n, q)
    n : the divisor of the mean loss (with cell entities X has n q rows)
    loss : "squared", "logistic" or "poisson"
    entities : (N,) int64, the entities kept, as numbered by the problem
    columns : (N, k) int64 into X, ``real`` (N, k) bool marks what is not padding
    M, ridge, price : (N,), M_i, lambda u_i alpha and lambda u_i (1 - alpha)
    alpha : as in the problem
    moments : `Moments` or None
    rules : those of the problem, for all its entities and, behind them, its free columns: each is an
        entity of one column without ridge and price, which is required; or None
    signed : (N, k) bool, the columns whose weights are not negative, or None
    size : (rows, 1), the weights of the samples, or None
    shadow : the multiplier of the rule that at most m entities are used: what an entity costs in relaxations
        beside its price; ``credit`` is m times that, which they give back
    """

    X: Tensor
    Y: Tensor
    n: int
    loss: str
    entities: Tensor
    columns: Tensor
    real: Tensor
    M: Tensor
    ridge: Tensor
    price: Tensor
    alpha: float
    moments: Moments | None
    rules: SupportRules | None = None
    signed: Tensor | None = None
    size: Tensor | None = None
    shadow: float = 0.0
    credit: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, k, q)."""
        return (*self.columns.shape, self.Y.shape[1])

    @cached_property
    def penalised(self) -> Tensor:
        """(N,) bool: not a free column."""
        return self.ridge + self.price > 0

    def with_shadow(self, shadow: float) -> Design:
        """The same with a multiplier of ``rules.most``."""
        assert self.rules is not None and self.rules.most is not None
        loose = int((~self.penalised).sum())  # each counts as an entity in the rules
        return replace(self, shadow=shadow, credit=shadow * (self.rules.most - loose))

    @cached_property
    def scaled(self) -> tuple[float, Tensor, Tensor]:
        """alpha', units e (N,) and factors c (N,) with which the penalty of relaxations is the projected one:

        min_y ridge ||w||^2 / y + dear y = e z(c w), z with alpha' and the bound c M.
        """
        ones = torch.ones_like(self.ridge)
        if not self.shadow:
            return self.alpha, self.weight, ones
        if self.alpha == 0:
            return 0.0, self.dear, ones
        alpha = self.alpha if self.alpha < 1 else 0.5
        factor = (self.ridge * (1 - alpha) / (alpha * self.dear)).sqrt()
        return alpha, self.dear / (1 - alpha), torch.where(self.penalised, factor, ones)

    @property
    def weight(self) -> Tensor:
        """lambda u_i, (N,)."""
        return self.ridge + self.price

    @cached_property
    def dear(self) -> Tensor:
        """(N,), the prices of relaxations."""
        return self.price + self.shadow * self.penalised

    def must(self) -> Tensor:
        """(N,) bool, the entities of this design that every solution uses."""
        if self.rules is None:
            return torch.zeros_like(self.entities, dtype=torch.bool)
        return self.rules.required.to(self.entities.device)[self.entities]

    def allow(self, support: Tensor) -> bool:
        """Whether a support (N,), with nothing outside this design, obeys the rules."""
        return self.rules is None or bool(self.rules.allow(self.whole(support)))

    def mend(self, support: Tensor, promise: Tensor) -> Tensor:
        """A support near this one (N,) that obeys the rules, see `SupportRules.mend`."""
        if self.rules is None:
            return support
        whole = torch.full(self.rules.required.shape, -torch.inf, dtype=promise.dtype)
        whole[self.entities.cpu()] = promise.cpu()
        mended = self.rules.mend(self.whole(support), whole)
        return mended.to(support.device)[self.entities]

    def whole(self, support: Tensor) -> Tensor:
        """A mask (N,) of this design as one of all entities."""
        assert self.rules is not None
        found = torch.zeros_like(self.rules.required)
        found[self.entities.cpu()] = support.cpu()
        return found

    def restrict(self, keep: Tensor) -> Design:
        """The design of the entities at positions ``keep`` (K,)."""
        moments = self.moments
        if moments is not None:
            k = self.columns.shape[1]
            flat = columns_of(keep, k).flatten()
            moments = Moments(moments.G[flat][:, flat], moments.C[flat], moments.c0)
        return replace(
            self, entities=self.entities[keep], columns=self.columns[keep], real=self.real[keep],
            M=self.M[keep], ridge=self.ridge[keep], price=self.price[keep], moments=moments,
            signed=None if self.signed is None else self.signed[keep],
        )  # fmt: skip

    def quadratic(self) -> Tensor:
        """Q = G + diag(lambda u alpha), (P, P): all curvature there is, of a design with moments."""
        assert self.moments is not None
        Q = self.moments.G.clone()
        Q.diagonal().add_(self.ridge.repeat_interleave(self.columns.shape[1]))
        return Q

    def turned(self, turn: Tensor) -> Design:
        """The same, of a design with moments, in the coordinates of orthogonal ``turn`` (N, k, k): an
        entity's new columns are combinations of its old ones.  Its samples stay those of the old."""
        assert self.moments is not None
        G, C, c0 = self.moments
        N, k, q = self.shape
        half = torch.einsum("iab,iaP->ibP", turn, G.view(N, k, N * k)).reshape(N * k, N, k)
        whole = torch.einsum("Pja,jab->Pjb", half, turn).reshape(N * k, N * k)
        moments = Moments(whole, (turn.mT @ C.view(N, k, q)).reshape(N * k, q), c0)
        return replace(self, moments=moments)

    def block(self) -> Tensor:
        """The samples of the kept columns, (n, P), zero where padded."""
        return self.X[:, self.columns.flatten()] * self.real.flatten()

    def with_moments(self) -> Design:
        """The same with G, C and c0 formed: P^2 numbers."""
        if self.moments is not None:
            return self
        return replace(self, moments=moments_of(self.block(), self))


def columns_of(positions: Tensor, k: int) -> Tensor:
    """The padded columns (..., k) of entities at ``positions`` (...)."""
    return positions.unsqueeze(-1) * k + torch.arange(k, device=positions.device)


def moments_of(block: Tensor, design: Design) -> Moments:
    """G, C, c0 of the (n, P) samples in ``block``."""
    G = block.mT @ block / design.n
    G.diagonal().add_((~design.real.flatten()).to(G))
    return Moments(G, block.mT @ design.Y / design.n, design.Y.square().sum() / design.n)


def design_of(problem: SparseTrainingProblem, device: str | torch.device = "cpu") -> Design:
    """All entities of a linear problem with squared, logistic or poisson loss.

    Raises ``ValueError`` for networks and other losses.  Entities of single (column, output) cells are
    turned into columns of X (x) I_q, q times as wide.
    """
    if not problem.convex:
        raise ValueError(
            f"branch and bound solves linear models, and {problem.name!r} is a network: use scip"
        )
    if problem.loss not in ("squared", "logistic", "poisson"):
        raise ValueError(
            f"branch and bound takes the squared, logistic and poisson loss, got {problem.loss!r}"
        )
    q, width = problem.n_outputs, problem.X.shape[1]
    groups = problem.entities.groups
    loose = sorted({j // q for j in problem.entities.free.tolist()})
    X, Y, columns = problem.X, problem.y, _whole_columns(groups, q)
    signed = problem.nonnegative
    if columns is None:
        X, Y = torch.kron(X, torch.eye(q, dtype=X.dtype)), Y.reshape(-1, 1)
        columns, width = [list(group) for group in groups], width * q
        loose = [j * q + o for j in loose for o in range(q)]
        signed = None if signed is None else signed.repeat_interleave(q)
    columns = [*columns, *([j] for j in loose)]
    sizes = torch.tensor([len(group) for group in columns])
    real = torch.arange(int(sizes.max())) < sizes.unsqueeze(1)
    index = torch.zeros(real.shape, dtype=torch.int64)
    index[real] = torch.tensor([j for group in columns for j in group])
    nothing = torch.zeros(len(loose), dtype=torch.float64)
    weight = torch.cat([problem.lam * problem.u, nothing])
    M = torch.cat([problem.M, nothing + problem.M_free])
    size = problem.sample_weight
    return Design(
        X.to(device), Y.to(device), problem.n, problem.loss,
        torch.arange(len(columns), device=device), index.to(device), real.to(device),
        M.to(device), (weight * problem.alpha).to(device),
        (weight * (1 - problem.alpha)).to(device), problem.alpha, None,
        _rules(problem.rules, len(groups), len(loose)),
        None if signed is None else (signed[index] & real).to(device),
        None if size is None else size.unsqueeze(1).to(device),
    )  # fmt: skip


def _rules(rules: SupportRules | None, count: int, loose: int) -> SupportRules | None:
    """The rules for ``count`` entities, and for ``loose`` free columns behind them, which are required."""
    if not loose:
        return rules
    if rules is None:
        nothing = torch.zeros((0, count), dtype=torch.bool)
        rules = SupportRules(nothing.any(0), None, torch.zeros((0, 2)).long(), nothing)
    required = torch.cat([rules.required, torch.ones(loose, dtype=torch.bool)])
    most = None if rules.most is None else rules.most + loose
    used = torch.ones((len(rules.forbidden), loose), dtype=torch.bool)
    return SupportRules(required, most, rules.needs, torch.cat([rules.forbidden, used], dim=1))


def theta_of(problem: SparseTrainingProblem, design: Design, W: Tensor) -> Tensor:
    """The flat parameter vector (P,) of the problem for weights W (N, k, q) of a design of it."""
    theta = torch.zeros(problem.entities.n_parameters, dtype=torch.float64)
    table = theta.view(-1, W.shape[-1])
    real = design.real.cpu()
    table[design.columns.cpu()[real]] = W.detach().cpu().double()[real]
    return theta


def weights_of(problem: SparseTrainingProblem, design: Design, theta: Tensor) -> Tensor:
    """The inverse of `theta_of`: theta (P,) as W (N, k, q)."""
    table = theta.to(design.X).view(-1, design.Y.shape[1])
    return table[design.columns] * design.real.unsqueeze(-1)


def loss_and_gradient(
    design: Design, W: Tensor, block: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mean loss (B,) and its gradient (B, N, k, q) at W (B, N, k, q).

    From the moments where they exist, else from the samples (``block``, or X itself).
    """
    if design.moments is not None:
        G, C, c0 = design.moments
        flat = W.flatten(1, 2)  # (B, P, q)
        product = _times_gram(flat, G)
        value = (flat * (product - 2 * C)).sum((1, 2)) + c0
        return value, (2 * (product - C)).view(W.shape)
    samples = design.block() if block is None else block
    loss, prediction = LOSSES[design.loss], _predictions(W, samples)
    value = sample_sum(design, loss.value(prediction, design.Y)) / design.n
    return value, _sample_gradient(design, prediction, samples, W.shape)


def sample_sum(design: Design, values: Tensor) -> Tensor:
    """The sum over samples of their ``values`` (..., rows), each with its weight: (...)."""
    return (values if design.size is None else values * design.size.squeeze(1)).sum(-1)


def curvature(design: Design) -> float:
    """Of the loss in a prediction, where it is bounded.  Of the Poisson loss for rates up to four times the
    largest target (or 4): for larger ones gradient steps may be too long, which costs bounds, not proofs."""
    bound = LOSSES[design.loss].curvature
    return 4.0 * max(1.0, float(design.Y.max())) if bound is None else bound


def slopes(design: Design, prediction: Tensor) -> Tensor:
    """The derivative of the mean loss in the predictions (..., rows, q)."""
    slope = LOSSES[design.loss].gradient(prediction, design.Y) / design.n
    return slope if design.size is None else slope * design.size


def descent(
    design: Design, step: Tensor, block: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """The map from W (B, N, k, q) to W less ``step`` (N,) times the gradient of `loss_and_gradient`.

    With moments it is affine, and its matrix is formed here: one product for each call.
    """
    if design.moments is not None:
        G, C, _ = design.moments
        columns = 2 * step.repeat_interleave(design.shape[1])
        A, shift = -G * columns, columns.unsqueeze(1) * C
        A.diagonal().add_(1)
        return lambda W: _times_gram(W.flatten(1, 2), A, shift).view(W.shape)
    samples = design.block() if block is None else block
    size = step[:, None, None]

    def down(W: Tensor) -> Tensor:
        gradient = _sample_gradient(design, _predictions(W, samples), samples, W.shape)
        return torch.addcmul(W, size, gradient, value=-1)

    return down


def _predictions(W: Tensor, samples: Tensor) -> Tensor:
    """(B, n, q) for W (B, N, k, q) and samples (n, P)."""
    B, q = W.shape[0], W.shape[-1]
    n, P = samples.shape
    return (W.flatten(1, 2).mT.reshape(B * q, P) @ samples.mT).view(B, q, n).mT


def _sample_gradient(
    design: Design, prediction: Tensor, samples: Tensor, shape: torch.Size
) -> Tensor:
    """(B, N, k, q) from the predictions (B, n, q)."""
    B, n, q = prediction.shape
    slope = slopes(design, prediction)
    gradient = (slope.mT.reshape(B * q, n) @ samples).view(B, q, samples.shape[1]).mT
    return gradient.reshape(shape) * design.real.unsqueeze(-1)


def _times_gram(flat: Tensor, G: Tensor, shift: Tensor | None = None) -> Tensor:
    """G' W for W (B, P, q), and ``shift`` (P, q) added; of G only the rows whose columns any W uses are
    read."""
    B, P, q = flat.shape
    rows = flat.mT.reshape(B * q, P)
    if P > _SMALL:
        used = (rows != 0).any(0).nonzero().flatten()
        if 2 * used.shape[0] <= P:
            rows, G = rows[:, used], G[used]
    if shift is None:
        return (rows @ G).view(B, q, P).mT
    start = shift.mT.expand(B, q, P).reshape(B * q, P) if q > 1 else shift.mT
    return torch.addmm(start, rows, G).view(B, q, P).mT


def _whole_columns(groups: tuple[tuple[int, ...], ...], q: int) -> list[list[int]] | None:
    """Entities as columns of X where each owns all outputs of its columns, else None."""
    if q == 1:
        return [sorted(group) for group in groups]
    columns = []
    for group in groups:
        owned = sorted({j // q for j in group})
        if len(owned) * q != len(group):
            return None
        columns.append(owned)
    return columns

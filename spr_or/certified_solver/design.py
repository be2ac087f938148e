r"""The data of a linear problem in entity order: one padded block of columns an entity.

Weights are W (..., N, k, q): entity, column within the entity (padded with zeros), output.  A sample's
prediction is the sum over entities and columns of x W.  Where the Gram matrix fits, the squared loss
needs no samples any more:

.. math::  \tfrac1n\lVert XW - Y\rVert^2 = \langle W, GW\rangle - 2\langle C, W\rangle + c_0,
           \qquad G = X'X/n,\; C = X'Y/n,\; c_0 = \lVert Y\rVert^2/n .
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.formulations.losses import LOSSES
from spr_or.formulations.problem import SparseTrainingProblem

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
    loss : "squared" or "logistic"
    entities : (N,) int64, the entities kept, as numbered by the problem
    columns : (N, k) int64 into X, ``real`` (N, k) bool marks what is not padding
    M, ridge, price : (N,), M_i, lambda u_i alpha and lambda u_i (1 - alpha)
    alpha : as in the problem
    moments : `Moments` or None
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, k, q)."""
        return (*self.columns.shape, self.Y.shape[1])

    @property
    def weight(self) -> Tensor:
        """lambda u_i, (N,)."""
        return self.ridge + self.price

    def restrict(self, keep: Tensor) -> Design:
        """The design of the entities at positions ``keep`` (K,)."""
        moments = self.moments
        if moments is not None:
            k = self.columns.shape[1]
            flat = columns_of(keep, k).flatten()
            moments = Moments(moments.G[flat][:, flat], moments.C[flat], moments.c0)
        return Design(
            self.X, self.Y, self.n, self.loss, self.entities[keep], self.columns[keep],
            self.real[keep], self.M[keep], self.ridge[keep], self.price[keep], self.alpha, moments,
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
        return Design(**{**self.__dict__, "moments": moments})

    def block(self) -> Tensor:
        """The samples of the kept columns, (n, P), zero where padded."""
        return self.X[:, self.columns.flatten()] * self.real.flatten()

    def with_moments(self) -> Design:
        """The same with G, C and c0 formed: P^2 numbers."""
        if self.moments is not None:
            return self
        return Design(**{**self.__dict__, "moments": moments_of(self.block(), self)})


def columns_of(positions: Tensor, k: int) -> Tensor:
    """The padded columns (..., k) of entities at ``positions`` (...)."""
    return positions.unsqueeze(-1) * k + torch.arange(k, device=positions.device)


def moments_of(block: Tensor, design: Design) -> Moments:
    """G, C, c0 of the (n, P) samples in ``block``."""
    G = block.mT @ block / design.n
    G.diagonal().add_((~design.real.flatten()).to(G))
    return Moments(G, block.mT @ design.Y / design.n, design.Y.square().sum() / design.n)


def design_of(problem: SparseTrainingProblem, device: str | torch.device = "cpu") -> Design:
    """All entities of a linear problem with squared or logistic loss.

    Raises ``ValueError`` for networks and other losses.  Entities of single (column, output) cells are
    turned into columns of X (x) I_q, q times as wide.
    """
    if not problem.convex:
        raise ValueError(
            f"branch and bound solves linear models, and {problem.name!r} is a network: use scip"
        )
    if problem.loss not in ("squared", "logistic"):
        raise ValueError(
            f"branch and bound takes the squared and the logistic loss, got {problem.loss!r}"
        )
    q, width = problem.n_outputs, problem.X.shape[1]
    groups = problem.entities.groups
    X, Y, columns = problem.X, problem.y, _whole_columns(groups, q)
    if columns is None:
        X, Y = torch.kron(X, torch.eye(q, dtype=X.dtype)), Y.reshape(-1, 1)
        columns, width = [list(group) for group in groups], width * q
    sizes = torch.tensor([len(group) for group in columns])
    real = torch.arange(int(sizes.max())) < sizes.unsqueeze(1)
    index = torch.zeros(real.shape, dtype=torch.int64)
    index[real] = torch.tensor([j for group in columns for j in group])
    weight = problem.lam * problem.u
    return Design(
        X.to(device), Y.to(device), problem.n, problem.loss,
        torch.arange(len(columns), device=device), index.to(device), real.to(device),
        problem.M.to(device), (weight * problem.alpha).to(device),
        (weight * (1 - problem.alpha)).to(device), problem.alpha, None,
    )  # fmt: skip


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
    value = loss.value(prediction, design.Y).sum(-1) / design.n
    return value, _sample_gradient(design, prediction, samples, W.shape)


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
    slope = LOSSES[design.loss].gradient(prediction, design.Y) / design.n
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

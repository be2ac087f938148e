r"""A layer as a regression: fewer rows, and the same scale for every channel.

**Rows.**  With X centred, X = Q T (Q orthonormal columns, T at most P rows) gives
(1/n) ||X (V - W)||^2 = (1/n) ||T (V - W)||^2 for every V: the layer's output Y = X W lies in the span of
X, so nothing of the loss is lost, not even a constant, whatever n is.

**Scale.**  Columns of one channel are combined into orthonormal ones, U_i = T_i B_i, which changes
neither what a channel can contribute nor which channels there are, only the coordinates of its weights
(group standardisation: Simon and Tibshirani, 2012).  The penalty alpha ||w^i||^2 is then the energy that
the channel contributes to the output, not the size of raw weights, which BatchNorm leaves arbitrary.
Directions in which a channel never varies are dropped; a channel without any is dead.

Y is divided by its own norm: the loss is the share of the output's variance that is lost.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spr_or.layer_study.activations import Patches

_NOTHING = 1e-6  # of a channel's largest singular value: below, a direction is rounding


class Standard(NamedTuple):
    """A layer in standard form.

    channels : (N,) int64, the input channels that vary; groups : the columns of each
    U : (r, P) with orthonormal columns in each group; Y : (r, q) of norm 1; U V0 = Y
    V0 : (P, q), the dense layer's weights; norms : (c_in,), the raw norms of its channels' kernels
    samples : the number of positions behind it
    """

    channels: Tensor
    groups: list[list[int]]
    U: Tensor
    Y: Tensor
    V0: Tensor
    norms: Tensor
    samples: int

    @property
    def G(self) -> Tensor:
        """U'U, (P, P)."""
        return self.U.mT @ self.U


def standardise(patches: Patches, channels: int) -> Standard:
    """The standard form of a layer with ``channels`` input channels.

    Raises ``ValueError`` where the output does not vary at all.
    """
    X, W = patches
    centred = X - X.mean(0)
    T = torch.linalg.qr(centred, mode="r")[1]
    Y = T @ W
    energy = Y.norm()
    if not float(energy) > 0:
        raise ValueError("its output is the same at every position: there is nothing to reproduce")
    k = X.shape[1] // channels
    largest = max(float(torch.linalg.matrix_norm(T, ord=torch.inf)), 1e-300)
    alive: list[int] = []
    groups: list[list[int]] = []
    bases, weights = [], []
    for i in range(channels):
        columns = slice(i * k, (i + 1) * k)
        U, S, V = torch.linalg.svd(T[:, columns], full_matrices=False)
        used = max(_NOTHING * float(S[0]), 1e-12 * largest) < S
        if bool(used.any()):
            start = sum(map(len, groups))
            groups.append(list(range(start, start + int(used.sum()))))
            alive.append(i)
            bases.append(U[:, used])
            weights.append((S[used].unsqueeze(1) * V[used]) @ W[columns] / energy)
    norms = W.view(channels, k, -1).square().sum((1, 2)).sqrt()
    basis, V0 = torch.cat(bases, 1), torch.cat(weights)
    return Standard(torch.tensor(alive), groups, basis, basis @ V0, V0, norms, len(X))


def rotated(standard: Standard, blocks: list[Tensor]) -> Standard:
    """In the coordinates of one orthogonal matrix for each group, and with a triangular U."""
    turn = torch.block_diag(*blocks)
    Q, R = torch.linalg.qr(standard.U @ turn)
    V0 = turn.mT @ standard.V0
    return standard._replace(U=R, Y=R @ V0, V0=V0)

"""New weights for a convolution that reads fewer channels: those that come nearest to given outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_RIDGE = 1e-8  # of the mean variance of a column


class Moments(NamedTuple):
    """Second moments of inputs X (n, P) and with outputs Y (n, q): G (P, P) and C (P, q).

    They are about the means x (P,) and y (q,), or about zero where these are None.
    """

    G: Tensor
    C: Tensor
    x: Tensor | None
    y: Tensor | None


def moments_of(X: Tensor, Y: Tensor, centred: bool) -> Moments:
    """The moments of X (n, P) and Y (n, q); about zero unless ``centred``."""
    x, y = (X.mean(0), Y.mean(0)) if centred else (None, None)
    X, Y = (A if a is None else A - a for A, a in ((X, x), (Y, y)))
    return Moments(X.mT @ X / len(X), X.mT @ Y / len(X), x, y)


def refitted(moments: Moments, kept: Tensor) -> tuple[Tensor, Tensor]:
    """V (P, q), zero outside the columns ``kept`` (P,), and c (q,) with X V + c nearest to Y.

    c is zero where the moments are not centred.

    >>> X = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]).double()
    >>> V, _ = refitted(moments_of(X, X.sum(1, keepdim=True), False), torch.tensor([True, False]))
    >>> V.round(decimals=4).tolist()
    [[3.0], [0.0]]
    """
    G = moments.G[kept][:, kept]
    G.diagonal().add_(_RIDGE * float(moments.G.diagonal().mean()) + torch.finfo(G.dtype).tiny)
    V = torch.zeros_like(moments.C)
    V[kept] = torch.linalg.solve(G, moments.C[kept])
    if moments.x is None or moments.y is None:
        return V, V.new_zeros(V.shape[1])
    return V, moments.y - moments.x @ V


def shifting_norm(
    model: nn.Module, name: str, following: Mapping[str, Sequence[str]]
) -> nn.Module | None:
    """The only norm behind a layer if it has a running mean, which can take a constant; else None.

    following: of `spr_or.pruning.following_norms`.
    """
    norms = [model.get_submodule(n) for n in following.get(name, [])]
    running = [n for n in norms if getattr(n, "running_mean", None) is not None]
    return running[0] if len(norms) == 1 and running else None


@torch.no_grad()
def write_(layer: nn.Conv2d, V: Tensor, shift: Tensor, norm: nn.Module | None) -> None:
    """Give a convolution the weights V (c_in k, c_out) and a constant (c_out,).

    Where it has no bias the constant is taken off the running mean of ``norm``.
    """
    layer.weight.copy_(V.mT.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias))
    elif norm is not None:
        mean = norm.running_mean
        assert isinstance(mean, Tensor)
        mean.sub_(shift.to(mean))

r"""CHIP: filters whose channel follows from the others go (Sui, Yin, Xie, Phan, Zonouz, Yuan, NeurIPS 2021).

With A the feature maps of a layer for one image, (N, HW), a row for each filter, the channel
independence of filter i is what the nuclear norm loses when its row is set to zero,

.. math:: s_i = \frac1n \sum_{t=1}^n \bigl(\lVert A(x_t) \rVert_* - \lVert M_i A(x_t) \rVert_* \bigr)

over n training images (the paper: 5 batches of 128), maps behind norm and activation
(`spr_or.methods.common.feature_maps`). All the N losses come from one decomposition A = U S V':

.. math:: \lVert A \rVert_* - \lVert M_i A \rVert_* = -\frac1\pi \int_0^\infty
          \log\Bigl(t^2 \bigl[(A A^\top + t^2)^{-1}\bigr]_{ii}\Bigr)\, dt

since the bracket is the quotient of the determinants without and with row i, the integral of
log(1 + σ²/t²) is πσ, and the inverse is diagonal in U. With t = e^x the trapezoidal rule converges
exponentially.

The paper chooses the share of each layer by hand; here all layers lose the same share.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from spr_or.methods.common.feature_maps import filters_of, scores_of_maps
from spr_or.training.method import Method, MethodKeys, PruningPlan, PruningTask

# The rule in x, with t in units of the largest singular value; its error is about 1e-8 of that.
_FROM, _TO, _POINTS = -25.0, 21.0, 116


class Keys(MethodKeys):
    """Keys of ``[method]``."""

    images: int = Field(640, ge=1)  # training images whose maps are looked at


def independence(maps: Tensor) -> Tensor:
    """The drop of the nuclear norm for each filter, summed over the images; maps (B, N, …) to (N,).

    >>> maps = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    >>> [round(x, 6) for x in independence(maps).tolist()]
    [5.0, 0.0]
    """
    A = maps.flatten(2).double()
    U, S, _ = torch.linalg.svd(A, full_matrices=False)
    largest = S[:, :1].clamp(min=torch.finfo(A.dtype).tiny)
    squares = (S / largest).square().unsqueeze(1)  # (B, 1, r)
    x = torch.linspace(_FROM, _TO, _POINTS, dtype=A.dtype, device=A.device)
    t = x.exp()
    parts = squares / (squares + t.square().unsqueeze(1))  # (B, points, r)
    below_one = (U.square() @ parts.mT).clamp(max=1 - 1e-16)  # 1 - t² (K + t²)^-1, (B, N, points)
    return ((-torch.log1p(-below_one) @ t) * largest * (x[1] - x[0]) / math.pi).sum(0)


def plan(task: PruningTask, keys: Keys) -> PruningPlan:
    """Score by `independence` over ``keys.images`` images; nothing is trained."""
    made = filters_of(task.model, task.layers, "CHIP")
    return PruningPlan(
        scores=lambda: scores_of_maps(task, made, keys.images, independence), across="layers"
    )


METHOD = Method(
    title="CHIP",
    kind="score",
    paper="Sui, Yin, Xie, Phan, Zonouz, Yuan, NeurIPS 2021, arXiv:2110.13981",
    plan=plan,
    keys=Keys,
    differs="the share of each layer is the same, not chosen by hand",
)

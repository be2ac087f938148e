"""Small steps that the semidefinite programs share, each for one matrix or a batch of them."""

from __future__ import annotations

import torch
from torch import Tensor


def hold(matrix: Tensor, rows: Tensor) -> None:
    """Replace rows and columns of ``matrix`` (..., P, P) by those of the identity, in place, where
    ``rows`` (..., P) is True: Newton's method then leaves these coordinates where they are.

    >>> A = torch.full((2, 2), 3.0)
    >>> hold(A, torch.tensor([False, True]))
    >>> A.tolist()
    [[3.0, 0.0], [0.0, 1.0]]
    """
    matrix.masked_fill_(rows.unsqueeze(-1) | rows.unsqueeze(-2), 0.0)
    matrix.diagonal(dim1=-2, dim2=-1).add_(rows.to(matrix))


def cholesky(matrix: Tensor) -> Tensor:
    """Cholesky factors of ``matrix`` (..., P, P), of a slightly larger diagonal where rounding made a
    positive semidefinite matrix indefinite.

    >>> cholesky(torch.tensor([[4.0, 0.0], [0.0, 9.0]])).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """
    L, info = torch.linalg.cholesky_ex(matrix)
    failed = info > 0
    if bool(failed.any()):
        lift = matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1) * 1e-8
        lifted = matrix + torch.diag_embed((failed * lift).unsqueeze(-1).expand(matrix.shape[:-1]))
        L, _ = torch.linalg.cholesky_ex(lifted)
    return L

"""Values of lambda as they are asked for: a number, a share of the largest, a path of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

from spr_or.certified_solver.lambda_path import grid, zero_from
from spr_or.formulations.checked_input import finite_number
from spr_or.formulations.problem import SparseTrainingProblem
from spr_or.pruning.lam_words import share_in


def lam_of(lam: float | str, problem: SparseTrainingProblem) -> float:
    """lambda as a number: a share such as "0.1 max" is one of the lambda that empties the model.

    Raises ``ValueError`` for other words, and for numbers that are not positive and finite.

    >>> p = SparseTrainingProblem.linear(
    ...     [[1.0, 0.0], [0.0, 1.0]], [2.0, 0.1], [[0], [1]], lam=1, alpha=0.5, M=4)
    >>> lam_of(0.3, p), round(lam_of("0.1 max", p), 6)
    (0.3, 0.2)
    """
    share = share_asked(lam)
    # Zero where there is nothing to explain: then every lambda has the same answer.
    return float(lam) if share is None else share * zero_from(problem) or 1.0


def share_asked(lam: float | str) -> float | None:
    """The share of the largest lambda in words such as "0.1 max"; None for a number.

    Raises ``ValueError`` for other words, and for numbers that are not positive and finite.
    """
    if not isinstance(lam, str):
        if not finite_number(lam, "lam") > 0:
            raise ValueError(f"lam must be positive, got {lam}")
        return None
    share = share_in(lam)
    if share is None:
        raise ValueError(f'lam must be a number or a share such as "0.1 max", got {lam!r}')
    return share


def lambdas(lams: int | Sequence[float], problem: SparseTrainingProblem) -> list[float]:
    """The lambdas of a path, largest first: a number of them from the empty model down, or a list.

    Raises ``ValueError``.
    """
    if isinstance(lams, Integral) and not isinstance(lams, bool) and int(lams) > 0:
        # Zero where there is nothing to explain: then every lambda has the same answer.
        return grid(zero_from(problem) or 1.0, int(lams))
    try:
        found = sorted({float(lam) for lam in lams}, reverse=True)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        found = []
    if not found or not all(0 < lam < math.inf for lam in found):
        raise ValueError(f"lams must be a number of values or positive values, got {lams!r}")
    return found

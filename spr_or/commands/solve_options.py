"""The texts of the options of `spr-or solve` as values; each ``ValueError`` names the option."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spr_or.formulations.problem import SparseTrainingProblem
    from spr_or.tabular.model_rules import ModelRules


def bound_of(text: str) -> float | None:
    """What ``--M`` says; None: auto."""
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"--M must be auto or a positive number, got {text!r}")
    return value


def alphas_of(text: str) -> list[float]:
    """What ``--alpha`` says, smallest first.

    >>> alphas_of("0.1"), alphas_of("0.1,0.01")
    ([0.1], [0.01, 0.1])
    """
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values:
        raise ValueError(f"--alpha must be a number from 0 to 1 or a list of them, got {text!r}")
    return values


def lambda_of(text: str, problem: SparseTrainingProblem) -> float:
    """What ``--lam`` says for a problem."""
    from spr_or.tabular.lambda_values import lam_of, share_asked

    value: float | str = text.replace("max", " max")  # "0.1max" as well
    with suppress(ValueError):
        value = float(text)
    try:
        share_asked(value)
    except ValueError:
        raise ValueError(
            f'--lam must be a positive number or a share such as "0.1 max", got {text!r}'
        ) from None
    return lam_of(value, problem)


def path_of(text: str) -> int | list[float]:
    """What ``--path`` says: a number of lambdas, or the values.

    >>> path_of("12"), path_of("5,2")
    (12, [5.0, 2.0])
    """
    if text.strip().isdigit():
        return int(text)
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise ValueError(
            f"--path must be a number of values or a list of positive ones, got {text!r}"
        )
    return values


def check_limits(gap: float, time_limit: float | None) -> None:
    """Refuse limits that are none."""
    if not 0 <= gap < math.inf:
        raise ValueError(f"--gap must be a number of at least 0, got {gap}")
    if time_limit is not None and not time_limit >= 0:
        raise ValueError(f"--time-limit must be at least 0 seconds, got {time_limit}")


def check_device(device: str) -> None:
    """Refuse a device that this machine has not."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: {reason}") from None


def rules_of(
    max_groups: int | None,
    require: str | None,
    needs: str | None,
    nonnegative: str | None,
    group_weights: str,
    weights: str | None,
) -> ModelRules:
    """What is asked of the model beside its penalty."""
    from spr_or.tabular.model_rules import ALL, ModelRules, needs_asked, weights_asked
    from spr_or.tabular.source import names_asked

    signed: str | list[str] = []
    if nonnegative is not None:
        signed = ALL if nonnegative == ALL else names_asked(nonnegative)
    return ModelRules(
        sample_weight=weights,
        group_weights=weights_asked(group_weights),
        max_groups=max_groups,
        required=[] if require is None else names_asked(require),
        nonnegative=signed,
        needs={} if needs is None else needs_asked(needs),
    )

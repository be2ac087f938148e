"""Invalid input is refused by name."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spr_or.formulations import projected

FUNCTIONS: dict[str, Callable] = {
    "regime": projected.regime,
    "indicator": projected.indicator,
    "value": projected.value,
    "gradient": projected.gradient,
    "conjugate": projected.conjugate,
    "prox": lambda w, alpha, M, variant="exact": projected.prox(w, 0.1, alpha, M, variant),
}
GOOD = torch.ones(2, 3)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "arguments, message",
    [
        ((GOOD, 1.5, 1.0), r"alpha must lie in \[0, 1\], got 1.5"),
        ((GOOD, -0.1, 1.0), r"alpha .* -0.1"),
        ((GOOD, math.nan, 1.0), r"alpha .* nan"),
        ((GOOD, 0.5, 0.0), r"M must be positive, got 0"),
        ((GOOD, 0.5, -2.0), r"M must be positive, got -2"),
        ((GOOD, 0.5, math.nan), r"M must be positive, got nan"),
        ((GOOD, 0.5, torch.tensor([1.0, -3.0])), r"M must be positive.*-3"),
        ((GOOD, 0.5, torch.tensor([1.0, math.nan])), r"M must be positive"),
        ((GOOD, 0.5, torch.ones(5)), r"M of shape \(5,\) .* \(2,\)"),
        ((GOOD, 0.5, 1.0, "misprint"), r"variant must be one of .*'misprint'"),
        ((GOOD.long(), 0.5, 1.0), r"floating-point .* torch.int64"),
        ((GOOD[0], 0.5, 1.0), r"shape \(\.\.\., N, k\), got .*\(3,\)"),
        (([[1.0]], 0.5, 1.0), r"tensor .* got list"),
    ],
)
def test_invalid_input_is_named(name: str, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](*arguments)


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, torch.tensor([1.0, -0.5])])
def test_prox_wants_a_positive_step(step: float | Tensor) -> None:
    with pytest.raises(ValueError, match="step must be positive, got"):
        projected.prox(GOOD, step, 0.5, 1.0)


@pytest.mark.parametrize("variant", ["printed", "authors2022"])
def test_prox_and_conjugate_exist_for_the_exact_form_alone(variant: str) -> None:
    with pytest.raises(ValueError, match=f"exact.*{variant}"):
        projected.prox(GOOD, 0.1, 0.5, 1.0, variant)
    with pytest.raises(ValueError, match=f"exact.*{variant}"):
        projected.conjugate(GOOD, 0.5, 1.0, variant)

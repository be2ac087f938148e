"""The comparison of docs/lab/twenty_tables.md: what counts as agreement, and the enumeration's own optima."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

SCRIPT = Path(__file__).parents[2] / "experiments" / "tables" / "twenty_tables.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("twenty_tables", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kept", "objective", "bound", "said"),
    [
        (["b", "a"], 0.50001, 0.49999, "yes"),
        (["a"], 0.50001, 0.49999, "**no**"),
        (["a", "b"], 0.501, 0.49999, "**no**"),
        (["a", "b"], 0.50001, 0.5001, "**no**"),
    ],
)
def test_only_the_same_groups_value_and_a_true_bound_agree(
    script: Any, kept: list[str], objective: float, bound: float, said: str
) -> None:
    row = {"result": {"kept": kept, "outcome": {"objective": objective, "bound": bound}}}
    assert script.agrees(row, {"best": ["a", "b"], "value": 0.5}) == said
    assert script.agrees(row, {"groups": ["a", "b"]}) == "not tried"


def test_the_optima_of_one_choice_are_those_of_scipy(script: Any) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), np.where(rng.random((40, 1)) < 0.3, 1.0, -1.0)

    def logistic(w: np.ndarray) -> float:
        margin = -y[:, 0] * (X @ w[:3] + w[3])
        return float(np.logaddexp(0, margin).mean() + 0.1 * (w[:3] @ w[:3]))

    found = minimize(logistic, np.zeros(4), options={"gtol": 1e-9})
    assert script.least_logistic(X, y, 0.1) == pytest.approx(found.fun, rel=1e-9)

    def squared(w: np.ndarray) -> float:
        return float(((y[:, 0] - X @ w) ** 2).mean() + 0.1 * (w @ w))

    found = minimize(squared, np.zeros(3), options={"gtol": 1e-9})
    assert script.least_squares(X, y, 0.1) == pytest.approx(found.fun, rel=1e-9)
    assert len(list(script.choices(5))) == 32

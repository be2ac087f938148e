"""The study of docs/lab/accuracy.md: every row is a valid recipe, and a win is what it says it is."""

import importlib.util
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "research" / "accuracy.py"


@pytest.fixture(scope="module")
def accuracy() -> Any:
    spec = importlib.util.spec_from_file_location("accuracy_study", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_every_row_is_a_recipe_of_its_own_and_is_compared_with_one_beside_it(
    accuracy: Any, data: str
) -> None:
    setting = accuracy.SETTINGS[data]
    for target in accuracy.TARGETS:
        rows = accuracy.rows(setting, target)
        sections = []
        for row in rows:
            recipe = accuracy._recipe(setting, [*setting.shared, *row.overrides])
            sections.append((recipe.spr, recipe.finetune))
            assert row.against == "" or row.against in [r.name for r in rows if r is not row]
        assert all(one not in sections[:i] for i, one in enumerate(sections))
        assert [row.against for row in rows].count("") == 1


def test_a_win_is_more_than_two_deviations_and_more_than_two_images(accuracy: Any) -> None:
    def result(*values: float) -> Any:
        return accuracy.Result(None, 90.0, list(values), [], [], [])

    base = result(95.0, 96.0, 97.0)  # deviation 1
    assert accuracy.verdict(result(97.5, 98.5, 99.5), base, 0.1) == "+2.50 wins"
    assert accuracy.verdict(result(91.0, 92.0, 93.0), base, 0.1) == "-4.00 loses"
    assert accuracy.verdict(result(96.5, 97.5, 98.5), base, 0.1) == "+1.50"
    # A wide spread of the other row counts as well.
    wide = result(93.5, 98.5, 103.5)
    assert statistics.stdev(wide.accuracy) == 5 and accuracy.verdict(wide, base, 0.1) == "+2.50"
    same = result(95.0, 95.0, 95.0)
    assert accuracy.verdict(result(95.5, 95.5, 95.5), same, 0.28) == "+0.50"
    assert accuracy.verdict(result(96.0, 96.0, 96.0), same, 0.28) == "+1.00 wins"

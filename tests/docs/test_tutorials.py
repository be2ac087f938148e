"""The notebooks of the tutorials run, and the stored output of the bounds is what they print."""

import pytest
from docs_hooks import DOCS, hook


def test_bounds_of_a_small_problem() -> None:
    notebooks = hook("notebooks")
    notebook = DOCS / "tutorials" / "bounds.ipynb"
    stored = [output for _, _, output in notebooks.cells(notebook)]
    assert any(stored)
    assert notebooks.run(notebook) == stored


@pytest.mark.slow
def test_pruning_a_network() -> None:
    """Training differs between machines in the last bits, so its figures are not compared."""
    notebooks = hook("notebooks")
    notebook = DOCS / "tutorials" / "pruning.ipynb"
    stored = [output for _, _, output in notebooks.cells(notebook)]
    printed = notebooks.run(notebook)
    assert [bool(output) for output in printed] == [bool(output) for output in stored]


def test_a_notebook_becomes_a_page_with_text_code_and_output() -> None:
    page = hook("notebooks").page_of(DOCS / "tutorials" / "bounds.ipynb")
    assert page.startswith("# Bounds of a small problem")
    assert "```python\nimport numpy as np" in page
    assert "```text\nbig-M 0.1401 <= perspective 0.1772 <= optimum 0.2543" in page

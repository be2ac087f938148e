"""What the hooks of the site make: recipe keys, formulas, docstrings, reference pages."""

import re
from pathlib import Path
from typing import Any

import pytest
from docs_hooks import DOCS, hook

from spr_or.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]


def test_every_recipe_key_has_a_row_with_a_meaning() -> None:
    rows: dict[str, set[str]] = {}
    section = ""
    for line in hook("recipe_keys").page().splitlines():
        if line.startswith("## "):
            section = "" if line == "## Top level" else line.removeprefix("## ").strip("[]")
        elif match := re.match(r"\| `(\w+)` \| (.*?) \| .* \| .* \|$", line):
            assert match[2].strip(), f"[{section}] {match[1]} has no meaning"
            rows.setdefault(section, set()).add(match[1])
    expected: dict[str, set[str]] = {"": set()}
    for name, field in Recipe.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            expected[name] = set(field.annotation.model_fields)
        else:
            expected[""].add(name)
    assert rows == expected


def test_recipe_keys_state_default_and_limits() -> None:
    keys = {key.name: key for key in hook("recipe_keys").keys("spr", _model("spr"))}
    assert keys["alpha"].default == "required"
    assert keys["alpha"].limits == "≥ 0, ≤ 1"
    assert keys["target_removed_pct"].default == "unset"
    assert keys["target_removed_pct"].limits == "> 0, < 100"
    assert keys["method"].kind == '"gradient" or "prox"'


def _model(section: str) -> Any:
    return Recipe.model_fields[section].annotation


def formulas() -> list[tuple[str, str, bool]]:
    """(page, formula, whether it stands on its own) of all pages written by hand."""
    found = []
    for page in sorted(DOCS.rglob("*.md")):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for match in re.finditer(r"\$\$(.+?)\$\$|\$(?=\S)([^$\n]+?)\$", text, re.DOTALL):
            found.append((page.name, match[1] or match[2], match[1] is not None))
    return found


def test_every_formula_becomes_mathml() -> None:
    pytest.importorskip("latex2mathml")
    mathml = hook("maths").mathml
    assert len(formulas()) > 100
    for page, formula, display in formulas():
        assert "<math" in mathml(formula, display), page
    assert '<span class="equation-number">(5)</span>' in mathml(r"a \tag{5}", True)
    with pytest.raises(ValueError, match="untranslated"):
        mathml(r"\nosuchcommand x", False)


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe")
    markdown = hook("docstrings").markdown
    text = "Sum.\n\n.. math::  a \\le\n           b\n\nParameters\n----------\na, b : numbers\n    two\n"
    text += "\n>>> 1 + 1\n2\n"
    assert " ".join(markdown(text).split()) == (
        "Sum. $$a \\le b$$ **Parameters** - `a`, `b`: numbers two ```pycon >>> 1 + 1 2 ```"
    )


def test_the_reference_has_every_module_and_every_public_name() -> None:
    reference = hook("reference")
    listed = {module for folder in reference.folders() for module in reference.modules(folder)}
    files = {p for p in (ROOT / "spr_or").glob("*/**/*.py") if p.name != "__init__.py"}
    assert listed == {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files}
    import spr_or

    public = set(spr_or.__all__) - {"__version__"}
    assert public <= set(reference.front_door())

"""Every Python block of README and the manual runs as it stands."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from slow_cases import slow_unless

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line of the file, code) of every Python block."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start(1)].count("\n"), m[1]) for m in _BLOCK.finditer(text)]


PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if blocks(page)
]


# README calls what these pages call, and the tests of estimators what theirs calls.
LONG = ("prune.md", "verify.md", "estimators.md")


@pytest.mark.parametrize(
    "page",
    slow_unless(lambda page: page.name not in LONG, PAGES),
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_blocks_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, code in blocks(page):
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * line + code, os.fspath(page), "exec"), namespace)


def test_readme_has_the_three_doors_and_no_deep_imports() -> None:
    codes = [code for _, code in blocks(ROOT / "README.md")]
    assert len(codes) >= 3
    for _, code in [block for page in PAGES for block in blocks(page)]:
        assert not re.search(r"^(from|import) spr_or\.(?!models\.)", code, re.MULTILINE), code


def test_links_of_readme_and_contributing_lead_to_files() -> None:
    links = [
        (page, target)
        for page in ("README.md", "CONTRIBUTING.md")
        for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
        if not target.startswith("http")
    ]
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link[1]).exists()] == []

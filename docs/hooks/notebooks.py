"""The notebooks of the tutorials as pages; `python docs/hooks/notebooks.py` runs them again.

A notebook is JSON, and its cells print text only, so neither a kernel nor a converter is needed.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]


def cells(notebook: Path) -> list[tuple[str, str, str]]:
    """(kind, source, printed output) of every cell; kind is "markdown" or "code"."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [
        (
            cell["cell_type"],
            "".join(cell["source"]),
            "".join("".join(output["text"]) for output in cell.get("outputs", [])),
        )
        for cell in content["cells"]
    ]


def page_of(notebook: Path) -> str:
    """The notebook as Markdown: text, code and what the code printed."""
    parts = []
    for kind, source, output in cells(notebook):
        parts.append(f"```python\n{source}\n```" if kind == "code" else source)
        if output:
            parts.append(f"```text\n{output.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def run(notebook: Path) -> list[str]:
    """What each cell prints when they run in order in one namespace and an empty folder."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    before, path = Path.cwd(), list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for number, (kind, source, _) in enumerate(cells(notebook)):
                output = io.StringIO()
                if kind == "code":
                    code = compile(source, f"{notebook.name}, cell {number}", "exec")
                    with contextlib.redirect_stdout(output):
                        exec(code, namespace)
                printed.append(output.getvalue())
        finally:
            os.chdir(before)
            sys.path[:] = path
    return printed


def refresh(notebook: Path) -> None:
    """Run a notebook and store what it prints in the file."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    for cell, output in zip(content["cells"], run(notebook), strict=True):
        if cell["cell_type"] == "code":
            lines = output.splitlines(keepends=True)
            stream = {"name": "stdout", "output_type": "stream", "text": lines}
            cell["outputs"] = [stream] if lines else []
    aside = notebook.with_suffix(".part")
    aside.write_text(
        json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
    aside.replace(notebook)


def on_files(files, config, **_):
    """Add a page for every notebook."""
    from mkdocs.structure.files import File

    for notebook in sorted((DOCS / "tutorials").glob("*.ipynb")):
        uri = f"tutorials/{notebook.stem}.md"
        files.append(File.generated(config, uri, content=page_of(notebook)))
    return files


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else (DOCS / "tutorials").glob("*.ipynb"):
        refresh(path.resolve())

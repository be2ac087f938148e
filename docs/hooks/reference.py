"""Pages of the reference: the front door, and one page for each folder of `spr_or`."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "spr_or"
FRONT_DOOR = "reference/front-door.md"


def folders() -> list[Path]:
    """The folders of the package that hold modules, in the order of their names."""
    return sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def modules(folder: Path) -> list[str]:
    """Import paths of a folder's modules, subfolders included."""
    files = sorted(folder.rglob("*.py"))
    return [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for file in files
        if file.name != "__init__.py"
    ]


def front_door() -> dict[str, str]:
    """{public name: the module it comes from}, read from the imports of `spr_or/__init__.py`."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spr_or"):
            for name in node.names:
                names[name.asname or name.name] = f"{node.module}.{name.name}"
    return names


def _page(folder: Path) -> str:
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    parts = [f"# spr_or.{folder.name}", doc]
    # What a command takes is told by its --help; the annotations of typer fill pages.
    options = "\n    options:\n      show_signature: false" if folder.name == "commands" else ""
    return "\n\n".join(parts + [f"::: {module}{options}" for module in modules(folder)]) + "\n"


def _front_door_page() -> str:
    parts = [
        "# The front door",
        "Everything that the tutorials and guides use is imported as `from spr_or import …`. "
        "A name is loaded when it is first asked for, so `import spr_or` stays cheap.",
    ]
    names: dict[str, list[str]] = {}
    for name, path in front_door().items():
        names.setdefault(path, []).append(name)
    for path, aliases in names.items():
        title = ", ".join(sorted(aliases, key=len))
        parts.append(f"::: {path}\n    options:\n      heading: {title}\n      toc_label: {title}")
    return "\n\n".join(parts) + "\n"


def on_config(config, **_):
    """Put the pages into the navigation."""
    for entry in config.nav:
        if isinstance(entry, dict) and "Reference" in entry:
            entry["Reference"] += [{"The front door": FRONT_DOOR}]
            entry["Reference"] += [
                {f"spr_or.{folder.name}": f"reference/{folder.name}.md"} for folder in folders()
            ]
    return config


def on_files(files, config, **_):
    """Add the pages."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, FRONT_DOOR, content=_front_door_page()))
    for folder in folders():
        uri = f"reference/{folder.name}.md"
        files.append(File.generated(config, uri, content=_page(folder)))
    return files

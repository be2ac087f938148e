"""The page of all recipe keys, made from the models in `spr_or.training.recipe`.

The meaning of a key is the description of its field, or the comment beside or above it.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from spr_or.utils.field_comments import field_comments

_HEAD = """# Recipe keys

Every key that a recipe can have, read from the models in `spr_or/training/recipe.py` when this page
was built. An unknown key is an error that names the nearest valid one. On the command line
`--set section.key=value` changes a key, with the value as TOML writes it. How to write a recipe is
described in [Prune with a recipe](../how-to/prune.md); the terms are in the
[glossary](../explanation/glossary.md).
"""


class Key(NamedTuple):
    """One key: its section ("" is the top level), name, type, default, limits and meaning."""

    section: str
    name: str
    kind: str
    default: str
    limits: str
    meaning: str


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section's name with its model, the top level first."""
    from spr_or.training.recipe import Recipe

    yield "", Recipe
    for name, field in Recipe.model_fields.items():
        if model := _section_of(field):
            yield name, model


def keys(section: str, model: type[BaseModel]) -> list[Key]:
    """The keys of one section in the order of the source."""
    meanings = field_comments(model)
    return [
        Key(
            section,
            name,
            _type_name(field),
            _default(field),
            _limits(field),
            field.description or meanings.get(name, ""),
        )
        for name, field in model.model_fields.items()
        if not _section_of(field)
    ]


def page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for section, model in sections():
        title = f"[{section}]" if section else "Top level"
        parts.append(f"## {title}\n\n{_about(model)}\n")
        rows = ["| key | meaning | default | type |", "| --- | --- | --- | --- |"]
        for key in keys(section, model):
            told = (key.meaning.rstrip("."), key.limits)
            meaning = ". ".join(part[:1].upper() + part[1:] for part in told if part)
            cells = (f"`{key.name}`", meaning, key.default, f"`{key.kind}`")
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _about(model: type[BaseModel]) -> str:
    """The first sentence of the model's docstring, without the section's name."""
    first = (inspect.getdoc(model) or "").split("\n\n")[0].replace("\n", " ")
    first = re.sub(r"^\[\w+\]: ", "", first)
    return first[:1].upper() + first[1:]


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _type_name(field: FieldInfo) -> str:
    kind = field.annotation
    name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    for pattern, plain in (
        (r"(?:typing|pathlib|collections\.abc)\.", ""),
        (r"Annotated\[(\w+), .*?\](?=,|\])", r"\1"),
        (r"<class '(\w+)'>", r"\1"),
        (r"Literal\[([^\]]*)\]", lambda m: " or ".join(m[1].replace("'", '"').split(", "))),
        (r"Union\[(.*), (tuple\[.*\])\]", r"\1 or \2"),
        (r"\bNone\b", "unset"),
        (r" \| ", " or "),
    ):
        name = re.sub(pattern, plain, name)  # type: ignore[call-overload]
    return name


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is PydanticUndefined:
        return "required" if field.default_factory is None else f"`{field.default_factory()}`"
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _limits(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join(found)


def on_files(files, config, **_):
    """Add the page to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference/recipe-keys.md", content=page()))
    return files

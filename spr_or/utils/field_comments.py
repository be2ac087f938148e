"""The meaning of the fields of a pydantic model, read from the comments in its source."""

from __future__ import annotations

import inspect
import re
import tokenize
from io import StringIO

from pydantic import BaseModel


def field_comments(model: type[BaseModel]) -> dict[str, str]:
    """{field: the comments above it and within its lines}, of this class and those it extends."""
    meanings: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            meanings |= _comments(inspect.getsource(base))
    return meanings


def _comments(source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting: list[str] = []
    name, depth = "", 0
    for token in tokenize.generate_tokens(StringIO(source).readline):
        text = token.string
        if token.type == tokenize.COMMENT:
            waiting.append(re.sub(r"\bNone:", "unset:", text.lstrip("# ").rstrip()))
        elif token.type == tokenize.OP and text in "([{":
            depth += 1
        elif token.type == tokenize.OP and text in ")]}":
            depth -= 1
        elif token.type == tokenize.NAME and not name and depth == 0:
            match = re.match(r"\s+(\w+)\s*:", token.line)
            name = match[1] if match and match[1] == text else ""
        elif token.type == tokenize.NEWLINE:
            if name and waiting:
                found[name] = " ".join(waiting)
            name, waiting = "", []
    return found

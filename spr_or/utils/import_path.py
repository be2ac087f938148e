"""Objects by import path, as recipes and the command line name them: ``package.module:name``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def load_object(path: str) -> Any:
    """The object that ``module:name`` names; modules in the current directory are found too.

    Raises ``ValueError`` for a path of another form, ``ImportError`` or ``AttributeError`` naming
    what is missing.

    >>> load_object("math:sqrt")(4.0)
    2.0
    """
    module_name, separator, name = path.partition(":")
    if not (separator and module_name and name):
        raise ValueError(f"{path!r} is not an import path of the form package.module:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = importlib.import_module(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        raise AttributeError(f"module {module_name} ({module.__file__}) has no {name!r}") from None

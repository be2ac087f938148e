"""Objects by import path, as recipes, files and the command line name them: ``module:name``.

``models.…`` names two places. A module of that name in the current directory or among the
installed packages is the user's own and comes first. If there is none, or it has no such name,
the network of this project is meant, which is always loaded as ``spr_or.models.…``. So a user's
own folder ``models`` and the shipped networks can be used in one process.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from spr_or.utils.files import file_hash

_SHIPPED = "spr_or.models"


def load_object(path: str) -> Any:
    """The object that ``module:name`` names; modules in the current directory are found too.

    Raises ``ValueError`` for a path of another form, ``ImportError`` or ``AttributeError`` naming
    what is missing and the places that were tried.

    >>> load_object("math:sqrt")(4.0)
    2.0
    >>> load_object("models.toy:mlp").__name__
    'mlp'
    """
    return getattr(_module_of(path), path.partition(":")[2])


def source_file(path: str) -> Path | None:
    """The file of the module that `load_object` takes the object from; None for built-in modules.

    Raises what `load_object` raises.

    >>> source_file("models.toy:mlp").name
    'toy.py'
    """
    file = getattr(_module_of(path), "__file__", None)
    return Path(file) if file else None


def code_digest(path: str) -> str | None:
    """SHA-256 of that file as hexadecimal digits; None for built-in modules.

    >>> code_digest("models.toy:mlp") == code_digest("models.toy:digits_resnet")
    True
    """
    file = source_file(path)
    return None if file is None else file_hash(file)


def _module_of(path: str) -> ModuleType:
    module_name, separator, name = path.partition(":")
    if not (separator and module_name and name):
        raise ValueError(f"{path!r} is not an import path of the form package.module:name")
    shipped = _shipped_name(module_name)
    modules = []
    if shipped is None or _stands_on_the_path(module_name):
        modules.append(_import_own(module_name, shipped))
    if shipped is not None:
        modules.append(importlib.import_module(shipped))
    for module in modules:
        if hasattr(module, name):
            return module
    places = " and ".join(dict.fromkeys(str(getattr(m, "__file__", m)) for m in modules))
    near = difflib.get_close_matches(name, {key: 0 for m in modules for key in vars(m)}, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module {module_name} has no {name!r}{hint} (looked in {places})")


def _shipped_name(module_name: str) -> str | None:
    """The name under which this project has ``models.…``; None if it has no such module."""
    if not module_name.startswith("models."):
        return None
    name = f"{_SHIPPED}.{module_name.removeprefix('models.')}"
    try:
        return name if importlib.util.find_spec(name) else None
    except ModuleNotFoundError:  # a module below one that is no package
        return None


def _stands_on_the_path(module_name: str) -> bool:
    """Whether a module of that name is there, found without running code of its packages.

    A user's ``models/__init__.py`` may fail or take long. It must not run when the network asked for
    is a shipped one that the user's folder does not have.
    """
    importlib.invalidate_caches()
    places: list[str] | None = [os.getcwd(), *sys.path]
    parts = module_name.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        if name in sys.modules:
            places = list(getattr(sys.modules[name], "__path__", []))
            continue
        spec = PathFinder.find_spec(name, places)
        if spec is None:
            return False
        places = list(spec.submodule_search_locations or [])
    return True


def _import_own(module_name: str, shipped: str | None) -> ModuleType:
    """Import with the current directory first; an error says where else a network would be."""
    if sys.path[:1] not in ([""], [os.getcwd()]):
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # anything the module raises while it loads
        reason = (
            str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        )
        if shipped is not None:
            hint = f"{shipped} is the module of that name that comes with SPR-OR"
        else:
            hint = f"looked for in {os.getcwd()} and among the installed packages"
            if module_name.startswith("models."):
                hint += f", and shipped networks in {importlib.import_module(_SHIPPED).__path__[0]}"
        if module_name not in reason:
            reason = f"{module_name}: {reason}"
        raise ImportError(f"{reason} ({hint})") from error

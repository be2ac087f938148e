"""Layers that are left as they are: chosen by name, pattern or type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

Ignored = Iterable[str | type[nn.Module]]


def ignored_modules(model: nn.Module, ignored: Ignored) -> frozenset[str]:
    """Names of the modules that ``ignored`` chooses, with all modules inside them.

    Parameters
    ----------
    ignored : exact names (``"layer4"``, with everything in it), glob patterns (``"layer4.*"``,
        where ``*`` also matches dots), or module types (``nn.Linear``, with its subclasses).

    Raises ``ValueError`` for a name, pattern or type that no module has, with the nearest name, and
    ``TypeError`` for anything else, and for one string that is not in a list.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Linear(2, 2))
    >>> sorted(ignored_modules(net, ["0", nn.Linear]))
    ['0', '2']
    """
    if isinstance(ignored, str):
        raise TypeError(f"ignored must be a list of names, patterns or types: write [{ignored!r}]")
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen = {name for choice in ignored for name in _chosen(modules, choice)}
    return frozenset(
        name for name in modules if any(name == c or name.startswith(f"{c}.") for c in chosen)
    )


def is_ignored(parameter: str, ignored: frozenset[str]) -> bool:
    """Whether the module that holds the parameter of that name is among `ignored_modules`.

    >>> is_ignored("fc.weight", frozenset({"fc"})), is_ignored("scale", frozenset({"fc"}))
    (True, False)
    """
    return parameter.rpartition(".")[0] in ignored


def _chosen(modules: dict[str, nn.Module], choice: object) -> list[str]:
    if isinstance(choice, type) and issubclass(choice, nn.Module):
        found = [name for name, module in modules.items() if isinstance(module, choice)]
        if not found:
            raise ValueError(f"ignored holds {choice.__name__}, a type that no module has")
        return found
    if not isinstance(choice, str):
        raise TypeError(f"ignored must hold names, patterns or module types, not {choice!r}")
    found = [name for name in modules if name and (name == choice or fnmatchcase(name, choice))]
    if not found:
        near = difflib.get_close_matches(choice, [n for n in modules if n], n=1, cutoff=0.0)
        hint = f"; the nearest name is {near[0]!r}" if near else ""
        raise ValueError(f"ignored holds {choice!r}, but no module has such a name{hint}")
    return found

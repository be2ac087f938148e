"""Long lists of cases: some of them run by default, all of them in `make test` and `make test-slow`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(quick: Callable[..., bool], cases: Iterable[Any]) -> list[Any]:
    """Cases for ``parametrize``; those for which ``quick(*case)`` is false are marked slow.

    A case with several values is a tuple.  What is left quick must still reach every branch.
    """
    several = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=() if quick(*case) else pytest.mark.slow) for case in several]


def spread(cases: Iterable[Any], default: int, slow: int) -> list[Any]:
    """Named cases: one in ``default`` runs by default, one in ``slow`` with the slow tests, all are long.

    A case has a ``name``, which becomes its id.
    """
    marked = []
    for i, case in enumerate(cases):
        marks: Any = pytest.mark.slow if i % slow == 0 else pytest.mark.long
        marked.append(pytest.param(case, id=case.name, marks=() if i % default == 0 else marks))
    return marked

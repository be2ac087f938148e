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
